"""timm's transformer blocks on the packed tokens of crops of several sizes.

Norms, linear layers and MLPs see all tokens as one matrix; only attention goes group by group. What is cheap to compute again
(attention weights, GELU) is not kept for the backward. Dropped paths are not computed.

g groups of crops of one size, b images and t tokens of one group, x all tokens, d width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Group(NamedTuple):
    """Crops of one size, whose tokens stand one after the other."""

    images: int
    tokens: int


class PackedBlock(Block):
    """timm's block, which also takes packed tokens [x, d] of several groups."""

    def forward(self, x: Tensor, groups: Sequence[Group] | None = None, frugal: bool = True) -> Tensor:  # type: ignore[override]
        return super().forward(x) if groups is None else run(self, x, groups, frugal=frugal)


def run(block: Any, x: Float[Tensor, "x d"], groups: Sequence[Group], *, frugal: bool) -> Float[Tensor, "x d"]:
    """One block. `frugal`: compute again in the backward what is cheap."""
    rate = getattr(block.drop_path1, "drop_prob", 0.0) if block.training else 0.0

    def attend(some: Tensor, kept: Sequence[Group]) -> Tensor:
        return block.ls1(attention(block.attn, block.norm1(some), kept, frugal=frugal))

    def think(some: Tensor, kept: Sequence[Group]) -> Tensor:
        return block.ls2(mlp(block.mlp, block.norm2(some), frugal=frugal))

    for branch in (attend, think):
        x = add_to_some(x, branch, groups, rate) if rate else x + branch(x, groups)
    return x


def attention(layer: Any, x: Float[Tensor, "x d"], groups: Sequence[Group], *, frugal: bool) -> Float[Tensor, "x d"]:
    """timm's Attention, each image attending to its own tokens."""
    parts = layer.qkv(x).split([group.images * group.tokens for group in groups])
    mixed = [again(functools.partial(_mix, layer, group=group), part, frugal and not layer.fused_attn)
             for part, group in zip(parts, groups, strict=True)]  # fmt: skip
    return layer.proj_drop(layer.proj(layer.norm(torch.cat(mixed))))


def _mix(layer: Any, qkv: Float[Tensor, "bt three_d"], group: Group) -> Float[Tensor, "bt d"]:
    """Queries, keys and values of one group -> what its tokens take from each other."""
    heads = qkv.view(group.images, group.tokens, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = heads.unbind(0)
    q, k = layer.q_norm(q), layer.k_norm(k)
    if layer.fused_attn:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        mixed = ((q * layer.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return mixed.transpose(1, 2).reshape(len(qkv), -1)


def mlp(layer: Any, x: Float[Tensor, "*x d"], *, frugal: bool) -> Float[Tensor, "*x d"]:
    """timm's Mlp; the activation is computed again in the backward, so that only its input is kept."""
    return again(lambda hidden: layer.drop2(layer.fc2(layer.norm(layer.drop1(layer.act(hidden))))), layer.fc1(x), frugal)


def again(function: Callable[[Tensor], Tensor], x: Tensor, frugal: bool) -> Tensor:
    """`function(x)`, whose inside is computed anew in the backward up to the last thing that is needed there."""
    if not (frugal and torch.is_grad_enabled()):
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


Branch = Callable[[Tensor, Sequence[Group]], Tensor]


def add_to_some(x: Float[Tensor, " x *d"], branch: Branch, groups: Sequence[Group], rate: float) -> Float[Tensor, " x *d"]:
    """Stochastic depth: x + branch(x) / (1 - rate) for the images that keep this path, x for the others.

    Drawn on the host, so that no device is asked how many there are.
    """
    kept, rows, start = [], [], 0
    for images, tokens in groups:
        places = (torch.rand(images) >= rate).nonzero()
        kept.append(Group(len(places), tokens))
        rows.append((start + places * tokens + torch.arange(tokens)).flatten())
        start += images * tokens
    if not any(group.images for group in kept):
        first = groups[0].tokens
        return x + 0.0 * branch(x[:first], [Group(1, first)]).sum()  # gradients of zero, as the others have
    chosen = torch.cat(rows).to(x.device, non_blocking=True)
    added = branch(x.index_select(0, chosen), [group for group in kept if group.images]).to(x.dtype)
    return x.index_add(0, chosen, added, alpha=1 / (1 - rate))
