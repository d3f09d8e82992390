"""Block and random masks over a patch grid, drawn for a whole batch.

v views, b images, gh gw patches.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from checkpoints.cli import UserError

MIN_ASPECT = 0.3
MAX_TRIES = 10
STEADY, ROUNDED = 4.0, 128
"""Standard deviations and multiple of `bound`."""


class Masks(NamedTuple):
    """A batch's masks, and what the losses need to know of them without asking the device."""

    grid: Bool[Tensor, "v b gh gw"]
    indices: Int[Tensor, " m"]
    """Positions of the masked patches in the flattened grid."""
    weight: Float[Tensor, " m"]
    """One over (masked patches of the same image x images x views): summing by it means over an image, then over all."""

    def to(self, device: torch.device) -> "Masks":
        return Masks(*(tensor.to(device, non_blocking=True) for tensor in self))

    def padded(self, count: int) -> "Masks":
        """With `count` positions: those beyond the masked patches are the first patch with weight zero. As it is if longer."""
        more = count - len(self.indices)
        return self if more <= 0 else Masks(self.grid, F.pad(self.indices, (0, more)), F.pad(self.weight, (0, more)))


class MaskSettings(NamedTuple):
    """Mask distribution: for each image one `ratio` is chosen uniformly, then moved uniformly by up to its `spread`."""

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


def bound(settings: MaskSettings, crops: int, patches: int) -> int:
    """Masked patches that batches of so many crops stay below: the mean and STEADY standard deviations, in steps of ROUNDED.

    Where more are drawn, less often than once in 30,000 batches of many crops, a batch is not padded. Never more than all crops
    at the largest ratio.
    """
    ratio, spread = np.asarray(settings.ratio), np.asarray(settings.spread)
    mean, square = ratio.mean(), (ratio**2 + spread**2 / 3).mean()
    likely = crops * mean + STEADY * math.sqrt(crops * max(square - mean**2, 0.0))
    most = crops * (ratio + spread).max()
    return math.ceil(min(likely, most) * patches / ROUNDED) * ROUNDED


def draw(generator: np.random.Generator, settings: MaskSettings, views: int, images: int, rows: int, columns: int) -> Masks:
    """Masks of a batch: each of the views x images crops has its own ratio and its own mask."""
    draw_all = block_masks if settings.shape == "block" else random_masks
    masks = draw_all(generator, draw_ratios(generator, settings, views * images), rows, columns)
    return as_masks(torch.from_numpy(masks).unflatten(0, (views, images)))


def as_masks(grid: Bool[Tensor, "v b gh gw"]) -> Masks:
    """Drawn masks with index and weights."""
    views, images = grid.shape[:2]
    count = grid.flatten(2).sum(-1, keepdim=True).clamp(min=1)
    weight = (1.0 / (count * images * views)).expand(-1, -1, grid[0, 0].numel()).flatten()
    indices = grid.flatten().nonzero().squeeze(1)
    return Masks(grid, indices, weight[indices].float())


def draw_ratios(generator: np.random.Generator, settings: MaskSettings, count: int) -> Float[np.ndarray, " x"]:
    """The share of patches to mask in each crop."""
    choice = generator.integers(len(settings.ratio), size=count)
    return np.asarray(settings.ratio)[choice] + np.asarray(settings.spread)[choice] * generator.uniform(-1, 1, count)


def random_masks(
    generator: np.random.Generator, ratio: Float[np.ndarray, " x"], rows: int, columns: int
) -> Bool[np.ndarray, "x gh gw"]:
    """`ratio` of the patches of each crop, rounded down, anywhere."""
    rank = generator.random((len(ratio), rows * columns)).argsort(axis=1).argsort(axis=1)
    return (rank < (ratio * rows * columns).astype(int)[:, None]).reshape(-1, rows, columns)


def block_masks(
    generator: np.random.Generator, ratio: Float[np.ndarray, " x"], rows: int, columns: int
) -> Bool[np.ndarray, "x gh gw"]:
    """Rectangles until `ratio` of each crop's patches is covered or none fits within ten tries, so the share may undershoot.

    A rectangle aims at (shorter side // 3)^2 patches or more and at an aspect between 0.3 and 1 / 0.3 (BEiT's rule). All crops
    get their next rectangle at once.
    """
    masks = np.zeros((len(ratio), rows, columns), dtype=bool)
    room = ratio * rows * columns
    active = np.flatnonzero(room > 0)
    while len(active):
        added = _add_blocks(generator, masks, active, room[active])
        room[active] -= added
        active = active[(added > 0) & (room[active] > 0)]
    return masks


def _add_blocks(generator: np.random.Generator, masks: np.ndarray, active: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Draw one rectangle into each mask listed in `active`; the number of new patches, 0 where none of the tries fits.

    A rectangle must cover at least one and at most `room` new patches.
    """
    rows, columns = masks.shape[1:]
    least, shape = (min(rows, columns) // 3) ** 2, (len(active), MAX_TRIES)
    area = least + (room[:, None] - least) * generator.random(shape)  # where room < least it lies between them as well
    aspect = np.exp(generator.uniform(math.log(MIN_ASPECT), -math.log(MIN_ASPECT), shape))
    height, width = np.rint(np.sqrt(area * aspect)).astype(int), np.rint(np.sqrt(area / aspect)).astype(int)
    inside = (height < rows) & (width < columns)
    top = (generator.random(shape) * (rows - np.where(inside, height, 0) + 1)).astype(int)
    left = (generator.random(shape) * (columns - np.where(inside, width, 0) + 1)).astype(int)
    bottom, right = np.where(inside, top + height, top), np.where(inside, left + width, left)
    sums = np.zeros((len(active), rows + 1, columns + 1), dtype=int)  # of all patches above and left
    sums[:, 1:, 1:] = masks[active].cumsum(axis=1).cumsum(axis=2)
    crop = np.arange(len(active))[:, None]
    covered = sums[crop, bottom, right] - sums[crop, top, right] - sums[crop, bottom, left] + sums[crop, top, left]
    new = (bottom - top) * (right - left) - covered
    fits = inside & (new > 0) & (new <= room[:, None])
    chosen = (np.arange(len(active)), fits.argmax(axis=1))  # of each crop the first rectangle that fits
    at_row, at_column = np.arange(rows)[:, None], np.arange(columns)
    edges = [values[chosen][:, None, None] for values in (top, bottom, left, right)]
    block = (edges[0] <= at_row) & (at_row < edges[1]) & (edges[2] <= at_column) & (at_column < edges[3])
    masks[active] |= block & fits[chosen][:, None, None]
    return np.where(fits[chosen], new[chosen], 0)
