"""Arrays, numbers and types of numpy in files, made from what the file says only after it has been checked.

numpy's own constructors believe a pickle: a type with an object in it and forged flags makes them take bytes of the file for the
address of an object. Here a type is one of a list, and numbers are a view of exactly as many bytes as they need.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from checkpoints.plain_pickle import Built, Leaf, Named, NotPlain

KINDS = frozenset(f"{kind}{size}" for kind, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248"}.items() for size in sizes)
TEXTS = {"S": 1, "U": 4}
"""Bytes a letter."""
DIMENSIONS, LAST_LETTER = 8, 0x10FFFF


class Dtype(Built):
    """Stand-in for `numpy.dtype`: a number, or strings of one length."""

    def __init__(self, text: Any = None, align: Any = False, copy: Any = False) -> None:
        if type(text) is not str or len(text) > 8 or not {align, copy} <= {0, 1}:
            raise NotPlain("it has a numpy type that is no simple number")
        self.text, self.order = text.lstrip("<>|="), text[0] if text[:1] in ("<", ">") else "="
        if self.text == "b":
            self.text = "b1"
        if self.text not in KINDS and not re.fullmatch("[SU][1-9][0-9]{0,5}", self.text):
            raise NotPlain(f"it has a numpy type that is no simple number ({text!r})")

    def restore(self, state: Any) -> None:
        """State of `numpy.dtype.__setstate__`: version, byte order, subarray, names, fields, bytes, alignment, flags."""
        if type(state) is not tuple or len(state) != 8 or type(state[1]) is not str or state[1] not in ("<", ">", "|", "="):
            raise NotPlain("it has a numpy type with a forged state")
        version, order, *parts, size, alignment, flags = state
        unit = TEXTS.get(self.text[0])
        expected = (-1, -1) if unit is None else (int(self.text[1:]) * unit, unit)
        if version not in (3, 4) or any(part is not None for part in parts) or (size, alignment) != expected:
            raise NotPlain("it has a numpy type with fields, parts or a forged size")
        if flags not in (0, 8 if unit == 4 else 0):  # numpy's own for texts of four bytes a letter: set bytes in order first
            raise NotPlain("it has a numpy type with forged flags")
        self.order = order if order in ("<", ">") else "="

    __setstate__ = restore
    """The method's name for torch's reader."""

    def real(self) -> np.dtype:
        """numpy's own."""
        return np.dtype(self.order + self.text)


class NDArray(Leaf):
    """Stand-in for `numpy.ndarray`."""

    made: np.ndarray | None = None

    def restore(self, state: Any) -> None:
        """Checks the state of `numpy.ndarray.__setstate__`: version, shape, type, column by column, bytes."""
        self.made = filled(state)

    def value(self) -> np.ndarray:
        """numpy's own."""
        if self.made is None:
            raise NotPlain("it has an array without numbers")
        return self.made


class Number(Leaf):
    """Stand-in for a numpy scalar."""

    def __init__(self, dtype: Any, content: Any) -> None:
        self.made = scalar(dtype, content)

    def value(self) -> Any:
        """numpy's own."""
        return self.made


def filled(state: Any) -> np.ndarray:
    """The array whose pickled state this is. Raises NotPlain."""
    if type(state) is not tuple or len(state) != 5:
        raise NotPlain("it has an array with a forged state")
    version, shape, dtype, by_column, content = state
    if version != 1 or type(dtype) is not Dtype or type(by_column) not in (bool, int):
        raise NotPlain("it has an array with a forged state")
    content = content.encode("latin1") if type(content) is str else content  # bytes of Python 2
    if type(shape) is not tuple or len(shape) > DIMENSIONS or not all(type(side) is int and side >= 0 for side in shape):
        raise NotPlain("it has an array with a forged shape")
    real = dtype.real()
    if type(content) is not bytes or math.prod(shape) * real.itemsize != len(content):
        raise NotPlain("it has an array whose numbers are not as many as its shape says")
    numbers: np.ndarray = np.frombuffer(content, dtype=real).astype(real.newbyteorder("="))
    if real.kind == "U" and numbers.size and numbers.view(np.uint32).max() > LAST_LETTER:
        raise NotPlain("it has a text with a letter that does not exist")
    if real.kind == "b":
        numbers = numbers.view(np.uint8) != 0
    return numbers.reshape(shape, order="F" if by_column else "C")


def scalar(dtype: Any, content: Any) -> Any:
    """A number of numpy. Raises NotPlain."""
    return filled((1, (1,), dtype, False, content))[0]


def reconstruct(*_: Any) -> NDArray:
    """An array to be filled; what the file says of it now, it says again with the numbers."""
    return NDArray()


def encoded(text: str, encoding: str) -> bytes:
    """Bytes as protocols before 3 write them."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise NotPlain("it encodes in a way that no pickle needs")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


NAMES: dict[str, Callable[..., Any] | None] = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": None,
    "_codecs.encode": encoded,
    "builtins.bytes": _no_bytes,
    "__builtin__.bytes": _no_bytes,
    **{f"numpy.{core}.multiarray._reconstruct": reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": Number for core in ("core", "_core")},
}
"""Names allowed in a file of plain values: arrays and scalars of numpy 1 and 2, bytes of old protocols."""


def names(full: str) -> Named | None:
    """For `plain_pickle.read`."""
    return Named(full, NAMES[full]) if full in NAMES else None
