"""Arrays of features on disk: their room is taken before the work, rows are marked as they come, the whole is sealed.

A folder has `about.json` (what decides the features, a SHA-256 of each finished array) and one `.npy` an array; while it is
filled also `done.npy` [n], a checksum of each image's rows or 0. What does not agree is made anew and said, never used.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.format import open_memmap

from checkpoints import places, reading, store, terminal
from checkpoints.cli import UserError

ABOUT, DONE, SEALS = "about.json", "done.npy", "sha256"
PIECE = 4000
"""Rows that are checked at once."""


def finished(folder: Path, names: Sequence[str], rows: int, *, looked_at: bool = False) -> dict[str, np.memmap] | None:
    """The arrays that were kept, by name; None where there are none, or where they are damaged: those are removed, which is said.

    `looked_at`: their checksums have been compared. Raises OSError where they cannot be removed.
    """
    if not folder.is_dir():
        return None
    try:
        seals = _about(folder).get(SEALS, {})
        found = {name: _array(folder, name, rows) for name in names}
        for name, array in () if looked_at else found.items():
            path = folder / f"{name}.npy"
            if name in seals:
                if store.sha256(path) != seals[name]:
                    raise UserError(f"{path} does not agree with its checksum")
            elif not all(np.isfinite(array[start : start + PIECE]).all() for start in range(0, rows, PIECE)):
                raise UserError(f"{path} holds numbers that are not finite")  # of a version that sealed nothing
        return found
    except UserError as error:
        terminal.say(f"note: kept features are damaged ({error}): they are computed again", error=True)
        shutil.rmtree(folder)
        return None


def lay_out(partial: Path, about: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], rows: int) -> list[bool]:
    """Make room for arrays [n, *shape], unless an interrupted pass has left its own; which rows those hold.

    Raises OSError where there is no room, before anything is computed.
    """
    if partial.is_dir():
        try:
            if (partial / ABOUT).is_file():
                return _rows_done(partial, list(shapes), rows)
        except UserError as error:
            terminal.say(f"note: {error}: features are computed from the beginning", error=True)
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    for name, shape in shapes.items():
        _make(partial / f"{name}.npy", np.float32, (rows, *shape))
    _make(partial / DONE, np.uint32, (rows,))
    store.write_bytes(partial / ABOUT, json.dumps(about, indent=1).encode())
    return [False] * rows


class Rows:
    """Arrays that are being filled."""

    def __init__(self, partial: Path, names: Sequence[str], rows: int) -> None:
        """Raises UserError where they are not what was laid out."""
        self._arrays = {name: _array(partial, name, rows, "r+") for name in names}
        self._done = _array(partial, "done", rows, "r+", np.uint32)

    def write(self, rows: slice, values: Mapping[str, np.ndarray]) -> None:
        """Put values [b, ...] in their places; they count as soon as they are on the disk."""
        for name, array in self._arrays.items():
            array[rows] = values[name]
            array.flush()
        self._done[rows] = [_checksum(one) for one in zip(*(values[name] for name in self._arrays), strict=True)]


def seal(partial: Path, folder: Path, names: Sequence[str]) -> None:
    """The finished arrays under their own name; another command may have been as quick. Raises OSError."""
    seals = {name: store.sha256(partial / f"{name}.npy") for name in names}
    store.write_bytes(partial / ABOUT, json.dumps({**_about(partial), SEALS: seals}, indent=1).encode())
    (partial / DONE).unlink()
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(partial, ignore_errors=True)


def _make(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """An array of zeros whose room is taken: writing to a mapped file that finds none would end the process with SIGBUS."""
    open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _about(folder: Path) -> dict[str, Any]:
    """Raises UserError where it is none."""
    try:
        found = reading.values(folder / ABOUT)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ABOUT} cannot be read ({store.first_line(error)})") from error
    seals = found.get(SEALS, {}) if isinstance(found, dict) else None
    if not isinstance(seals, dict):
        raise UserError(f"{folder / ABOUT} is not what was written there")
    return found


def _rows_done(partial: Path, names: Sequence[str], rows: int) -> list[bool]:
    """Which rows of an interrupted pass agree with their checksum. Raises UserError where its files do not fit."""
    arrays, done = [_array(partial, name, rows) for name in names], _array(partial, "done", rows, "r", np.uint32)
    return [bool(mark) and mark == _checksum([array[row] for array in arrays]) for row, mark in enumerate(done.tolist())]


def _checksum(parts: Sequence[np.ndarray]) -> int:
    """Of one image's features; never 0."""
    found = 0
    for part in parts:
        found = zlib.crc32(part.tobytes(), found)
    return found or 1


def _array(folder: Path, name: str, rows: int, mode: Literal["r", "r+"] = "r", dtype: type = np.float32) -> np.memmap:
    """An array on disk. Raises UserError where it is not what was laid out there."""
    path = folder / f"{name}.npy"
    if mode == "r+":
        places.refuse_link(path)
        places.refuse_other_names(path)
    try:
        reading.opened(path).close()
        found = np.load(path, mmap_mode=mode)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not the features that were kept there ({store.first_line(error)})") from error
    known = isinstance(found, np.memmap) and found.dtype == dtype and found.ndim > (dtype == np.float32)
    if not known or len(found) != rows or not found.size:
        what = f"it has {list(found.shape)} of {found.dtype}" if isinstance(found, np.ndarray) else "it is an archive"
        raise UserError(f"{path} is not the features that were kept there ({what})")
    return found
