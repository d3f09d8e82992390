"""timm's transformer blocks on the packed tokens of crops of several sizes.

Norms, linear layers and MLPs see all tokens as one matrix; only attention goes group by group. What is cheap to compute again
(attention weights, GELU) is not kept for the backward.

g groups of crops of one size, b images and t tokens of one group, x all tokens, d width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrain.models.drop_path import Group, Kept, add_branches, per_token


class PackedBlock(Block):
    """timm's block, which also takes packed tokens [x, d] of several groups: `run`, with what is hooked to the module."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        groups: Sequence[Group] | None = None,
        depth: Kept | Tensor | None = None,
        recompute_activations: bool = True,
    ) -> Tensor:
        return super().forward(x) if groups is None else run(self, x, groups, depth, recompute_activations)


def run(
    block: Any,
    x: Float[Tensor, "x d"],
    groups: Sequence[Group],
    depth: Kept | Float[Tensor, "2 b"] | None = None,
    recompute_activations: bool = True,
) -> Float[Tensor, "x d"]:
    """One block of timm's.

    `depth`: stochastic depth as a draw, whose dropped branches are not computed, or as factors of both branches (`drop_path`).
    `recompute_activations`: compute again in the backward what is cheap.
    """

    def attention_branch(tokens: Tensor, kept: Sequence[Group]) -> Tensor:
        return block.ls1(attention(block.attn, block.norm1(tokens), kept, recompute_activations=recompute_activations))

    def mlp_branch(tokens: Tensor, kept: Sequence[Group]) -> Tensor:
        return block.ls2(mlp(block.mlp, block.norm2(tokens), recompute_activations=recompute_activations))

    return add_branches(x, (attention_branch, mlp_branch), depth, groups, functools.partial(per_token, groups=groups))


def run_rows(
    block: Any,
    x: Float[Tensor, "x d"],
    groups: Sequence[Group],
    rows: Int[Tensor, " r"],
    factors: Float[Tensor, "2 b"] | None = None,
    recompute_activations: bool = True,
) -> Float[Tensor, "r d"]:
    """`run`, but only the given rows of its output: keys and values are those of all tokens, the rest is computed for the rows.

    Exact; of a last block whose other tokens nothing reads. `factors`: stochastic depth, see `drop_path`.
    """
    scale = [1.0, 1.0] if factors is None else [per_token(factor, groups).index_select(0, rows) for factor in factors]
    added = attention(block.attn, block.norm1(x), groups, rows=rows, recompute_activations=recompute_activations)
    x = x.index_select(0, rows) + (block.ls1(added) * scale[0]).to(added.dtype)
    added = mlp(block.mlp, block.norm2(x), recompute_activations=recompute_activations)
    return x + (block.ls2(added) * scale[1]).to(added.dtype)


def attention(
    layer: Any,
    x: Float[Tensor, "x d"],
    groups: Sequence[Group],
    *,
    recompute_activations: bool,
    rows: Int[Tensor, " r"] | None = None,
) -> Float[Tensor, "_ d"]:
    """timm's Attention, each image attending to its own tokens; with `rows`, the output of those only."""
    parts = layer.qkv(x).split([group.images * group.tokens for group in groups])
    mixed = [recompute(functools.partial(_mix, layer, group=group), part, recompute_activations and not layer.fused_attn)
             for part, group in zip(parts, groups, strict=True)]  # fmt: skip
    together = torch.cat(mixed)
    if rows is not None:
        together = together.index_select(0, rows)
    return layer.proj_drop(layer.proj(layer.norm(together)))


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


def stream(x: Tensor, kind: torch.dtype | None) -> Tensor:
    """Tokens in the type of the residual stream, where there is one and autocast is on."""
    return x.to(kind) if kind is not None and torch.is_autocast_enabled(x.device.type) else x


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, recompute_activations: bool) -> Tensor:
    """`function(x)`, whose inside is computed anew in the backward up to the last thing that is needed there."""
    if not (recompute_activations and torch.is_grad_enabled()):
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
