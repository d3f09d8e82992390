"""Paths of images as one block of bytes, and the text files that list them.

A path costs its own length and eight bytes, and worker processes share the block: nothing in it has a count of references.
"""

import io
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from checkpoints import places, reading
from checkpoints.cli import UserError
from checkpoints.store import first_line

SHOWN = 200
"""Letters of a path in an error."""


class Paths(Sequence[str]):
    """Strings one after the other in an array of bytes; any bytes of a file's name are kept as they are."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        content, ends = bytearray(), array("q", [0])
        for path in paths:
            content += os.fsencode(path)
            ends.append(len(content))
        self._content, self._ends = np.frombuffer(bytes(content), np.uint8), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # numbers only
        place = range(len(self))[index]
        return os.fsdecode(self._content[self._ends[place] : self._ends[place + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class Rows:
    """A list's paths as they are written, and the numbers of their labels where all rows have one."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for a file that cannot be read, without rows, or with rows of several kinds."""
        self._path, self.width, self.count = path, 0, 0
        self.names: dict[str, int] = {}
        numbers = array("q")
        self.paths = Paths(self._read(numbers))
        if not len(self.paths):
            raise UserError(f"{path} lists no images: write one path a line, or path<TAB>label")
        self.labels = np.array(numbers, np.int64) if self.width == 2 else None

    def _read(self, numbers: "array[int]") -> Iterator[str]:
        try:
            with io.TextIOWrapper(reading.opened(self._path), encoding="utf-8-sig") as file:
                for line in file:
                    for part in line.splitlines():  # of other ends of lines too
                        if part.strip() and not part.startswith("#"):
                            yield self._row(part.rstrip().split("\t"), numbers)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self._path} is no readable list of paths ({first_line(error)})") from error

    def _row(self, row: list[str], numbers: "array[int]") -> str:
        self.count += 1
        self.width = self.width or len(row)
        if len(row) not in (1, 2) or len(row) != self.width:
            raise UserError(
                f"{self._path}: entry {self.count} differs from the first: write one path a line, or path<TAB>label in every line"
            )
        if self.width == 2:
            numbers.append(self.names.setdefault(row[1], len(self.names)))
        return row[0]


def listed(path: Path, *, inside: bool) -> tuple[Paths, np.ndarray | None, list[str]]:
    """The files that a text file lists, the numbers [count] of their labels, or None, and the labels by number, in order seen.

    One path a line, or `path<TAB>label`; relative paths start at the file's folder. Empty lines and lines that begin with # are
    skipped. Raises UserError where `inside` and a path leads out of that folder, and where none of the paths exists.
    """
    rows = Rows(path)
    if inside:
        cure = f"name the list itself to use it, as in --data {path}"
        for name in rows.paths:
            places.inside_of(path.parent, name, file=path, cure=cure)  # what no file can be called is one bad image
    files = Paths(os.path.join(path.parent, name) for name in rows.paths)
    if not any(os.path.lexists(file) for file in files):
        raise UserError(f"none of the {len(files)} paths in {path} exists (the first is {files[0][:SHOWN]})")
    return files, rows.labels, list(rows.names)
