"""A comparison: the result records of several runs as comparable rows and columns.

A row is a run; a column is a metric under a protocol. Values share a column only if the protocols have the same name
and hash and the metrics the same feature network. Different settings are an error unless explicitly allowed; then every
output says so. Rows of external systems have no setting; every output lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arvid.contracts import UserError
from arvid.evaluation.records import ResultRecord
from arvid.report import _columns, _noise, _reading
from arvid.report._seeds import seed_list
from arvid.report.cells import Block, Column, Row, identity, one_line


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows (reference rows first) and columns (quality first), ready to be shown."""

    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    warnings: tuple[str, ...] = ()
    """What limits the comparison as a whole: different settings or protocols, failures, several machines."""
    remarks: tuple[str, ...] = ()
    """How to read the values: means over seeds, differences within noise, metrics that are left out."""

    @classmethod
    def from_runs(
        cls,
        run_dirs: Sequence[str | Path],
        *,
        allow_different_settings: bool = False,
        title: str = "Comparison",
    ) -> Comparison:
        """Read the records of all runs.

        Raises UserError if there is no run, a record cannot be read, a run has two records of one protocol,
        or the settings differ and that is not allowed.
        """
        rows = _reading.read_rows(run_dirs)
        differences = _reading.setting_differences(rows)
        if differences and not allow_different_settings:
            listed = "\n".join(f"  {line}" for line in differences)
            raise UserError(
                f"the runs have different settings, so their values are not comparable:\n{listed}\n"
                "Train them under one setting, or compare them anyway with "
                "--allow-different-settings."
            )
        columns, rows_with_cells = _columns.build(rows)
        return cls(
            title=title,
            rows=rows_with_cells,
            columns=columns,
            warnings=_warnings(rows, differences),
            remarks=_remarks(rows),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings and remarks. Every output must show them."""
        return self.warnings + self.remarks

    @property
    def records(self) -> tuple[ResultRecord, ...]:
        """The records as written."""
        return tuple(record for row in self.rows for record in row.sources)

    @property
    def summary(self) -> str:
        """One line: title, numbers of rows, setting hashes."""
        trained = sum(not row.is_reference for row in self.rows)
        hashes = self.setting_hashes
        named = f"setting{'s' * (len(hashes) > 1)} {', '.join(h[:12] for h in hashes)}"
        setting = named if hashes else "no setting"
        references = len(self.rows) - trained
        return one_line(
            f"{self.title}: {trained} trained and {references} reference rows, {setting}"
        )

    @property
    def setting_hashes(self) -> tuple[str, ...]:
        """Setting hashes of the trained rows, normally one; empty if no row has a setting."""
        trained = [row for row in self.rows if not row.is_reference]
        records = [record for row in trained or self.rows for record in row.records]
        return tuple(dict.fromkeys(r.setting_hash for r in records if r.setting))

    @property
    def protocols(self) -> dict[str, list[tuple[Row, ResultRecord]]]:
        """Each protocol's unique heading, with the rows measured under it and their records."""
        headings = _reading.protocol_headings(self.rows)
        return {
            heading: [(w, r) for w in self.rows for r in w.records if identity(r) == protocol]
            for protocol, heading in headings.items()
        }

    @property
    def legend(self) -> tuple[str, ...]:
        """Evaluations of each network, for rows that use several networks."""
        users: dict[tuple[str, str], list[str]] = {}
        for column in self.columns:
            for row in self.rows:
                detail = row.cell(column).detail
                if column.key.endswith("/evaluations") and "+" in detail:
                    users.setdefault((column.group, detail), []).append(row.name)
        return tuple(f"{', '.join(who)} ({group}): {d}" for (group, d), who in users.items())

    def in_block(self, block: Block) -> list[Column]:
        """The columns of one of the two tables."""
        return [column for column in self.columns if column.block == block]

    def metric_title(self, heading: str, metric: str) -> str:
        """A metric's heading and its protocol's, for a plot."""
        headings = {column.key: column.heading for column in self.columns}
        return f"{headings.get(f'{heading}/{metric}', metric)} · {heading}"

    def rows_with(self, columns: Sequence[Column]) -> list[Row]:
        """The rows that a table of these columns shows: a table of costs leaves out those without any."""
        costs = all(column.block == "cost" for column in columns)
        return [row for row in self.rows if not costs or any(c.key in row.cells for c in columns)]

    def caption(self, row: Row) -> str:
        """The factors that differ between trained rows and are not in the row's name."""
        trained = [other.factors for other in self.rows if not other.is_reference]
        varying = [k for k in row.factors if len({factors.get(k) for factors in trained}) > 1]
        return ", ".join(row.factors[k] for k in varying if row.factors[k] not in row.name)

    def display_name(self, row: Row) -> str:
        """Name and caption: `nova (continuous)`."""
        caption = self.caption(row)
        return one_line(f"{row.name} ({caption})" if caption else row.name)


def _warnings(rows: Sequence[Row], differences: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if differences:
        notes.append("The rows have different settings. " + "; ".join(differences))
    if elsewhere := [row.name for row in rows if not any(r.setting for r in row.records)]:
        notes.append(
            f"Made elsewhere, under settings that arvid does not know: {', '.join(elsewhere)}"
        )
    for name, lines in _reading.protocol_differences(rows).items():
        notes.append(
            f"Different protocols have the name {name}; they share no column. " + "; ".join(lines)
        )
    for row in rows:
        notes += [f"{row.name} failed under {name}: {why}" for name, why in row.errors.items()]
    measured = [r.hardware for w in rows for r in w.sources if r.budget.frames_per_second]
    machines = list(dict.fromkeys(machine for machine in measured if machine))
    if len(machines) > 1:
        notes.append("Speeds were measured on different machines: " + " · ".join(machines))
    return tuple(notes)


def _remarks(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    if means := [f"{row.name}: {seed_list(row)}" for row in rows if row.seeds]:
        notes.append("Means over training seeds, ± their standard deviation: " + "; ".join(means))
    if ties := _noise.ties(rows):
        notes.append("Within noise of the best (95 %): " + "; ".join(ties))
    return (*notes, *_left_out(rows))


def _left_out(rows: Sequence[Row]) -> list[str]:
    """One note per optional metric that rows lack, with the rows' names unless all rows of the protocol lack it."""
    without: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for protocol, note in dict.fromkeys(
            (r.protocol_name, n) for r in row.sources for n in r.notes
        ):
            without.setdefault((protocol, note), []).append(row.name)
    scored = [{r.protocol_name for r in row.records} for row in rows]
    return [
        f"{protocol}: {note}"
        + ("" if len(names) == sum(protocol in s for s in scored) else f" ({', '.join(names)})")
        for (protocol, note), names in without.items()
    ]
