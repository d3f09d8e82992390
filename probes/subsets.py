"""Parts of labelled data for learning from few labels: drawn evenly over the classes, or named in a file (Tables 4 and 12)."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from checkpoints.command import UserError
from checkpoints.store import first_line
from pretrain.sources import Images, Subset


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
    """Numbers of the images whose file names stand in `names`, one a line, folders left out (SimCLRv2's 1percent.txt).

    Raises UserError where the file cannot be read, lists nothing, or lists names that no image has.
    """
    try:
        wanted = {Path(line.strip()).name for line in names.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--names {names} is no readable list of file names ({first_line(error)})") from error
    if not wanted:
        raise UserError(f"--names {names} lists nothing: write one file name a line")
    found = {name: number for number in range(len(images)) if (name := _name(images.where(number))) in wanted}
    missing = sorted(wanted - found.keys())
    if missing:
        raise UserError(f"{images.name} lacks {len(missing)} of the {len(wanted)} names in {names}, {missing[0]} for one")
    return np.sort(np.array(list(found.values())))


def _name(where: str) -> str:
    """The file's name in what a source calls an image: a path, or a row with the path in brackets."""
    return Path(where.removesuffix(")")).name.rpartition("(")[2]


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
