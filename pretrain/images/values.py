"""Numbers of more than 8 bit as 0..1: by the range of their type where they keep to it, else by `--value-range LOW HIGH`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from checkpoints.cli import UserError
from pretrain.images.formats import BadImage

if TYPE_CHECKING:
    from checkpoints.architecture import Architecture
    from pretrain.images.source import Images

ValueRange = tuple[float, ...]
"""Least and largest value, or nothing: whole numbers are then 0..65535, others 0..1."""
LOOKED_AT = 16
"""Number of images, evenly spaced, whose values are checked before the first step."""
MOST = 1e6
"""Largest value that is used unscaled: larger ones make sums and squares of a network's first layers overflow."""
SLACK = 1e-3
"""Distance from 0..1 that values of resized or compressed images may have."""


def to_unit(array: np.ndarray, value_range: ValueRange = ()) -> np.ndarray:
    """float32 in 0..1; without a range floats are as they are. Raises BadImage for infinite and other numbers."""
    if array.dtype == bool:
        return array.astype(np.float32, order="C")  # in this order at once, so that no copy follows
    if array.dtype.kind not in "uif" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise BadImage(f"its numbers ({array.dtype}) are not all finite")
    if value_range:
        low, high = value_range
        exact = np.float32 if array.dtype.itemsize < 4 or array.dtype == np.float32 else np.float64
        scaled = array.astype(exact, order="C")
        scaled -= exact(low)
        scaled /= exact(high - low)
        return scaled.clip(0, 1, out=scaled).astype(np.float32, copy=False)
    if array.dtype.kind == "f" and array.size and max(float(array.max()), -float(array.min())) > MOST:
        raise BadImage(f"its numbers reach from {array.min():g} to {array.max():g}, far outside 0 to 1")
    levels = array.astype(np.float32, order="C")
    if array.dtype.kind in "ui":  # Pillow widens 16 bit to 32
        levels /= np.float32(65535)
    return levels


class Found(NamedTuple):
    """Types and range of the values of some images."""

    types: tuple[str, ...]
    low: float
    high: float

    @property
    def whole(self) -> bool:
        return all(name.startswith(("int", "uint")) for name in self.types)

    def of_type(self) -> ValueRange:
        """The value range of the type."""
        return (0.0, 65535.0) if self.whole else (0.0, 1.0)

    def keeps_to_it(self) -> bool:
        """Whether the values are within the range of their type."""
        low, high = self.of_type()
        return low - SLACK <= self.low and self.high <= high + SLACK


def look(images: "Images", count: int = LOOKED_AT) -> Found | None:
    """The values of some images of more than 8 bit, or None where all have 8 bit or none can be read."""
    from pretrain.images.decode import as_stored  # noqa: PLC0415  # which imports this file

    types: set[str] = set()
    low, high = np.inf, -np.inf
    for index in np.unique(np.linspace(0, len(images) - 1, count).astype(int)):
        with contextlib.suppress(BadImage, OSError):  # it will be named when its turn comes
            array = as_stored(images.content(int(index)))
            if array.dtype.kind in "uif" and array.dtype != np.uint8 and array.size and np.isfinite(array).all():
                types.add(array.dtype.name)
                low, high = min(low, float(array.min())), max(high, float(array.max()))
    return Found(tuple(sorted(types)), low, high) if types else None


def check(images: "Images", value_range: ValueRange, *, begun: bool = False) -> list[str]:
    """One line on the values found, or nothing for 8 bit. Raises UserError, naming the flag, if no range fits.

    A run that had `begun` before this check existed continues as it was, with a note.
    """
    found = look(images)
    if found is None:
        if value_range:
            raise UserError(f"--value-range is for images of more than 8 bit: those of {images.name} have 8, leave it out")
        return []
    what = f"the images of {images.name} hold {' and '.join(found.types)} from {found.low:g} to {found.high:g}"
    flag = f"--value-range {found.low:g} {found.high:g}"
    if not value_range and not found.keeps_to_it():
        low, high = found.of_type()
        if begun:
            return [f"{what}, though {low:g} to {high:g} is taken for black to white: begin another run with {flag}"]
        raise UserError(f"{what}, not {low:g} to {high:g}: give the least and largest value that matter, such as {flag}")
    low, high = value_range or found.of_type()
    if value_range and (found.high <= low or found.low >= high):
        raise UserError(f"{what}: nothing of it is inside --value-range {low:g} {high:g}")
    few = not value_range and found.high - found.low < (high - low) / 8
    return [f"{what}, scaled from {low:g} to {high:g}" + (f"; {flag} would use all levels" if few else "")]


def refuse_range(shape: "Architecture", path: Path) -> None:
    """Raises UserError for a checkpoint whose images had more than 8 bit, where a command shows pictures of 8."""
    if shape.value_range:
        low, high = shape.value_range
        raise UserError(f"{path} was trained with --value-range {low:g} {high:g}: this command is for pictures of 8 bit")


def refuse_others(images: "Images") -> None:
    """Raises UserError if values of a probe's images are outside the range of their type and the checkpoint has no range."""
    found = None if images.value_range else look(images)
    if found is not None and not found.keeps_to_it():
        low, high = found.of_type()
        raise UserError(
            f"the images of {images.name} hold {' and '.join(found.types)} from {found.low:g} to {found.high:g}, the checkpoint "
            f"takes {low:g} to {high:g}: scale them to that, or pretrain with --value-range {found.low:g} {found.high:g}"
        )
