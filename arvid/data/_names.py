"""Names of videos: the path of the file inside the dataset, and the seconds of a part."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Decimals of 0 to 999 thousandths, without trailing zeros.
_MILLISECONDS = pa.array(["", *(f".{n:03d}".rstrip("0") for n in range(1, 1000))])
_MANY_SECONDS = 1e9


def section_name(name: str, start: float | None, end: float | None) -> str:
    """Name of a part of a file: from 2 to 4.5 seconds of "a.mp4" is "a@2-4.5.mp4"."""
    stem, dot, suffix = name.rpartition(".")
    ends = "-".join("" if at is None else _seconds(at) for at in (start, end))
    return f"{stem}@{ends}.{suffix}" if dot else f"{name}@{ends}"


def names_of(rows: pa.RecordBatch) -> pa.Array:
    """`Entry.name` of many rows with the columns of SCHEMA."""
    start, end = rows.column("start"), rows.column("end")
    names = pc.coalesce(rows.column("name"), rows.column("path"))
    is_part = pc.or_(pc.is_valid(start), pc.is_valid(end))
    if not pc.any(is_part).as_py():
        return names
    encoded = names.dictionary_encode()
    stems, suffixes = (
        pa.array(texts, pa.string()).take(encoded.indices)
        for texts in zip(*map(_stem_and_suffix, encoded.dictionary.to_pylist()), strict=True)
    )
    parts = pc.binary_join_element_wise(
        *(stems, pa.scalar("@"), _all_seconds(start), pa.scalar("-"), _all_seconds(end), suffixes),
        "",
    )
    return pc.if_else(is_part, parts, names)


def _stem_and_suffix(name: str) -> tuple[str, str]:
    """A name before its last dot, and the rest with the dot."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if dot else (name, "")


def _seconds(at: float) -> str:
    return f"{at:.3f}".rstrip("0").rstrip(".")


def _all_seconds(values: pa.Array) -> pa.Array:
    """Seconds with up to three decimals, as `_seconds` writes them; "" for null."""
    seconds = pc.fill_null(values, 0.0).to_numpy(zero_copy_only=False)
    is_large = seconds >= _MANY_SECONDS
    thousandths = np.where(is_large, 0.0, seconds) * 1000
    # Python's format rounds by the exact binary value, which the product with 1000 loses near a half.
    is_half = np.abs(thousandths - np.floor(thousandths) - 0.5) < 1e-3
    whole, rest = np.divmod(np.rint(thousandths).astype(np.int64), 1000)
    texts = pc.binary_join_element_wise(
        pa.array(whole).cast(pa.string()), _MILLISECONDS.take(pa.array(rest)), ""
    )
    hard = is_half | is_large | np.signbit(seconds)
    if hard.any():  # rare values go through Python's format
        written = pa.array([_seconds(at) for at in seconds[hard].tolist()], pa.string())
        texts = pc.replace_with_mask(texts, pa.array(hard), written)
    return pc.if_else(pc.is_valid(values), texts, pa.scalar(""))


def is_utf8(text: str) -> bool:
    """Whether a text is valid UTF-8: no surrogates, which Python uses for other bytes in file names."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def other_spellings(root: Path, listed: Iterable[str]) -> dict[str, str]:
    """Listed path -> its spelling on disk, for missing paths that exist in another spelling.

    macOS splits an accented letter into two characters (NFD), other systems do not (NFC). Spreadsheets leave spaces at
    the ends.
    """
    found = {}
    for path in listed:
        stripped = path.strip()
        forms = (unicodedata.normalize(form, stripped) for form in ("NFC", "NFD"))
        for other in (stripped, *forms):
            if other not in ("", path) and os.path.exists(root / other):
                found[path] = other
    return found
