"""The door to images: one `--data` that recognises folders, lists, shards, parquet, data sets by name, and the sample.

What exists is a path, whatever else its name could mean (`sample` alone is always the sample: ./sample is a folder of that
name). Only then is a name a data set's, an address or a command, and only where it was typed: what a file names goes through
`from_file`.

A source may have parts ("train", "val"): sub-folders, files whose names begin so, splits of a data set, or the sample's own.
"""

import glob
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from braceexpand import braceexpand

from checkpoints import places, terminal
from checkpoints.cli import UserError
from pretrain.images import folders, tally
from pretrain.images.folders import PARTS, parts_of
from pretrain.images.hubs import has_hub_part, is_hub, open_hub
from pretrain.images.labels import Columns, no_columns
from pretrain.images.source import LIST_SUFFIXES, Images, Parquet, Sample, path_list
from pretrain.images.tar_shards import ARCHIVES, Shards, is_shards, open_shards
from pretrain.images.values import ValueRange

TYPED_LISTS = LIST_SUFFIXES | {".csv"}
LEAST, MOST = 8, 256
"""Pixels of the sample's sides; its images are held in memory."""
TAKES = (
    "--data takes a folder of images, a text file of paths, .tar shards, .parquet files, hf:NAME, torchvision:NAME, `sample`, or "
    "`sample:PIXELS`"
)


def open_images(
    source: str,
    part: str | None = "train",
    channels: int = 3,
    value_range: ValueRange = (),
    columns: Columns = Columns(),  # noqa: B008  # it cannot change
) -> Images:
    """The images of `--data`, a name that was typed on this command line, or that `from_file` has allowed.

    Where the source is divided (sub-folders or files named train, and val, test or validation), `part` says which half;
    None, or a source that is not divided, gives all of it. `value_range` is the checkpoint's (see
    `pretrain.images.values`), `columns` are those that were asked for by name. Prints one line on what was found. Raises
    UserError when nothing readable is there.
    """
    images = _open(source, part, columns)
    images.channels, images.value_range = channels, value_range
    tally.say(images)
    return images


def from_file(source: object, *, file: Path, below: Sequence[Path], flag: str = "--data") -> str:
    """The source that `file` names, for `open_images`: the sample, or a path below one of the folders that the user named.

    The path is absolute, so that it can be no address and no command. Raises UserError for anything else, with the flag to give.
    """
    if isinstance(source, str) and is_sample(source):
        return source
    return str(places.recorded(source, file=file, below=below, cure=f"give {flag} to open it, or other images"))


def _open(source: str, part: str | None, columns: Columns) -> Images:
    if is_sample(source):
        no_columns(source, columns)
        return _open_sample(source, part or "train")
    if is_hub(source):
        return open_hub(source, part, columns)
    path, there = Path(source), os.path.exists(source)
    parts = parts_of(path) if there and path.is_dir() else {}
    if part in parts:
        images = _open_files(parts[part], columns)
        images.tally = images.tally or tally.Tally()
        folders.note_beside(path, parts, images.tally)
        return images
    if part == "val":
        raise UserError(
            f"{source} has no part named {', '.join(PARTS['val'])} to test on: name one with --val, or divide it "
            "(docs/compare.md)"
        )
    if there:
        listed = path.suffix.lower() in TYPED_LISTS and path.is_file()
        return path_list(path, columns) if listed else _open_files([path], columns)
    if is_shards(source):
        no_columns(source, columns)
        return open_shards(source)
    return _open_pattern(source, columns)


def is_sample(source: str) -> bool:
    """Whether `source` names the embedded sample, as it is or drawn at another size."""
    return source == "sample" or source.startswith("sample:")


def _open_sample(source: str, part: str) -> Sample:
    if os.path.exists(source):
        _say_which(source)
    _, colon, size = source.partition(":")
    if not colon:
        return Sample(part)
    if not size.isdecimal() or not LEAST <= int(size) <= MOST:
        raise UserError(f"--data {source}: give the pixels of a side, {LEAST} to {MOST}, as in sample:96")
    return Sample(part, int(size))


@lru_cache  # once is enough
def _say_which(source: str) -> None:
    terminal.say(f"note: {source} is the embedded sample; what lies here under that name is ./{source}", error=True)


def _open_pattern(source: str, columns: Columns) -> Images:
    """Several parquet files by braces or wildcards."""
    paths = sorted({Path(path) for pattern in braceexpand(source) for path in glob.glob(pattern)})
    if not paths or paths == [Path(source)]:
        raise UserError(f"there is no folder or file {source}: {TAKES}")
    if any(path.suffix != ".parquet" for path in paths):
        raise UserError(f"{source} matches {paths[0]}: patterns are for .parquet and .tar files")
    return _open_files(paths, columns)


def has_part(source: str, part: str) -> bool:
    """Whether `open_images(source, part)` would give another part than the whole."""
    if is_hub(source):
        return has_hub_part(source, part)
    return is_sample(source) or (os.path.isdir(source) and part in parts_of(Path(source)))


def part_or_all(source: str, part: str | None) -> str | None:
    """For `open_images`: the part that was asked for, or, where none was, `val` if the source has it, else all.

    Raises UserError where the source lacks the part that was asked for.
    """
    if part is None:
        return "val" if has_part(source, "val") else None
    if not has_part(source, part):
        raise UserError(f"--part {part}: {source} has no such part: leave --part out, or give other images")
    return part


def _open_files(paths: list[Path], columns: Columns) -> Images:
    """A folder, or files of one kind."""
    first = paths[0]
    if first.is_dir():
        return _open_folder(first, columns)
    if first.suffix == ".parquet":
        return Parquet(paths, columns)
    if first.name.endswith(ARCHIVES):
        no_columns(str(first), columns)
        return Shards(str(first.parent) if len(paths) > 1 else str(first), paths)
    if first.suffix in LIST_SUFFIXES and len(paths) == 1:
        return path_list(first, columns, inside=True)  # it was not typed: it came with the folder
    raise UserError(f"{first} is neither a list of paths nor parquet nor a .tar: {TAKES}")


def _open_folder(path: Path, columns: Columns) -> Images:
    """The archives in a folder, or its images. Raises UserError where either could be meant."""
    root = folders.unwrapped(path)
    files = folders.archives(root)
    if files and folders.in_place_of(root, files):
        images = _open_files(files, columns)
        images.tally = images.tally or tally.Tally()
        folders.note_around(path, root, images.tally)
        folders.note_pictures(root, files, images.tally)
        return images
    no_columns(str(path), columns)
    return folders.folder(path)
