"""Block and random masks over a patch grid, drawn for a whole batch.

v views, b images, gh gw patches.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from checkpoints.command import UserError

MIN_ASPECT = 0.3
MAX_TRIES = 10


class Masks(NamedTuple):
    """A batch's masks, and what the losses need to know of them without asking the device."""

    grid: Bool[Tensor, "v b gh gw"]
    places: Int[Tensor, " m"]
    """Positions of the masked patches in the flattened grid."""
    weight: Float[Tensor, " m"]
    """One over (masked patches of the same image x images x views): summing by it means over an image, then over all."""

    def to(self, device: torch.device) -> "Masks":
        return Masks(*(tensor.to(device, non_blocking=True) for tensor in self))


class MaskSettings(NamedTuple):
    """Which masks to draw: for each image one `ratio` is chosen with equal chance, then moved by up to its `spread`."""

    ratio: tuple[float, ...]
    spread: tuple[float, ...]
    shape: str
    """`block` or `rand`."""


def check(settings: MaskSettings, rows: int, columns: int) -> None:
    """Raise UserError where these settings cannot be drawn on this grid."""
    if len(settings.ratio) != len(settings.spread):
        raise UserError(
            f"--pred-ratio has {len(settings.ratio)} values and --pred-ratio-var {len(settings.spread)}: give as many"
        )
    for ratio, spread in zip(settings.ratio, settings.spread, strict=True):
        if not (ratio - spread >= 0 and ratio + spread < 1):
            raise UserError(f"--pred-ratio {ratio} +- {spread} leaves the range from 0 to 1 (1 excluded)")
    if settings.shape == "block" and (min(rows, columns) < 3) and max(settings.ratio) > 0:
        raise UserError(
            f"a grid of {rows} x {columns} patches has no room for block masks: use a smaller --patch-size, larger crops, "
            "or --pred-shape rand"
        )


def draw(generator: np.random.Generator, settings: MaskSettings, views: int, images: int, rows: int, columns: int) -> Masks:
    """Masks of a batch: each of the views x images crops has its own ratio and its own mask."""
    draw_one = block_mask if settings.shape == "block" else random_mask
    masks = np.zeros((views * images, rows, columns), dtype=bool)
    for mask in masks:
        ratio = draw_ratio(generator, settings)
        mask[:] = draw_one(generator, ratio, rows, columns)
    return as_masks(torch.from_numpy(masks).unflatten(0, (views, images)))


def as_masks(grid: Bool[Tensor, "v b gh gw"]) -> Masks:
    """Drawn masks with index and weights."""
    views, images = grid.shape[:2]
    count = grid.flatten(2).sum(-1, keepdim=True).clamp(min=1)
    weight = (1.0 / (count * images * views)).expand(-1, -1, grid[0, 0].numel()).flatten()
    places = grid.flatten().nonzero().squeeze(1)
    return Masks(grid, places, weight[places].float())


def draw_ratio(generator: np.random.Generator, settings: MaskSettings) -> float:
    """The share of patches to mask in one image."""
    choice = generator.integers(len(settings.ratio))
    return settings.ratio[choice] + settings.spread[choice] * generator.uniform(-1, 1)


def random_mask(generator: np.random.Generator, ratio: float, rows: int, columns: int) -> Bool[np.ndarray, "gh gw"]:
    """`ratio` of the patches, rounded down, anywhere."""
    mask = np.zeros(rows * columns, dtype=bool)
    mask[generator.permutation(rows * columns)[: int(ratio * rows * columns)]] = True
    return mask.reshape(rows, columns)


def block_mask(generator: np.random.Generator, ratio: float, rows: int, columns: int) -> Bool[np.ndarray, "gh gw"]:
    """Rectangles until `ratio` of the patches is covered or none fits within ten tries, so the share may undershoot.

    A rectangle aims at (shorter side // 3)^2 patches or more and at an aspect between 0.3 and 1 / 0.3 (BEiT's rule).
    """
    mask = np.zeros((rows, columns), dtype=bool)
    wanted, covered = ratio * rows * columns, 0
    while covered < wanted:
        added = _add_block(generator, mask, wanted - covered)
        if not added:
            break
        covered += added
    return mask


def _add_block(generator: np.random.Generator, mask: np.ndarray, room: float) -> int:
    """Draw one rectangle into `mask` that covers at least one and at most `room` new patches; the number it covers, or 0."""
    rows, columns = mask.shape
    least = (min(rows, columns) // 3) ** 2
    for _ in range(MAX_TRIES):
        area = least + (room - least) * generator.random()  # where room < least the draw lies between them as well
        aspect = math.exp(generator.uniform(math.log(MIN_ASPECT), -math.log(MIN_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left = generator.integers(rows - height + 1), generator.integers(columns - width + 1)
        block = mask[top : top + height, left : left + width]
        new = height * width - int(block.sum())
        if 0 < new <= room:
            block[:] = True
            return new
    return 0
