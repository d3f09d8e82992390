"""The interface of image sources, and local sources: folders, lists of paths, parquet files, the embedded sample."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from checkpoints import places
from checkpoints.cli import UserError
from checkpoints.store import first_line
from pretrain.images import path_lists
from pretrain.images.decode import LazyImage, Pixels
from pretrain.images.digests import digest, of_files
from pretrain.images.formats import BadImage, read_file
from pretrain.images.labels import NONE, Columns, Labels, Unusable, groups_of, number_classes, of_column, of_words, refused
from pretrain.images.parquet import Cells, Groups, cells, group_column, image_column, label_column
from pretrain.images.path_lists import Paths
from pretrain.images.tally import Tally
from pretrain.images.values import ValueRange
from pretrain.sample import classification, scene

LIST_SUFFIXES = frozenset({".txt", ".tsv", ".lst"})
"""Suffixes of lists; where a list is typed also .csv, which in folders are often something else."""
Content = bytes | np.ndarray | Image.Image


class Images(ABC):
    """Images by number; where they are known class numbers `labels` [count] (-1: an image without one), `classes` their names."""

    name: str
    labels: np.ndarray | None = None
    classes: Sequence[str] = ()
    several: np.ndarray | None = None
    """0 and 1 [count, classes] in place of `labels` where an image may be of several classes; rows of -1 are not known."""
    targets: np.ndarray | None = None
    """Values to predict [count] in place of `labels`, NaN where there is none."""
    groups: np.ndarray | None = None
    """Group of each image [count], where one was asked for."""
    channels: int = 3
    value_range: ValueRange = ()
    tally: Tally | None = None
    """Counts of other files beside the images; None where a source has none."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def content(self, index: int) -> Content:
        """A file's bytes, or pixels that are there already. May raise OSError and BadImage."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The image's description for error messages."""

    def take(self, found: Labels | None) -> None:
        """Take over labels of whatever kind."""
        self.labels = self.several = self.targets = None
        if found is not None:
            name = {"classes": "labels", "multi-label": "several", "regression": "targets"}[found.task]
            setattr(self, name, found.values)
            self.classes = found.classes

    def truth(self) -> Labels | None:
        """The labels, of whatever kind."""
        if self.labels is not None:
            return Labels("classes", np.asarray(self.labels), self.classes)
        if self.several is not None:
            return Labels("multi-label", self.several, self.classes)
        return None if self.targets is None else Labels("regression", self.targets)

    def note(self, what: str) -> None:
        """Something to say of the source."""
        self.tally = self.tally or Tally()
        self.tally.notes.append(what)

    def open(self, index: int) -> LazyImage:
        """The image with its size known, not yet decoded. Raises BadImage for what cannot be read."""
        try:
            return LazyImage(self.content(index), self.channels, self.value_range)
        except OSError as error:
            raise BadImage(error.strerror or first_line(error)) from error

    def __getitem__(self, index: int) -> Pixels:
        """The pixels of a whole image. Raises BadImage for what cannot be read."""
        return self.open(index).pixels()

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Every number once, as an epoch should go through them."""
        return generator.permutation(len(self))

    def files(self) -> Sequence[str] | None:
        """The files that hold all images, each content once; None where they are not (only) in files of their own."""
        return None

    def fingerprint(self) -> str:
        """Hex digest that changes when any image does: of all contents, or of what stands for them (`digests.of_files`)."""
        files = self.files()
        return digest(content_or_error(self, index) for index in range(len(self))) if files is None else of_files(files)


def content_or_error(images: Images, index: int) -> bytes:
    """An image's bytes, or its pixels', or what is wrong with it."""
    try:
        content = images.content(index)
    except (OSError, BadImage) as error:  # it will be named when its turn comes
        return str(error).encode("utf-8", "backslashreplace")
    return content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()


class Subset(Images):
    """Some of a source's images."""

    def __init__(self, images: Images, numbers: np.ndarray) -> None:
        self.images, self.numbers = images, numbers
        self.name, self.classes, self.channels = f"{images.name}, {len(numbers)} images", images.classes, images.channels
        self.value_range = images.value_range
        self.labels, self.several, self.targets, self.groups = (
            None if one is None else one[numbers] for one in (images.labels, images.several, images.targets, images.groups)
        )

    def __len__(self) -> int:
        return len(self.numbers)

    def content(self, index: int) -> Content:
        return self.images.content(int(self.numbers[index]))

    def where(self, index: int) -> str:
        return self.images.where(int(self.numbers[index]))

    def fingerprint(self) -> str:
        return digest([self.images.fingerprint().encode(), np.ascontiguousarray(self.numbers).tobytes()])


def usable(images: Images) -> Iterator[int]:
    """The numbers of those that can be decoded."""
    for number in range(len(images)):
        try:
            if images[number].size:
                yield number
        except BadImage:
            continue


def subset(images: Images, count: int, seed: int = 0) -> Subset:
    """At most `count` images, drawn once from the seed."""
    return Subset(images, np.random.default_rng(seed).permutation(len(images))[:count])


class InMemory(Images):
    """Images held in memory."""

    def __init__(self, name: str, images: Sequence[Content] | np.ndarray, channels: int = 3) -> None:
        self.name, self._images, self.channels = name, images, channels

    def __len__(self) -> int:
        return len(self._images)

    def content(self, index: int) -> Content:
        return self._images[index]

    def where(self, index: int) -> str:
        return f"{self.name} {index}"


class Sample(InMemory):
    """The embedded data set (see `pretrain.sample`), its images `size` pixels wide and high."""

    def __init__(self, part: str, size: int = scene.SIZE) -> None:
        drawn = classification.classification(part, size=size)
        super().__init__(f"sample ({part})" if size == scene.SIZE else f"sample:{size} ({part})", drawn.images)
        self.labels, self.classes = drawn.labels, drawn.classes


class Files(Images):
    """Image files by path, with a class name each or without."""

    def __init__(self, name: str, paths: Iterable[str | Path] | Paths, labels: Sequence[str] | None) -> None:
        self.name = name
        self._paths = paths if isinstance(paths, Paths) else Paths(paths)
        if labels is not None:
            self.labels, self.classes = number_classes(labels)

    def __len__(self) -> int:
        return len(self._paths)

    def content(self, index: int) -> Content:
        return read_file(self._paths[index])

    def where(self, index: int) -> str:
        return self._paths[index]

    def files(self) -> Sequence[str]:
        return self._paths


def path_list(path: Path, columns: Columns = Columns(), *, inside: bool = False) -> Files:  # noqa: B008  # it cannot change
    """The files that a text file lists (`pretrain.images.path_lists`). Raises UserError for a list that cannot be used."""
    found = path_lists.listed(path, columns, inside=inside)
    images = Files(str(path), found.paths, None)
    images.groups = found.groups
    if found.words is not None:
        try:
            images.take(of_words(found.codes, found.words, columns.task))
        except Unusable as error:
            _not_taken(images, found.label, error, columns)
        _say_task(images, found.label, columns)
    return images


def _not_taken(images: Images, column: str, why: Unusable, columns: Columns) -> None:
    """Say that a column is not used as labels. Raises UserError where it was asked for."""
    if columns.label or columns.task:
        raise refused(images.name, column, why) from why
    images.note(f"column `{column}` is not used as labels ({why})")


def _say_task(images: Images, column: str, columns: Columns) -> None:
    """Say what labels were taken for, where other labels look much the same."""
    truth = images.truth()
    if truth is not None and truth.task != "classes" and columns.task is None:
        images.note(f"column `{column}` is taken for {truth.task} (--task classes takes each entry for a class)")


class Parquet(Images):
    """Rows of parquet files in the layout of Hugging Face data sets: `image` = struct of bytes and path, `label` = integer.

    An image may also be plain bytes or a path, a label anything that `pretrain.images.labels` reads.
    """

    _below: Sequence[Path] = ()
    """Folders of the files that rows may name."""

    def __init__(self, paths: Sequence[Path], columns: Columns = Columns()) -> None:  # noqa: B008  # it cannot change
        self.name = str(paths[0].parent) if len(paths) > 1 else str(paths[0])
        self._files, self._below = list(paths), [paths[0].parent]
        rows = Groups(self.name, paths, columns)
        self._rows: Groups | Cells = rows
        self._count = len(rows)
        try:
            self._take(rows.table(), rows.label, rows.group, columns)
        except pa.ArrowException as error:
            self._take_nothing(rows.label, rows.group, columns, Unusable(first_line(error)))

    def _read(self, table: pa.Table, columns: Columns, names: Mapping[str, Sequence[str]]) -> None:
        """Rows that are there already, mapped into memory by the library that opened them; `names` of classes by column."""
        if not len(table):
            raise UserError(f"{self.name} has no rows")
        self._count, self._rows = len(table), cells(table.column(image_column(table.schema, self.name)))
        label = label_column(table.column_names, columns.label, self.name)
        self._take(table, label, group_column(table.column_names, columns.group, self.name), columns, names)

    def _take(
        self,
        table: pa.Table,
        label: str | None,
        group: str | None,
        columns: Columns,
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Labels and groups from their columns."""
        if group is not None:
            try:
                self.groups = groups_of(table.column(group))
            except Unusable as error:
                raise UserError(f"--group {group}: {self.name} cannot be divided by it ({error})") from error
        if label is not None:
            try:
                self.take(of_column(table.column(label), columns.task, (names or {}).get(label, ())))
            except Unusable as error:
                _not_taken(self, label, error, columns)
            _say_task(self, label, columns)

    def _take_nothing(self, label: str | None, group: str | None, columns: Columns, why: Unusable) -> None:
        """Where the files' columns do not go together."""
        if group is not None:
            raise UserError(f"--group {group}: {self.name} cannot be divided by it ({why})")
        if label is not None:
            _not_taken(self, label, why, columns)

    def __len__(self) -> int:
        return self._count

    def content(self, index: int) -> Content:
        content, path = self._rows.at(index)
        return self._beside(path) if content is None and path else content or b""

    def _beside(self, path: str) -> bytes:
        """The file that a row names: below the folders that were typed, where relative names begin. Raises BadImage."""
        named = (path, *(os.path.join(folder, path) for folder in self._below))
        inside = [file for file in named if any(places.leads_inside(folder, file) for folder in self._below)]
        if not inside:
            raise BadImage(f"its row names a file outside {' and '.join(str(folder) for folder in self._below)}")
        return read_file(next(filter(os.path.lexists, inside), inside[-1]))

    def where(self, index: int) -> str:
        try:
            path = self._rows.at(index)[1]
        except BadImage:  # its group cannot be read
            path = None
        return f"{self.name} row {index}" + (f" ({path})" if path else "")

    def order(self, generator: np.random.Generator) -> np.ndarray:
        return self._rows.order(generator) if isinstance(self._rows, Groups) else super().order(generator)

    def files(self) -> Sequence[str] | None:
        return [str(file) for file in self._files] if self._rows.whole else None


class Spread(NamedTuple):
    """Mean and standard deviation to normalise by, one number a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def spread_of(images: Images, count: int = 200) -> Spread:
    """Measured on the first `count` usable ones of a drawn order, in 0..1. Raises UserError where none is usable."""
    sums = np.zeros((3, images.channels))
    for index in np.random.default_rng(0).permutation(len(images))[: 2 * count]:
        try:
            stored = images[int(index)].reshape(-1, images.channels)
        except BadImage as error:
            reason = f"{images.where(int(index))}: {error}"
            continue
        pixels = stored / 255 if stored.dtype == np.uint8 else stored.astype(np.float64)
        sums += np.stack([np.ones(images.channels), pixels.mean(axis=0), (pixels**2).mean(axis=0)])
        if sums[0, 0] == count:
            break
    if not sums[0, 0]:
        raise UserError(f"no image of {images.name} can be used with --channels {images.channels} ({reason})")
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    return Spread(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))


def aligned(images: Images, known: Images) -> Images:
    """`images` with the class numbers of `known`. Raises UserError where it has classes that `known` lacks, or other labels.

    Sources that number their classes by name (folders, lists) number them anew when one class is missing; comparing such
    numbers would be a silent error.
    """
    mine, theirs = images.truth(), known.truth()
    if mine is None or theirs is None:
        return images
    if mine.task != theirs.task:
        raise UserError(f"{images.name} has labels for {mine.task}, {known.name} for {theirs.task}: give --task")
    if list(images.classes) == list(known.classes):
        return images
    strangers = sorted(set(images.classes) - set(known.classes))
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise UserError(f"{images.name} has classes that {known.name} has not: {', '.join(strangers[:5])}{more}")
    numbers = {name: number for number, name in enumerate(known.classes)}
    translated = np.array([numbers[name] for name in images.classes])
    if images.labels is not None:
        images.labels = np.append(translated, NONE)[images.labels]
    if images.several is not None:
        several = np.zeros((len(images), len(known.classes)), np.int8)
        several[:, translated] = images.several
        several[~mine.known] = NONE
        images.several = several
    images.classes = known.classes
    return images


def with_labels(images: Images) -> Images:
    """Those that have a label: the same where all have one, or none has."""
    truth = images.truth()
    if truth is None or truth.known.all():
        return images
    return Subset(images, np.flatnonzero(truth.known))
