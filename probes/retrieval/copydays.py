"""Copydays: blocks of edited copies, and how well each finds its original.

Source: Douze et al., Evaluation of GIST descriptors for web-scale image search (CIVR 2009). q queries, t images of the database.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from checkpoints.cli import UserError
from pretrain.images import folders
from pretrain.images.source import Images, InMemory
from pretrain.sample import retrieval
from probes.retrieval.revisited import average_precision

TOP = 20
"""Number of results per query; an original of a lower rank counts as not found."""
PREFIX = 4
"""Letters of a name that a copy has in common with its original."""
ORIGINAL, STRONG = "original", "strong"
SERIES = ("jpegqual", "crops")


class Block(NamedTuple):
    """Pictures of one kind of edit, by name."""

    names: list[str]
    images: Images


def open_blocks(data: str) -> dict[str, Block]:
    """Originals first, then what is there of strong edits, JPEG qualities and crops. Raises UserError naming what is missing."""
    if data == "sample":
        drawn = retrieval.copies().blocks
        return {name: Block([*pictures], InMemory(f"sample, {name}", [*pictures.values()])) for name, pictures in drawn.items()}
    root = Path(data)
    for name in (ORIGINAL, STRONG, *SERIES):
        if not (root / name).is_dir():
            raise UserError(
                f"{root} has no {name}: give --data a folder in Copydays' layout ({ORIGINAL}, {STRONG}, {'/N, '.join(SERIES)}/N)"
            )
    series = sorted((path for name in SERIES for path in (root / name).iterdir() if path.name.isdecimal()), key=_by_number)
    names = [ORIGINAL, STRONG, *(str(path.relative_to(root)) for path in series)]
    return {name: _block(root / name) for name in names}


def _by_number(path: Path) -> tuple[str, int]:
    return path.parent.name, int(path.name)


def _block(folder: Path) -> Block:
    images = folders.said(folder, one_of_many=folder.name != ORIGINAL)
    return Block([Path(images.where(number)).name for number in range(len(images))], images)


def positives(block: Block, originals: Block) -> list[set[int]]:
    """The numbers of each copy's originals. Raises UserError for a copy of nothing."""
    by_prefix: dict[str, set[int]] = {}
    for number, name in enumerate(originals.names):
        by_prefix.setdefault(name[:PREFIX], set()).add(number)
    for name in block.names:
        if name[:PREFIX] not in by_prefix:
            raise UserError(f"{block.images.name}: {name} is a copy of no original (none begins with {name[:PREFIX]})")
    return [by_prefix[name[:PREFIX]] for name in block.names]


def mean_average_precision(found: Int[np.ndarray, "q top"], wanted: Sequence[set[int]]) -> float:
    """Mean average precision, from 0 to 1, of the images found by each query, best first."""
    ranks = [[rank for rank, number in enumerate(row) if number in own] for row, own in zip(found.tolist(), wanted, strict=True)]
    return float(np.mean([average_precision(each, len(own)) for each, own in zip(ranks, wanted, strict=True)]))
