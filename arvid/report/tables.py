"""A comparison as terminal text, Markdown, LaTeX, CSV and JSON.

Text, Markdown and LaTeX have two tables, quality and cost. One table would be too wide to read.
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from arvid.report._markup import markdown, tex
from arvid.report._terminal import show, text
from arvid.report.cells import Row
from arvid.report.comparison import Comparison

__all__ = ["markdown", "show", "tex", "text", "to_csv", "to_dict", "to_json"]


def to_csv(comparison: Comparison) -> str:
    """One line per row, values not rounded. Uncertainties have columns of their own (`... spread`); notes come last."""
    factors = list(dict.fromkeys(k for row in comparison.rows for k in row.factors))
    with_spread = {
        c.key for r in comparison.rows for c in comparison.columns if r.cell(c).spread is not None
    }
    heading = ["name", "row", *factors, "setting_hash"]
    for column in comparison.columns:
        heading += [column.key, f"{column.key} spread"][: 1 + (column.key in with_spread)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*heading, "note"])
    for row in comparison.rows:
        line: list[Any] = [row.name, row.records[0].row, *(row.factors.get(f, "") for f in factors)]
        line.append(row.records[0].setting_hash)
        for column in comparison.columns:
            cell = row.cell(column)
            line += [cell.value, cell.spread][: 1 + (column.key in with_spread)]
        writer.writerow([*line, " | ".join(comparison.notes)])
    return file.getvalue()


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data: values as measured, and the texts that the other formats show."""
    return {
        "format": 1,
        "title": comparison.title,
        "notes": list(comparison.notes),
        "setting_hashes": list(comparison.setting_hashes),
        "columns": [
            {
                "key": c.key,
                "label": c.label,
                "unit": c.unit,
                "group": c.group,
                "block": c.block,
                "higher_is_better": c.higher_is_better,
                "detail": c.detail,
            }
            for c in comparison.columns
        ],
        "rows": [_row_to_dict(row) for row in comparison.rows],
        "protocols": {h: found[0][1].protocol for h, found in comparison.protocols.items()},
    }


def to_json(comparison: Comparison) -> str:
    """`to_dict` as text."""
    return json.dumps(to_dict(comparison), indent=1, allow_nan=False) + "\n"


def _row_to_dict(row: Row) -> dict[str, Any]:
    cells = {
        key: {
            "text": c.text,
            "value": c.value,
            "spread": c.spread,
            "count": c.count,
            "best": c.best,
        }
        for key, c in row.cells.items()
    }
    records = [
        {
            "protocol": r.protocol_name,
            "protocol_hash": r.protocol_hash,
            "setting_hash": r.setting_hash,
            "checkpoint_sha256": r.checkpoint_sha256,
            "seed": r.seed,
            "code_version": r.code_version,
            "hardware": r.hardware,
            "created": r.created,
            "error": r.error,
        }
        for r in row.sources
    ]
    kind = row.records[0].row
    return {
        "name": row.name,
        "row": kind,
        "factors": row.factors,
        "cells": cells,
        "records": records,
    }
