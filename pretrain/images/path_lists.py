"""Paths of images as one block of bytes, and the text files that list them.

A path costs its own length and eight bytes, and worker processes share the block: nothing in it has a count of references.
"""

import csv
import io
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from checkpoints import places, reading
from checkpoints.cli import UserError
from checkpoints.store import first_line
from pretrain.images.formats import SUFFIXES
from pretrain.images.labels import Columns

PATH_NAMES = (
    "path",
    "file_path",
    "filepath",
    "image_path",
    "file_name",
    "filename",
    "file",
    "image",
    "img",
    "img_path",
    "image_file",
)
LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category")
"""Names of columns in a first line, preferred ones first."""
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


class Listed(NamedTuple):
    """The files of a list; each one's label as the number of its word (-1: none); the groups [n] where they were asked for."""

    paths: Paths
    codes: np.ndarray
    words: Sequence[str] | None
    """None where no row has a label."""
    label: str
    """The column of labels, for messages."""
    groups: np.ndarray | None


class Places(NamedTuple):
    """Where a row has its path, label and group; None for what it has not."""

    path: int
    label: int | None
    group: int | None
    most: int
    """Cells of a row."""
    name: str = "label"
    """What the column of labels is called."""


class Rows:
    """A list's paths as they are written, labels and groups as numbers of their words."""

    def __init__(self, path: Path, columns: Columns) -> None:
        """Raises UserError for a file that cannot be read, without rows, or with rows of several kinds."""
        self._path, self._columns, self.count = path, columns, 0
        self.places: Places | None = None
        self.words: dict[str, int] = {}
        self.groups: dict[str, int] = {}
        codes, groups = array("q"), array("q")
        self.paths = Paths(self._read(codes, groups))
        if not len(self.paths):
            raise UserError(f"{path} lists no images: write one path a line, or path<TAB>label")
        self.codes, self.group_codes = np.array(codes, np.int64), np.array(groups, np.int64)

    def _read(self, codes: "array[int]", groups: "array[int]") -> Iterator[str]:
        try:
            with io.TextIOWrapper(reading.opened(self._path), encoding="utf-8-sig", newline="") as file:
                for row in self._cells(file):
                    if self.places is None:
                        self.places = self._layout(row)
                        if self._is_head(row):
                            continue
                    yield self._row(row, codes, groups)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{self._path} is no readable list of paths ({first_line(error)})") from error

    def _cells(self, file: io.TextIOWrapper) -> Iterator[list[str]]:
        """Each entry's cells; of a .csv, and of `path,label`, with their quotes taken off."""
        lines = (part for line in file for part in _split(line, self._is_csv()))
        used = (line for line in lines if line.strip() and not line.startswith("#"))
        first = next(used, None)
        if first is None:
            return
        every = itertools.chain([first], used)
        if self._is_csv() or _is_pair(first):
            separator = next((one for one in ("\t", ";", ",") if one in first), ",")
            yield from csv.reader(every, delimiter="," if not self._is_csv() else separator)
        else:
            yield from (line.rstrip().split("\t") for line in every)

    def _is_csv(self) -> bool:
        return self._path.suffix.lower() == ".csv"

    def _is_head(self, row: Sequence[str]) -> bool:
        """Whether the first entry names columns."""
        return len(row) > 1 and any(cell.strip().lower() in PATH_NAMES for cell in row)

    def _layout(self, row: Sequence[str]) -> Places:
        """Where things are. Raises UserError for a column that is not there."""
        names, asked = [cell.strip() for cell in row], self._columns
        if not self._is_head(row):
            if asked.label or asked.group:
                flag = "--label-column" if asked.label else "--group"
                raise UserError(f"{flag}: {self._path} has no first line with the names of its columns, `path` among them")
            if len(row) > 2:
                raise UserError(
                    f"{self._path}: entry 1 has {len(row)} columns: write one path a line, path<TAB>label, or a first line with "
                    "the columns' names, `path` and `label` among them"
                )
            return Places(0, 1, None, 2)
        known = [name.lower() for name in names]
        for flag, name in (("--label-column", asked.label), ("--group", asked.group)):
            if name is not None and name not in names:
                raise UserError(f"{flag} {name}: {self._path} has no such column, its columns are {', '.join(names)}")
        path = next(known.index(name) for name in PATH_NAMES if name in known)
        usual = next((known.index(name) for name in LABEL_NAMES if name in known), None)
        label = names.index(asked.label) if asked.label else usual
        group = names.index(asked.group) if asked.group else None
        return Places(path, label, group, len(row), "label" if label is None else names[label])

    def _row(self, row: list[str], codes: "array[int]", groups: "array[int]") -> str:
        self.count += 1
        places = self.places
        assert places is not None
        if len(row) > places.most or len(row) <= places.path or not row[places.path]:
            raise UserError(
                f"{self._path}: entry {self.count} differs from the first: write one path a line, or path<TAB>label in every line"
            )
        word = row[places.label].strip("\r\n") if places.label is not None and places.label < len(row) else ""
        codes.append(self.words.setdefault(word, len(self.words)) if word.strip() else -1)
        if places.group is not None:
            group = row[places.group].strip() if places.group < len(row) else ""
            if not group:
                raise UserError(f"{self._path}: entry {self.count} has no {self._columns.group}, which --group divides by")
            groups.append(self.groups.setdefault(group, len(self.groups)))
        return row[places.path]


def _split(line: str, table: bool) -> list[str]:
    """A line, or those that other ends of lines divide it into; a table's cells may hold ends of lines."""
    return [line] if table else line.splitlines()


def _is_pair(line: str) -> bool:
    """Whether a line is `picture.jpg,label`, or names two such columns."""
    before, comma, after = line.partition(",")
    if not comma or "\t" in line:
        return False
    names = before.strip().lower() in PATH_NAMES or after.strip().lower() in PATH_NAMES
    return names or (_is_picture(before) and not _is_picture(after))


def _is_picture(path: str) -> bool:
    return os.path.splitext(path.strip())[1].lower() in SUFFIXES


def listed(path: Path, columns: Columns, *, inside: bool) -> Listed:
    """The files that a text file lists, and the labels and groups that it has for them.

    One path a line, `path<TAB>label`, `path,label`, or columns that the first line names; relative paths start at the file's
    folder. Empty lines and lines that begin with # are skipped. Raises UserError where `inside` and a path leads out of that
    folder, and where none of the paths exists.
    """
    rows = Rows(path, columns)
    if inside:
        cure = f"name the list itself to use it, as in --data {path}"
        for name in rows.paths:
            places.inside_of(path.parent, name, file=path, cure=cure)  # what no file can be called is one bad image
    files = Paths(os.path.join(path.parent, name) for name in rows.paths)
    if not any(os.path.lexists(file) for file in files):
        raise UserError(f"none of the {len(files)} paths in {path} exists (the first is {files[0][:SHOWN]})")
    groups = np.array(list(rows.groups))[rows.group_codes] if rows.groups else None
    name = "label" if rows.places is None else rows.places.name
    return Listed(files, rows.codes, list(rows.words) or None, name, groups)
