"""Stochastic depth (Huang et al. 2016), drawn per image on the host before the first block.

Two ways of applying one draw: `subset` computes a branch for the images that keep it and nothing else, which is less work;
factors multiply the branch by 0 or 1 / (1 - rate), which moves no tokens, has the same shapes in every step, and can be compiled.

b images of all groups, x tokens of all groups, d width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Group(NamedTuple):
    """Crops of one size, whose tokens stand one after the other."""

    images: int
    tokens: int


class Kept(NamedTuple):
    """Which images keep the two branches of one block."""

    rate: float
    attention: Bool[Tensor, " b"]
    mlp: Bool[Tensor, " b"]


Branch = Callable[[Tensor, Sequence[Group]], Tensor]


def depths(
    blocks: Sequence[object], images: Sequence[int], device: torch.device, *, training: bool, as_factors: bool
) -> Sequence[Kept | Tensor | None]:
    """What each block is to be told of stochastic depth in one forward, drawn now; None for all where there is none.

    `images`: how many each group has. Factors where asked for and on a GPU, else the draw itself.
    """
    if as_factors or device.type == "cuda":
        whole = drawn_factors(blocks, images, device, training=training)
        return [None] * len(blocks) if whole is None else whole.unbind(0)
    rates = rates_of(blocks) if training else []
    return draw(rates, images) if any(rates) else [None] * len(blocks)


def rates_of(blocks: Sequence[object]) -> list[float]:
    """Of blocks of timm's."""
    return [getattr(getattr(block, "drop_path1", None), "drop_prob", 0.0) or 0.0 for block in blocks]


def drawn_factors(
    blocks: Sequence[object], images: Sequence[int], device: torch.device, *, training: bool
) -> Float[Tensor, "blocks 2 b"] | None:
    """Factors of all blocks, drawn now; None where nothing is dropped."""
    rates = rates_of(blocks) if training else []
    return factors(draw(rates, images), sum(images), device) if any(rates) else None


def draw(rates: Sequence[float], images: Sequence[int]) -> list[Kept | None]:
    """For each block which images keep its branches; None where the rate is 0. `images`: how many each group has.

    From torch's generator on the host, so that no device is asked how many there are.
    """

    def kept(rate: float) -> Tensor:
        return torch.cat([torch.rand(count) >= rate for count in images])

    return [Kept(rate, kept(rate), kept(rate)) if rate else None for rate in rates]


def factors(drawn: Sequence[Kept | None], images: int, device: torch.device) -> Float[Tensor, "blocks 2 b"]:
    """What the branches of each block are multiplied by, image by image: 0 or 1 / (1 - rate). One upload for all blocks."""
    rows = [torch.ones(2, images) if one is None else torch.stack(one[1:]) / (1 - one.rate) for one in drawn]
    whole = torch.stack(rows)
    return whole.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else whole.to(device)


def add_branches(
    x: Tensor,
    branches: Sequence[Branch],
    depth: Kept | Float[Tensor, "2 b"] | None,
    groups: Sequence[Group],
    spread: Callable[[Float[Tensor, " b"]], Tensor],
) -> Tensor:
    """x + attention branch, and that + MLP branch, under one block's draw. `spread`: factors in the shape of tokens."""
    if isinstance(depth, Kept):
        for branch, kept in zip(branches, (depth.attention, depth.mlp), strict=True):
            x = subset(x, branch, groups, kept, depth.rate)
        return x
    for number, branch in enumerate(branches):
        added = branch(x, groups)
        x = x + (added if depth is None else added * spread(depth[number].to(added.dtype)))
    return x


def per_token(factor: Float[Tensor, " b"], groups: Sequence[Group]) -> Float[Tensor, "x 1"]:
    """A factor per image as one per packed token."""
    parts = factor.split([group.images for group in groups])
    spread = [part[:, None].expand(-1, tokens).reshape(-1) for part, (_, tokens) in zip(parts, groups, strict=True)]
    return torch.cat(spread)[:, None]


def subset(
    x: Float[Tensor, " x *d"], branch: Branch, groups: Sequence[Group], kept: Bool[Tensor, " b"], rate: float
) -> Float[Tensor, " x *d"]:
    """x + branch(x) / (1 - rate) for the images that keep this branch, x for the others."""
    remaining, rows, start = [], [], 0
    for (images, tokens), here in zip(groups, kept.split([group.images for group in groups]), strict=True):
        places = here.nonzero()
        remaining.append(Group(len(places), tokens))
        rows.append((start + places * tokens + torch.arange(tokens)).flatten())
        start += images * tokens
    if not any(group.images for group in remaining):
        first = groups[0].tokens
        return x + 0.0 * branch(x[:first], [Group(1, first)]).sum()  # gradients of zero, as the others have
    chosen = torch.cat(rows).to(x.device, non_blocking=True)
    added = branch(x.index_select(0, chosen), [group for group in remaining if group.images]).to(x.dtype)
    return x.index_add(0, chosen, added, alpha=1 / (1 - rate))
