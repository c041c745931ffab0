"""Read pickles of plain data and numpy arrays of numbers. Nothing in the file is imported or called.

numpy's own unpickling is not used, because a damaged file can crash it. The pickle of an array names a few functions.
Functions of this module replace them. They keep bytes, shape and type, and `numpy.frombuffer` then makes the array.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arvid.contracts import UserError

TYPES = ("f2", "f4", "f8", "i4", "i8", "u1", "b1")
"""Permitted types of numbers: kind and bytes."""
ORDERS = ("<", ">", "|", "=")
"""Permitted byte orders, as numpy writes them."""


def read_pickled(path: Path) -> dict[str, Any]:
    """The pickled dict in a file. Raises UserError for other content, and for objects other than numpy arrays."""
    try:
        found = _Reader(io.BytesIO(path.read_bytes())).load()
        content = {name: _plain(value) for name, value in found.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: not a pickle of numpy arrays that can be read safely ({error!s:.200})."
        ) from error
    return content


class _Type:
    """Replaces a numpy type."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype[Any]:
        if self.code not in TYPES or self.order not in ORDERS:
            raise ValueError(f"arrays of {self.order}{self.code}")
        return np.dtype(self.order + self.code)


class _Array:
    """Replaces a numpy array."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, self.is_fortran, self.content = state

    def numpy(self) -> NDArray[Any]:
        flat = np.frombuffer(self.content, self.type.numpy())
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C").copy()


def _from_buffer(content: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    found = _Array()
    found.__setstate__((1, shape, kind, order == "F", content))
    return found


def _number(kind: _Type, content: bytes) -> float:
    value: float = np.frombuffer(content, kind.numpy())[0].item()
    return value


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"text of encoding {encoding}")
    return text.encode("latin1")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "numpy.dtype": _Type,
    "numpy.ndarray": _Array,
    "numpy._core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy._core.multiarray.scalar": _number,
    "numpy._core.numeric._frombuffer": _from_buffer,
}
"""Name in the pickle of an array -> function that replaces it."""


# The reader written in Python. The one in C allocates as much memory as a damaged file asks for.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}".replace("numpy.core.", "numpy._core.")  # before numpy 2
        if path not in FUNCTIONS:
            raise pickle.UnpicklingError(f"it names {path}, which is not run")
        replacement = FUNCTIONS[path]
        # A new function for each name, because a file can set attributes of what it gets.
        return lambda *arguments: replacement(*arguments)


def _plain(value: Any) -> Any:
    """Convert a value, or the values of a list. Not lists of lists: a few bytes of pickle can hold very many values."""
    if isinstance(value, list):
        return [_array(item) for item in value]
    return _array(value)


def _array(value: Any) -> Any:
    return value.numpy() if isinstance(value, _Array) else value
