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
from pretrain.images.labels import Columns

MOST_HELD = 256 << 20
"""Bytes of groups, unpacked, that a process keeps; one is kept whatever its size."""
COLUMNS, LABELS = ("image", "img"), ("label", "labels", "fine_label")


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
    """Cells of a column of structs, of bytes, or of paths."""
    if not pa.types.is_struct(column.type):
        return Cells(None, column) if _is_text(column.type) else Cells(column, None)
    return Cells(
        *(
            pa.chunked_array([chunk.field(name) for chunk in column.chunks], column.type.field(name).type)
            if column.type.get_field_index(name) >= 0
            else None
            for name in ("bytes", "path")
        )
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def image_column(schema: pa.Schema, name: str) -> str:
    """The column that holds images. Raises UserError where there is none; `name` is the source's."""
    column = next((one for one in COLUMNS if one in schema.names), None)
    kind = None if column is None else schema.field(column).type
    if column is None or not (
        pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _is_text(kind)
    ):
        raise UserError(
            f"{name} has no column `image` with the bytes of a picture, or a struct of bytes and path: its columns are "
            f"{schema.names}"
        )
    return column


def label_column(names: Sequence[str], asked: str | None, where: str) -> str | None:
    """The column of labels among those of all files. Raises UserError where the one that was asked for is not there."""
    return _asked(names, asked, where, "--label-column") or next((one for one in LABELS if one in names), None)


def group_column(names: Sequence[str], asked: str | None, where: str) -> str | None:
    """The column of groups that was asked for. Raises UserError where it is not there."""
    return _asked(names, asked, where, "--group")


def _asked(names: Sequence[str], asked: str | None, where: str, flag: str) -> str | None:
    if asked is not None and asked not in names:
        raise UserError(f"{flag} {asked}: {where} has no such column, its columns are {', '.join(names)}")
    return asked


class Group(NamedTuple):
    """A group of rows: its file's number, its own in the file, bytes unpacked."""

    file: int
    number: int
    size: int


class Groups:
    """All groups of some files. Only their ends and labels are read until a row is asked for."""

    def __init__(self, name: str, paths: Sequence[Path], columns: Columns = Columns()) -> None:  # noqa: B008  # it cannot change
        """Raises UserError for files that are no parquet or without images, and for columns that were asked for in vain."""
        self._name, self._paths = name, [os.path.abspath(path) for path in paths]  # for workers that change their folder
        self._groups: list[Group] = []
        starts, kinds = [0], set()
        self.whole = True
        names: dict[str, None] = {}
        for number in range(len(paths)):
            with self._readable(), self._open(number) as file:
                column = image_column(file.schema_arrow, name)
                kinds.add(column)
                names |= dict.fromkeys(file.schema_arrow.names)
                self._note(number, file.metadata, column, starts, not _is_text(file.schema_arrow.field(column).type))
        if len(kinds) > 1:
            raise UserError(f"{name} is no readable parquet: its files have their images in different columns")
        if not starts[-1]:
            raise UserError(f"{name} has no rows")
        (self._column,), self.starts = kinds, np.array(starts)
        self.label, self.group = label_column([*names], columns.label, name), group_column([*names], columns.group, name)
        self._held: OrderedDict[int, Cells] = OrderedDict()
        self.reads = 0

    def table(self) -> pa.Table:
        """The columns of labels and groups of all rows; a file without one of them has no value there.

        Raises UserError where they cannot be read, ArrowException where their types do not go together.
        """
        wanted, tables = [one for one in (self.label, self.group) if one is not None], []
        for number in range(len(self._paths) if wanted else 0):
            with self._readable(), self._open(number) as file:
                own = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names]
                read = file.read(columns=own, use_threads=False) if own else _empty(wanted, file.metadata.num_rows)
                tables.append(_plain(read))
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self._name} is no readable parquet ({first_line(error)})") from error

    @contextlib.contextmanager
    def _open(self, number: int) -> Iterator[pq.ParquetFile]:
        with reading.opened(self._paths[number]) as file, pq.ParquetFile(file, pre_buffer=False) as rows:
            yield rows

    def _note(self, number: int, metadata: pq.FileMetaData, column: str, starts: list[int], holds: bool) -> None:
        """Take down a file's groups. `holds`: its column holds content, and not paths alone."""
        for place in range(metadata.num_row_groups):
            group, size, filled = metadata.row_group(place), 0, False
            for each in (group.column(one) for one in range(group.num_columns)):
                if each.path_in_schema.split(".")[0] == column:
                    size += each.total_uncompressed_size
                if each.path_in_schema in (column, f"{column}.bytes") and holds and each.statistics is not None:
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


def _empty(names: Sequence[str], rows: int) -> pa.Table:
    return pa.table({name: pa.nulls(rows) for name in names})


def _plain(table: pa.Table) -> pa.Table:
    """Columns of dictionaries as what they stand for: files may number their words differently."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table
