"""The interface of image sources, and local sources: folders, lists of paths, parquet files, the embedded sample."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
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
from pretrain.images.parquet import Cells, Groups, cells, image_column, label_column, numbered
from pretrain.images.path_lists import Paths
from pretrain.images.tally import Tally
from pretrain.images.values import ValueRange
from pretrain.sample import classification, scene

SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .jif .mpo .png .apng .webp .tif .tiff .bmp .ppm .pgm .pbm .pnm .gif .npy".split())
"""Suffixes of the formats that are read (`pretrain/images/formats.py`) and of arrays; a file's first bytes decide its format."""
LIST_SUFFIXES = frozenset({".txt", ".tsv", ".lst"})
Content = bytes | np.ndarray | Image.Image


class Images(ABC):
    """Images by number; `labels` [count] where they are known, `classes` their names."""

    name: str
    labels: np.ndarray | None = None
    classes: Sequence[str] = ()
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
        self._images, self._numbers = images, numbers
        self.name, self.classes, self.channels = f"{images.name}, {len(numbers)} images", images.classes, images.channels
        self.value_range = images.value_range
        self.labels = None if images.labels is None else images.labels[numbers]

    def __len__(self) -> int:
        return len(self._numbers)

    def content(self, index: int) -> Content:
        return self._images.content(int(self._numbers[index]))

    def where(self, index: int) -> str:
        return self._images.where(int(self._numbers[index]))

    def fingerprint(self) -> str:
        return digest([self._images.fingerprint().encode(), np.ascontiguousarray(self._numbers).tobytes()])


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


def number_classes(labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Names -> numbers [count] and the names by number: in order of size if all are whole numbers, else of the alphabet."""
    known = set(labels)
    whole = all(name.isdecimal() for name in known)
    names = sorted(known, key=lambda name: (int(name) if whole else 0, name))
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[label] for label in labels]), names


def path_list(path: Path, *, inside: bool = False) -> Files:
    """The files that a text file lists (`pretrain.images.path_lists`). Raises UserError for a list that cannot be used."""
    paths, labels, names = path_lists.listed(path, inside=inside)
    images = Files(str(path), paths, None)
    if labels is not None:
        order, images.classes = number_classes(names)
        images.labels = order[labels]
    return images


class Parquet(Images):
    """Rows of parquet files in the layout of Hugging Face data sets: `image` = struct of bytes and path, `label` = integer."""

    _below: Sequence[Path] = ()
    """Folders of the files that rows may name."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.name = str(paths[0].parent) if len(paths) > 1 else str(paths[0])
        self._files, self._below = list(paths), [paths[0].parent]
        self._rows: Groups | Cells = Groups(self.name, paths)
        self._count = len(self._rows)
        if self._rows.labels is not None and self._rows.label is not None:
            self.labels, self.classes = numbered(self._rows.labels, self.name, self._rows.label)

    def _read(self, table: pa.Table) -> None:
        """Rows that are there already, mapped into memory by the library that opened them."""
        if not len(table):
            raise UserError(f"{self.name} has no rows")
        self._count, self._rows = len(table), cells(table.column(image_column(table.schema, self.name)))
        label = label_column(table.schema)
        if label is not None:
            self.labels, self.classes = numbered(table.column(label).to_numpy(), self.name, label)

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
    """`images` with the class numbers of `known`. Raises UserError where it has classes that `known` lacks.

    Sources that number their classes by name (folders, lists) number them anew when one class is missing; comparing such
    numbers would be a silent error.
    """
    if images.labels is None or known.labels is None or list(images.classes) == list(known.classes):
        return images
    strangers = sorted(set(images.classes) - set(known.classes))
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise UserError(f"{images.name} has classes that {known.name} has not: {', '.join(strangers[:5])}{more}")
    numbers = {name: number for number, name in enumerate(known.classes)}
    translated = np.array([numbers[name] for name in images.classes])
    images.labels, images.classes = translated[images.labels], known.classes
    return images
