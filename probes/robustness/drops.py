"""Pictures with patches taken away or put elsewhere: what is dropped, what is shuffled, and how much of a picture is lost.

Source: Naseer et al., Intriguing Properties of Vision Transformers (arXiv 2105.10497), as the original uses it (paper, App. D).
b images, gh gw patches, n = gh gw.
"""

from collections.abc import Sequence
from math import floor, gcd

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

RATIOS = tuple(round(0.1 * tenth, 1) for tenth in range(10))
"""Shares of patches that are dropped by chance."""
MASSES = tuple(round(0.1 * tenth, 1) for tenth in range(11))
"""Shares of the attention's mass by which patches are called salient."""
GRIDS = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (14, 14), (16, 16))
"""Rows and columns of the cells that are shuffled."""


def orders(numbers: Sequence[int], count: int, seed: int, *, same: bool) -> Int[Tensor, "b count"]:
    """For each image an order of `count` things, drawn from seed and number; `same`: the first image's for all."""
    drawn = [np.random.default_rng([seed, numbers[0] if same else number]).permutation(count) for number in numbers]
    return torch.from_numpy(np.stack(drawn))


def by_chance(order: Int[Tensor, "b n"], share: float) -> Bool[Tensor, "b n"]:
    """The first so many of the order, whole patches only: 58 for 0.3 of 196. A larger share drops these and more."""
    count = floor(round(share * order.shape[1], 6))  # 0.29 * 100 is a little less than 29 as a binary number
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :count], True)


def without(crops: Float[Tensor, "b c h w"], dropped: Bool[Tensor, "b gh gw"]) -> Float[Tensor, "b c h w"]:
    """Normalised images whose dropped patches are zero: the mean colour."""
    rows, columns = crops.shape[2] // dropped.shape[1], crops.shape[3] // dropped.shape[2]
    mask = dropped.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
    return crops.masked_fill(mask[:, None], 0.0)


def shuffled(crops: Float[Tensor, "b c h w"], grid: tuple[int, int], order: Int[Tensor, "b cells"]) -> Float[Tensor, "b c h w"]:
    """Images whose cells are put in another order: place i gets cell `order[i]`.

    Where cells are no whole pixels, this is done on pixels cut into smaller ones, which are averaged afterwards.
    """
    height, width = crops.shape[2:]
    finer = [cells // gcd(length, cells) for length, cells in zip((height, width), grid, strict=True)]
    fine = crops.repeat_interleave(finer[0], dim=2).repeat_interleave(finer[1], dim=3)
    rows, columns = fine.shape[2] // grid[0], fine.shape[3] // grid[1]
    cells = fine.unflatten(2, (grid[0], rows)).unflatten(4, (grid[1], columns)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = cells[torch.arange(len(cells))[:, None], order].unflatten(1, grid)
    whole = moved.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return whole if finer == [1, 1] else F.avg_pool2d(whole, finer)


def accuracy_at(loss: float, points: Sequence[tuple[float, float]]) -> float:
    """Accuracy where so much of a picture is lost, on straight lines between measured (loss, accuracy)."""
    ordered = sorted(points)
    return float(np.interp(loss, [point[0] for point in ordered], [point[1] for point in ordered]))
