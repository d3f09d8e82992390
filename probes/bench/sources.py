"""What a source of images costs at its size: `tools/bench.sh sources`.

Files are made once and then linked, so that five million images take the disk of a few; each source is opened in a process of
its own, twice, and images are read from it in the order of an epoch. They come from the page cache: a disk is measured by
`tools/bench.sh data`.
"""

import io
import multiprocessing
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.table import Table

from checkpoints import terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.images.open import open_images
from pretrain.sample import classification
from probes.bench.step import write_json
from probes.shared import memory

Kind = Literal["folder", "list", "parquet", "shards"]
BLOCK = 1000
"""Different images; also those of a shard and of a parquet file."""
CLASSES = 100


@dataclass(frozen=True)
class BenchSourcesOptions:
    """Seconds to open, memory and images/s of folders, lists, parquet and tar shards with so many images."""

    images: tuple[int, ...] = (3000, 50000)
    """Numbers of images, in thousands of full blocks."""
    kinds: tuple[Kind, ...] = ("folder", "list", "parquet", "shards")
    """Sources to measure."""
    size: int = 128
    """Pixels of an image's side, JPEG."""
    read: int = 2000
    """Images that are read and decoded, in the order of a training's epoch."""
    out: Path | None = None
    """A folder for the files, removed at the end (default: the system's for temporary files)."""
    json: Path | None = None
    """Write the numbers there, too."""


class Cost(NamedTuple):
    """What one source costs."""

    opened: float
    """Seconds of the first opening."""
    again: float
    """Seconds of the second, in another process."""
    memory: float
    """MB that the opened source holds."""
    speed: float
    """Images/s, read and decoded by one core in the order of an epoch."""


def drawn(count: int, size: int) -> list[bytes]:
    """Different JPEGs."""
    contents = []
    for image in classification.classification("train", count, size).images:
        with io.BytesIO() as file:
            Image.fromarray(image).save(file, format="JPEG", quality=90)
            contents.append(file.getvalue())
    return contents


def linked(first: Path, path: Path) -> None:
    """Another name for a file; a copy where the file system takes no more names for it."""
    try:
        os.link(first, path)
    except OSError:
        shutil.copyfile(first, path)


def folder(root: Path, contents: list[bytes], count: int) -> Path:
    """Class folders of linked files."""
    for number, content in enumerate(contents):
        (root / "first").mkdir(parents=True, exist_ok=True)
        (root / "first" / f"{number}.jpg").write_bytes(content)
    for name in range(CLASSES):
        (root / "data" / f"{name:03}").mkdir(parents=True)
    for number in range(count):
        linked(root / "first" / f"{number % len(contents)}.jpg", root / "data" / f"{number % CLASSES:03}" / f"{number}.jpg")
    return root / "data"


def listed(root: Path, contents: list[bytes], count: int) -> Path:
    """A list of paths and labels, each file many times."""
    (root / "data").mkdir(parents=True)
    for number, content in enumerate(contents):
        (root / "data" / f"{number}.jpg").write_bytes(content)
    lines = (f"data/{number % len(contents)}.jpg\t{number % CLASSES}\n" for number in range(count))
    with (root / "list.txt").open("w") as file:
        file.writelines(lines)
    return root / "list.txt"


def _blocks(root: Path, first: Path, count: int) -> Path:
    (root / "data").mkdir(exist_ok=True)
    for number in range(max(1, count // BLOCK)):
        linked(first, root / "data" / f"train-{number:06}{first.suffix}")
    return root / "data"


def parquet(root: Path, contents: list[bytes], count: int) -> Path:
    """Files of a block each, in the layout of Hugging Face's data sets."""
    root.mkdir()
    images = [{"bytes": content, "path": f"{number}.jpg"} for number, content in enumerate(contents)]
    pq.write_table(pa.table({"image": images, "label": [n % CLASSES for n in range(len(images))]}), root / "first.parquet")
    return _blocks(root, root / "first.parquet", count)


def shards(root: Path, contents: list[bytes], count: int) -> Path:
    """Tar files of a block each."""
    root.mkdir()
    with tarfile.open(root / "first.tar", "w") as archive:
        for number, content in enumerate(contents):
            for suffix, data in (("jpg", content), ("cls", str(number % CLASSES).encode())):
                member = tarfile.TarInfo(f"{number:06}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return _blocks(root, root / "first.tar", count)


MAKERS: dict[str, Callable[[Path, list[bytes], int], Path]] = {
    "folder": folder,
    "list": listed,
    "parquet": parquet,
    "shards": shards,
}


def opened(source: str, read: int) -> tuple[float, float, float, int]:
    """Seconds to open it, MB that it holds, images/s of reading so many, and how many it has; in a process of its own."""
    torch.set_num_threads(1)
    before, began = memory.held(), time.perf_counter()
    images = open_images(source, None)
    seconds = time.perf_counter() - began
    more = (memory.held() - before) / 1e6
    chosen = images.order(np.random.default_rng(0))[: read + 1].tolist()
    images[chosen.pop()]
    began = time.perf_counter()
    for number in chosen:
        images[number]
    return seconds, more, len(chosen) / (time.perf_counter() - began), len(images)


def measured(source: Path, read: int, count: int) -> Cost:
    """Open it twice, each time by a new process. Raises UserError where it has another number of images."""
    found = []
    for _ in range(2):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(opened, (str(source), read)))
    if found[0][3] != count:
        raise UserError(f"{source} shows {found[0][3]} images in place of {count}: --images takes multiples of {BLOCK}")
    return Cost(found[0][0], found[1][0], found[1][1], found[1][2])


def main(arguments: Sequence[str]) -> None:
    chosen = parse(BenchSourcesOptions, arguments, prog="tools/bench.sh sources")
    contents = drawn(min(BLOCK, *chosen.images), chosen.size)
    table = Table(title=f"JPEGs of {chosen.size} pixels from the page cache, one core", title_justify="left")
    for heading in ("source", "images", "open, s", "open again, s", "MB held", "images/s"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    numbers: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory(dir=chosen.out, prefix="sources-") as place:
            for count in chosen.images:
                for kind in chosen.kinds:
                    root = Path(place) / f"{kind}-{count}"
                    cost = measured(MAKERS[kind](root, contents, count), chosen.read, count)
                    cells = (f"{cost.opened:.2f}", f"{cost.again:.2f}", f"{cost.memory:.0f}", f"{cost.speed:.0f}")
                    table.add_row(kind, f"{count}", *cells)
                    numbers |= {f"{kind} {count} {name}": value for name, value in cost._asdict().items()}
                    shutil.rmtree(root)
    except OSError as error:
        raise UserError(f"the files cannot be made ({error.strerror}): give --out a folder with room") from error
    terminal.Console(width=110).print(table)
    write_json(chosen.json, numbers)


if __name__ == "__main__":
    sys.exit(run_command(main))
