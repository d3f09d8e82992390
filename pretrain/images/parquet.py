"""Rows of parquet files, a group at a time: what is held is a few groups, however large the files are."""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from checkpoints import reading
from checkpoints.cli import UserError
from checkpoints.store import first_line
from pretrain.images.formats import BadImage

MOST_HELD = 256 << 20
"""Bytes of groups, unpacked, that a process keeps; one is kept whatever its size."""
COLUMNS, LABELS = ("image", "img"), ("label", "labels", "fine_label")
DENSE = 1 << 16
"""Labels below it are class numbers as they stand; where one is larger, those that occur are numbered."""


class Cells(NamedTuple):
    """The two fields of a column of images, or None for one that it lacks."""

    bytes_: pa.ChunkedArray | None
    paths: pa.ChunkedArray | None

    @property
    def whole(self) -> bool:
        """Whether every row holds its image, and none only names a file."""
        return self.bytes_ is not None and not self.bytes_.null_count

    def at(self, row: int) -> tuple[bytes | None, str | None]:
        """A row's content and the name it gives its file."""
        content, path = (None if column is None else column[row].as_py() for column in self)
        return content, path


def cells(column: pa.ChunkedArray) -> Cells:
    """Cells of a column of structs."""
    return Cells(
        *(
            pa.chunked_array([chunk.field(name) for chunk in column.chunks], column.type.field(name).type)
            if column.type.get_field_index(name) >= 0
            else None
            for name in ("bytes", "path")
        )
    )


def image_column(schema: pa.Schema, name: str) -> str:
    """The column that holds images. Raises UserError where there is none; `name` is the source's."""
    column = next((one for one in COLUMNS if one in schema.names), None)
    if column is None or not pa.types.is_struct(schema.field(column).type):
        raise UserError(f"{name} has no column `image` with a struct of bytes and path: its columns are {schema.names}")
    return column


def label_column(schema: pa.Schema) -> str | None:
    return next((one for one in LABELS if one in schema.names), None)


def numbered(labels: np.ndarray, name: str, column: str) -> tuple[np.ndarray, list[str]]:
    """Class numbers [count] and names by number. Raises UserError for labels that are no whole numbers from 0 up."""
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(f"{name}: column `{column}` must hold whole numbers from 0 up in every row")
    if int(labels.max()) < DENSE:
        return labels, [str(value) for value in range(int(labels.max()) + 1)]
    distinct, numbers = np.unique(labels, return_inverse=True)
    return numbers, [str(value) for value in distinct.tolist()]


class Group(NamedTuple):
    """A group of rows: its file's number, its own in the file, bytes unpacked."""

    file: int
    number: int
    size: int


class Groups:
    """All groups of some files. Only their ends and labels are read until a row is asked for."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        """Raises UserError for files that are no parquet, without images, or with fewer labels than rows."""
        self._name, self._paths = name, [os.path.abspath(path) for path in paths]  # for workers that change their folder
        self._groups: list[Group] = []
        starts, labels, kinds = [0], [], []
        self.whole = True
        for number in range(len(paths)):
            try:
                with self._open(number) as file:
                    column, label = image_column(file.schema_arrow, name), label_column(file.schema_arrow)
                    kinds.append((column, label))
                    self._note(number, file.metadata, column, starts)
                    if label is not None:
                        labels.append(file.read(columns=[label], use_threads=False).column(label).to_numpy())
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{name} is no readable parquet ({first_line(error)})") from error
        if len(set(kinds)) > 1:
            raise UserError(f"{name} is no readable parquet: its files have different columns")
        if not starts[-1]:
            raise UserError(f"{name} has no rows")
        (self._column, self.label), self.starts = kinds[0], np.array(starts)
        self.labels = np.concatenate(labels) if labels else None
        self._held: OrderedDict[int, Cells] = OrderedDict()
        self.reads = 0

    @contextlib.contextmanager
    def _open(self, number: int) -> Iterator[pq.ParquetFile]:
        with reading.opened(self._paths[number]) as file, pq.ParquetFile(file, pre_buffer=False) as rows:
            yield rows

    def _note(self, number: int, metadata: pq.FileMetaData, column: str, starts: list[int]) -> None:
        for place in range(metadata.num_row_groups):
            group, size, filled = metadata.row_group(place), 0, False
            for each in (group.column(one) for one in range(group.num_columns)):
                if each.path_in_schema.split(".")[0] == column:
                    size += each.total_uncompressed_size
                if each.path_in_schema == f"{column}.bytes" and each.statistics is not None:
                    filled = each.statistics.null_count == 0
            self.whole &= filled or not group.num_rows
            self._groups.append(Group(number, place, size))
            starts.append(starts[-1] + group.num_rows)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def size(self) -> int:
        """Bytes of all, unpacked."""
        return sum(group.size for group in self._groups)

    def at(self, index: int) -> tuple[bytes | None, str | None]:
        """A row's content and the name it gives its file. Raises BadImage where its group cannot be read."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        if number not in self._held:
            self._read(number)
        self._held.move_to_end(number)
        return self._held[number].at(index - int(self.starts[number]))

    def _read(self, number: int) -> None:
        group, held = self._groups[number], sum(self._groups[one].size for one in self._held)
        while self._held and held + group.size > MOST_HELD:
            held -= self._groups[self._held.popitem(last=False)[0]].size
        try:
            with self._open(group.file) as file:
                table = file.read_row_group(group.number, columns=[self._column], use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise BadImage(f"its rows cannot be read ({first_line(error)})") from error
        self._held[number], self.reads = cells(table.column(self._column)), self.reads + 1

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Every row once. Where not all can be held: groups in a drawn order, rows moved by as many as half of what is held."""
        if self.size <= MOST_HELD:
            return generator.permutation(len(self))
        drawn = generator.permutation(len(self._groups))
        numbers = np.concatenate([np.arange(self.starts[one], self.starts[one + 1]) for one in drawn])
        window = len(self) * MOST_HELD / self.size / 2
        return numbers[np.argsort(np.arange(len(numbers)) + generator.random(len(numbers)) * window)]
