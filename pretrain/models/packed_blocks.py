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

    def forward(self, x: Tensor, groups: Sequence[Group] | None = None, recompute_activations: bool = True) -> Tensor:  # type: ignore[override]
        return super().forward(x) if groups is None else run(self, x, groups, recompute_activations=recompute_activations)


def run(block: Any, x: Float[Tensor, "x d"], groups: Sequence[Group], *, recompute_activations: bool) -> Float[Tensor, "x d"]:
    """One block. `recompute_activations`: compute again in the backward what is cheap."""
    rate = getattr(block.drop_path1, "drop_prob", 0.0) if block.training else 0.0

    def attention_branch(tokens: Tensor, kept: Sequence[Group]) -> Tensor:
        return block.ls1(attention(block.attn, block.norm1(tokens), kept, recompute_activations=recompute_activations))

    def mlp_branch(tokens: Tensor, kept: Sequence[Group]) -> Tensor:
        return block.ls2(mlp(block.mlp, block.norm2(tokens), recompute_activations=recompute_activations))

    for branch in (attention_branch, mlp_branch):
        x = drop_path_subset(x, branch, groups, rate) if rate else x + branch(x, groups)
    return x


def attention(
    layer: Any, x: Float[Tensor, "x d"], groups: Sequence[Group], *, recompute_activations: bool
) -> Float[Tensor, "x d"]:
    """timm's Attention, each image attending to its own tokens."""
    parts = layer.qkv(x).split([group.images * group.tokens for group in groups])
    mixed = [recompute(functools.partial(_mix, layer, group=group), part, recompute_activations and not layer.fused_attn)
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


def mlp(layer: Any, x: Float[Tensor, "*x d"], *, recompute_activations: bool) -> Float[Tensor, "*x d"]:
    """timm's Mlp; the activation is computed again in the backward, so that only its input is kept."""
    return recompute(
        lambda hidden: layer.drop2(layer.fc2(layer.norm(layer.drop1(layer.act(hidden))))), layer.fc1(x), recompute_activations
    )


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, recompute_activations: bool) -> Tensor:
    """`function(x)`, whose inside is computed anew in the backward up to the last thing that is needed there."""
    if not (recompute_activations and torch.is_grad_enabled()):
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


Branch = Callable[[Tensor, Sequence[Group]], Tensor]


def drop_path_subset(x: Float[Tensor, " x *d"], branch: Branch, groups: Sequence[Group], rate: float) -> Float[Tensor, " x *d"]:
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
