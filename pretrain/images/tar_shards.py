"""Tar shards in the layout of WebDataset: images and, if there are any, their classes (`pretrain/images/tar_samples.py`).

The `webdataset` library expands names and runs what is to be fetched otherwise than by http. Its stream cannot begin at any step,
so the shards are indexed once (headers only) and read by place; see docs/decisions.md.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from webdataset.cache import islocal
from webdataset.gopen import Pipe, gopen, rewrite_url
from webdataset.shardlists import expand_urls

from checkpoints import download
from checkpoints.cli import UserError, WorkError
from checkpoints.once import make_once
from checkpoints.places import cache_folder
from checkpoints.store import first_line
from pretrain.images.formats import SUFFIXES, check_size
from pretrain.images.labels import number_classes
from pretrain.images.source import Content, Images
from pretrain.images.tally import Tally
from pretrain.images.tar_headers import members
from pretrain.images.tar_samples import Place, pictures, several

OPEN_FILES = 32
"""Shards that each process keeps open at most: a thousand would reach the usual limit of a process."""
WINDOW = 10_000
"""The bounded buffer of the shuffle: an image moves at most this far from its place in the drawn order of shards."""
ARCHIVES = (".tar", ".tar.gz", ".tgz")
"""Suffixes of archives; only the first can be read at an offset."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IMAGE_SUFFIXES = frozenset(suffix.lstrip(".") for suffix in SUFFIXES)


class Shards(Images):
    """All samples of some tar files that hold an image; plain tar, as a compressed one cannot be read by place."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        """`paths` are files of this machine, whatever their names look like. Raises UserError where one is missing."""
        self.name = name
        self._paths = [str(_there(path)) for path in paths]
        self.tally = Tally()
        places: list[Place] = []
        names: list[str] = []
        labels: list[str | None] = []
        starts, pairs = [0], 0
        for path in self._paths:
            found = pictures(path, self.tally)
            names += [picture.name for picture in found]
            places += [picture.place for picture in found]
            labels += [picture.label for picture in found]
            pairs += several(names[starts[-1] :])
            starts.append(len(places))
        if not places:
            more = f"; {self.tally.ignored} are not used: {self.tally.why()}" if self.tally.ignored else ""
            raise UserError(f"there are no images in {name} (looked for {', '.join(sorted(IMAGE_SUFFIXES))}){more}")
        self._starts, self._places = np.array(starts), np.array(places)
        encoded = [os.fsencode(name) for name in names]
        self._names = np.frombuffer(b"".join(encoded), np.uint8)  # one after the other: shared by worker processes
        self._ends = np.cumsum([0, *map(len, encoded)])
        if pairs:
            self.tally.notes.append(f"{pairs} samples hold several images, and all are used")
        known = [label for label in labels if label is not None]
        if len(known) == len(labels):
            self.labels, self.classes = number_classes(known)
        elif known:
            self.tally.notes.append(f"only {len(known)} of {len(labels)} images have a class, so that labels are not used")
        self._files: dict[tuple[int, int], int] = {}  # the one that was used last comes last

    def __len__(self) -> int:
        return len(self._places)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def content(self, index: int) -> Content:
        offset, size = self._places[index].tolist()
        check_size(size)
        return os.pread(self._file(self._shard(index)), size, offset)

    def _file(self, shard: int) -> int:
        """The open file of a shard; of OPEN_FILES others the one that was not used for longest is closed."""
        key = (os.getpid(), shard)  # a worker process must not share its parent's files
        file = self._files.pop(key, None)
        if file is None:
            while len(self._files) >= OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            file = os.open(self._paths[shard], os.O_RDONLY)
        self._files[key] = file
        return file

    def where(self, index: int) -> str:
        name = os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]].tobytes())
        return f"{self._paths[self._shard(index)]}: {name}"

    def files(self) -> Sequence[str]:
        return self._paths

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Shards in a drawn order, then every image moved by up to WINDOW places: reading stays almost sequential."""
        shards = generator.permutation(len(self._paths))
        numbers = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in shards])
        return numbers[np.argsort(np.arange(len(numbers)) + generator.random(len(numbers)) * WINDOW)]


def is_shards(source: str) -> bool:
    """Whether `--data` names tar shards."""
    return source.endswith(ARCHIVES) or (not islocal(source) and "tar" in source)


def open_shards(source: str) -> Shards:
    """Shards by a name that was typed, with brace patterns (`train-{000000..000146}.tar`), on this machine or by address.

    Where one of them is there, all are paths. Raises UserError where a shard is missing or no plain tar file.
    """
    urls = list(expand_urls(source))
    here = any(os.path.exists(url) for url in urls)
    return Shards(source, [Path(url if here else _local(url)) for url in urls])


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"there is no shard {path}: check the pattern given to --data")
    return path


def _local(url: str) -> str:
    """The path of a shard, fetched first if it must be. Raises UserError."""
    if islocal(url):
        return str(_there(Path(url.removeprefix("file:"))))
    path = cache_folder("WDS_CACHE", "shards") / _cache_name(url)
    try:
        address = rewrite_url(url)
        if urlsplit(address).scheme in ("http", "https"):
            download.fetch(address, path, _check_whole, typed=True)
        else:
            make_once(path, partial(_run, url), _check_whole)
    except WorkError:
        raise
    except UserError as error:
        raise UserError(str(error).replace(f"{path}.part", f"from {download.shown(url)}")) from error
    except Exception as error:  # commands, gsutil and the library's own checks fail in many ways
        if isinstance(error, OSError) and (error.errno in FULL or str(path.parent) in str(error.filename)):
            raise WorkError(download.cannot_store(url, error)) from error
        raise UserError(f"the shard {download.shown(url)} could not be fetched ({first_line(error)})") from error
    return str(path)


def _run(url: str, part: Path) -> None:
    """Write the output of webdataset's command for this address (`pipe:` included) to a file. Raises OSError if it fails."""
    try:
        with gopen(url) as stream, open(part, "wb") as file:
            shutil.copyfileobj(stream, file, download.BLOCK)
            if isinstance(stream, Pipe) and (status := stream.proc.wait()):  # the library lets some of them pass
                raise OSError(f"the command has ended with {status}")
    except Exception:
        part.unlink(missing_ok=True)
        raise


def _cache_name(url: str) -> str:
    """A name of its own for every address, without folders: a digest, and the address's end to be read."""
    readable = download.shown(url).partition("?")[0][-60:]
    tail = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in readable)
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}-{tail}"


def _check_whole(path: Path) -> None:
    """Raise UserError unless a file is a plain tar up to its end mark, which is missing where one was cut between two files."""
    for _ in members(str(path)):
        pass
