"""Tar shards in the layout of WebDataset: files with one stem are one sample, an image and, if there is one, its class.

The `webdataset` library expands names, fetches what is not local into a cache and groups files to samples. Its stream
cannot begin at any step, so the shards are indexed once (headers only) and read by place; see docs/decisions.md.
"""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from webdataset.cache import FileCache, islocal
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

from checkpoints.command import UserError
from checkpoints.store import first_line
from pretrain.formats import check_size
from pretrain.sources import SUFFIXES, Content, Images, cache_folder, number_classes, state_of_files

WINDOW = 10_000
"""The bounded buffer of the shuffle: an image moves at most this far from its place in the drawn order of shards."""
CLASS_SUFFIXES = ("cls", "cls.txt", "label", "txt")
LONGEST_LABEL = 200
IMAGE_SUFFIXES = frozenset(suffix.lstrip(".") for suffix in SUFFIXES)


class Place(NamedTuple):
    """Where a file lies in its shard, in bytes."""

    offset: int
    size: int


class Shards(Images):
    """All samples of some tar files that hold an image; plain tar, as a compressed one cannot be read by place."""

    def __init__(self, name: str, urls: Sequence[str]) -> None:
        self.name = name
        self._paths = [_local(url) for url in urls]
        places: list[Place] = []
        keys: list[str] = []
        labels: list[str | None] = []
        starts = [0]
        for path in self._paths:
            for key, place, label in _samples(path):
                keys.append(key)
                places.append(place)
                labels.append(label)
            starts.append(len(places))
        if not places:
            raise UserError(f"there are no images in {name} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
        self._starts, self._places, self._keys = np.array(starts), np.array(places), np.array(keys)
        known = [label for label in labels if label is not None]
        if len(known) == len(labels):
            self.labels, self.classes = number_classes(known)
        elif known:
            raise UserError(f"{name}: {len(known)} of {len(labels)} samples have a class: give all of them one, or none")
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def content(self, index: int) -> Content:
        key = (os.getpid(), self._shard(index))  # a worker process must not share its parent's files
        if key not in self._files:
            self._files[key] = os.open(self._paths[key[1]], os.O_RDONLY)
        offset, size = self._places[index].tolist()
        check_size(size)
        return os.pread(self._files[key], size, offset)

    def where(self, index: int) -> str:
        return f"{self._paths[self._shard(index)]}: {self._keys[index]}"

    def fingerprint(self) -> str:
        return state_of_files(self._paths)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Shards in a drawn order, then every image moved by up to WINDOW places: reading stays almost sequential."""
        shards = generator.permutation(len(self._paths))
        numbers = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in shards])
        return numbers[np.argsort(np.arange(len(numbers)) + generator.random(len(numbers)) * WINDOW)]


def is_shards(source: str) -> bool:
    """Whether `--data` names tar shards."""
    return source.endswith((".tar", ".tar.gz", ".tgz")) or (not islocal(source) and "tar" in source)


def open_shards(source: str) -> Shards:
    """Shards by name, with brace patterns (`train-{000000..000146}.tar`), on this machine or by address.

    Raises UserError where a shard is missing or no plain tar file.
    """
    return Shards(source, list(expand_urls(source)))


def _local(url: str) -> str:
    """The path of a shard, fetched first if it must be. Raises UserError."""
    if islocal(url):
        path = Path(url.removeprefix("file:"))
        if not path.is_file():
            raise UserError(f"there is no shard {path}: check the pattern given to --data")
        return str(path)
    try:
        return FileCache(str(cache_folder("WDS_CACHE", "shards")), url_to_name=_cache_name).get_file(url)
    except Exception as error:  # curl, gsutil and the library's own checks fail in many ways
        raise UserError(f"the shard {url} could not be fetched ({first_line(error)})") from error


def _cache_name(url: str) -> str:
    """A name of its own for every address, without folders."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in url)[-200:]


def _samples(path: str) -> Iterator[tuple[str, Place, str | None]]:
    """Key, place of the image, and class of every sample in a shard that has an image."""
    try:
        with open(path, "rb") as file:
            for sample in group_by_keys(_members(path)):
                suffix = next((suffix for suffix in sample if suffix.rpartition(".")[2] in IMAGE_SUFFIXES), None)
                if suffix is not None:
                    label = next((sample[suffix] for suffix in CLASS_SUFFIXES if suffix in sample), None)
                    yield sample["__key__"], sample[suffix], None if label is None else _text(file, label)
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read ({first_line(error)})") from error


def _members(path: str) -> Iterator[dict[str, Any]]:
    """Every file of a tar as webdataset's grouping wants it, its place in place of its content."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                if member.isreg():
                    yield {"fname": member.name, "data": Place(member.offset_data, member.size), "__url__": path}
                archive.members = []  # type: ignore[attr-defined]  # else they are all kept
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"the shard {path} is no plain, whole tar file ({first_line(error)}): unpack compressed ones") from error


def _text(file: BinaryIO, place: Place) -> str:
    file.seek(place.offset)
    return file.read(min(place.size, LONGEST_LABEL)).decode("utf-8", "replace").strip()
