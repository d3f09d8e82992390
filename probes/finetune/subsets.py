"""Parts of labelled data for learning from few labels: drawn evenly over the classes, or named in a file (Tables 4 and 12)."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from checkpoints import reading
from checkpoints.cli import UserError
from checkpoints.store import first_line
from pretrain.images.source import Images, Subset

PUBLISHED = (1, 10)
"""Percent of the labels that the published lists keep."""
NEAR = 0.02
"""By how much the images of a list may differ from that share of all."""


class Share(NamedTuple):
    """Some labelled images: what to call them, and what a record says of them."""

    name: str | None
    """`1%`, `10%`, another list's file by its stem; None for all images."""
    about: dict[str, Any]


def share_of(whole: int, images: int, percent: float | None, names: Path | None) -> Share:
    """The subset of so many of `whole` images: drawn, or listed in a file. A list of 1 % or 10 % is named by its share."""
    if names is not None:
        known = [f"{share}%" for share in PUBLISHED if abs(images - whole * share / 100) <= NEAR * whole * share / 100]
        return Share(known[0] if known else names.stem, {"from": "list", "images": images, "file": names.name})
    if percent is None or percent == 100:
        return Share(None, {"from": "all", "images": images})
    return Share(f"{percent:g}%", {"from": "drawn", "images": images, "percent": percent})


def balanced(labels: Int[np.ndarray, " n"], percent: float, seed: int = 0) -> Int[np.ndarray, " m"]:
    """Numbers of `percent` of the images, in rising order, the same share of every class, at least one image of each."""
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        numbers = np.flatnonzero(labels == label)
        count = max(1, round(len(numbers) * percent / 100))
        chosen.append(generator.permutation(numbers)[:count])
    return np.sort(np.concatenate(chosen))


def named(images: Images, names: Path) -> Int[np.ndarray, " m"]:
    """Numbers of the images whose file names stand in `names`, one a line (SimCLRv2's 1percent.txt), or class/name.

    A name that several images have needs its class folder in the list; without one in the list, no folder is looked at. Raises
    UserError where the file cannot be read, lists nothing, or lists what no image has, or more than one.
    """
    try:
        wanted = {
            line.strip().replace("\\", "/") for line in reading.text(names).removeprefix("\ufeff").splitlines() if line.strip()
        }
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--names {names} is no readable list of file names ({first_line(error)})") from error
    if not wanted:
        raise UserError(f"--names {names} lists nothing: write one file name a line")
    known: dict[str, list[tuple[int, PurePosixPath]]] = defaultdict(list)
    asked = {PurePosixPath(line).name for line in wanted}
    for number in range(len(images)):
        path = _path(images.where(number))
        if path.name in asked:
            known[path.name].append((number, path))
    found = {line: _meant(PurePosixPath(line), known[PurePosixPath(line).name]) for line in wanted}
    missing = sorted(line for line, numbers in found.items() if not numbers)
    if missing:
        raise UserError(f"{images.name} lacks {len(missing)} of the {len(wanted)} names in {names}, {missing[0]} for one")
    several = sorted(line for line, numbers in found.items() if len(numbers) > 1)
    if several:
        raise UserError(
            f"{several[0]} in {names} is the name of {len(found[several[0]])} images of {images.name}: write CLASS/{several[0]}"
        )
    return np.unique([number for (number,) in found.values()])


def _meant(line: PurePosixPath, same: Sequence[tuple[int, PurePosixPath]]) -> list[int]:
    """Of images with a line's file name those in a folder of its last folder's name: directly in it, else anywhere below."""
    folder = line.parent.name
    inside = [number for number, path in same if not folder or path.parent.name == folder]
    return inside or [number for number, path in same if folder in path.parts]


def _path(where: str) -> PurePosixPath:
    """The file in what a source calls an image: its path, `SOURCE row NUMBER (PATH)`, or `SHARD.tar: MEMBER`."""
    _, shard, member = where.rpartition(".tar: ")
    if shard:
        return PurePosixPath(member)
    _, row, inside = where.partition(" row ")
    number, bracket, path = inside.partition(" (")
    told = path.removesuffix(")") if row and bracket and number.isdigit() and path.endswith(")") else where
    return PurePosixPath(told.replace("\\", "/"))


def part_of(images: Images, percent: float | None, names: Path | None, seed: int = 0) -> Images:
    """The images that may be learnt from: all of them where neither is given. Raises UserError for both, or a share of 0."""
    if percent is not None and names is not None:
        raise UserError("give --percent or --names, not both")
    if names is not None:
        return Subset(images, named(images, names))
    if percent is None or percent == 100:
        return images
    if not 0 < percent < 100:
        raise UserError(f"--percent {percent:g} must be greater than 0 and at most 100")
    assert images.labels is not None
    return Subset(images, balanced(images.labels, percent, seed))
