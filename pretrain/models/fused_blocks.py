"""A ViT's blocks on packed tokens as a GPU computes them in training: products, attention of variable length, few passes else.

Equal to `packed_blocks.run` up to the order of additions and roundings. A block leaves its last sum to the next one (`Pending`),
so that sum and norm are one pass over memory. For the backward are kept: sums, queries, keys, values, attention's output and the
hidden layer before its activation; norms and activations are computed again on the way.

x tokens of all groups, d width, m hidden width, r rows.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.models import block_kernels as kernels
from pretrain.models import packed_blocks
from pretrain.models.drop_path import Group

# mypy: disable-error-code="override, no-untyped-call"


class Pending(NamedTuple):
    """Tokens that are still to be summed: x + factor * (added + bias)."""

    x: Float[Tensor, "x d"]
    added: Float[Tensor, "x d"] | None = None
    factor: Float[Tensor, " x"] | None = None
    """Of stochastic depth."""
    bias: Float[Tensor, " d"] | None = None


class Sequences(NamedTuple):
    """Where each image's tokens begin among the packed ones, the end last, and the most that an image has."""

    starts: Int[Tensor, " images_1"]
    longest: int
    groups: tuple[Group, ...]


class LowWeights(NamedTuple):
    """A block's matrices in the products' type, made once a forward."""

    qkv: Tensor
    qkv_bias: Tensor
    proj: Tensor
    fc1: Tensor
    fc2: Tensor


def sequences(groups: Sequence[Group], device: torch.device) -> Sequences:
    """Those of groups of images."""
    return Sequences(_starts(tuple(groups), device), max(group.tokens for group in groups), tuple(groups))


@lru_cache(maxsize=16)
def _starts(groups: tuple[Group, ...], device: torch.device) -> Int[Tensor, " images_1"]:
    found, start = [], 0
    with torch.inference_mode(False):  # an inference tensor in the cache could not be trained with
        for images, tokens in groups:
            end = start + images * tokens
            found.append(torch.arange(start, end, tokens, device=device, dtype=torch.int32))
            start = end
        return torch.cat([*found, torch.full((1,), start, device=device, dtype=torch.int32)])


@lru_cache(maxsize=16)
def _images(groups: tuple[Group, ...], device: torch.device) -> Int[Tensor, " x"]:
    """The image of each token."""
    found, start = [], 0
    with torch.inference_mode(False):
        for images, tokens in groups:
            numbers = torch.arange(start, start + images, device=device, dtype=torch.int32)
            found.append(numbers[:, None].expand(-1, tokens).reshape(-1))
            start += images
        return torch.cat(found)


def low_weights(blocks: Sequence[Any], kind: torch.dtype) -> Iterator[LowWeights]:
    """Copies of the blocks' matrices in the products' type, all in a few kernels; without gradients."""
    with torch.no_grad():
        own = [one.detach() for block in blocks for one in _matrices(block)]
        made = [torch.empty_like(one, dtype=kind) for one in own]
        torch._foreach_copy_(made, own)
    return (LowWeights(*made[start : start + 5]) for start in range(0, len(made), 5))


def _matrices(block: Any) -> tuple[Tensor, ...]:
    return block.attn.qkv.weight, block.attn.qkv.bias, block.attn.proj.weight, block.mlp.fc1.weight, block.mlp.fc2.weight


def fits(block: Any) -> bool:
    """Whether a block is what these kernels compute: pre-norm, biases, exact GELU, nothing optional of timm's."""
    attn, mlp = block.attn, block.mlp
    plain = (block.ls1, block.ls2, attn.q_norm, attn.k_norm, attn.norm, mlp.norm)
    dropped = (attn.attn_drop, attn.proj_drop, mlp.drop1, mlp.drop2)
    return (
        type(block) is packed_blocks.PackedBlock
        and all(isinstance(one, nn.Identity) for one in plain)
        and all(getattr(one, "p", 0.0) == 0.0 for one in dropped)
        and isinstance(mlp.act, nn.GELU)
        and mlp.act.approximate == "none"
        and all(isinstance(norm, nn.LayerNorm) and norm.bias is not None for norm in (block.norm1, block.norm2))
        and all(layer.bias is not None for layer in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))
        and attn.head_dim % 8 == 0
        and attn.head_dim <= 256
    )


def through(
    blocks: Sequence[Any],
    norm: Any,
    x: Float[Tensor, "x d"],
    groups: Sequence[Group],
    depths: Float[Tensor, "blocks 2 b"] | None,
    rows: Int[Tensor, " r"] | None = None,
    kind: torch.dtype = torch.bfloat16,
    *,
    recompute: bool = False,
) -> Float[Tensor, "_ d"]:
    """Tokens through all blocks and the final norm, of type `kind`; with `rows`, the last block computes only those.

    `depths`: stochastic depth as factors of each image (`drop_path.factors`). `recompute`: keep each block's input only, and
    compute it again in the backward.
    """
    where = sequences(groups, x.device)
    factors = None if depths is None else depths.index_select(2, _images(where.groups, x.device))  # [blocks, 2, x]
    pending = Pending(x)
    for number, (block, low) in enumerate(zip(blocks, low_weights(blocks, kind), strict=True)):
        last = rows if number == len(blocks) - 1 else None
        given = (block, low, pending, where, None if factors is None else factors[number], last)
        again = recompute and torch.is_grad_enabled()
        pending = checkpoint(run, *given, use_reentrant=False) if again else run(*given)
    (normed,) = AddNorm.apply(*pending, norm.weight, norm.bias, norm.eps, kind)
    return normed


def run(
    block: Any,
    low: LowWeights,
    tokens: Pending,
    where: Sequences,
    factors: Float[Tensor, "2 x"] | None,
    rows: Int[Tensor, " r"] | None = None,
) -> Pending:
    """One block."""
    norm, attn, mlp = block.norm1, block.attn, block.mlp
    x, qkv = NormLinear.apply(*tokens, norm.weight, norm.bias, norm.eps, attn.qkv.weight, low.qkv, low.qkv_bias)
    mixed = Attention.apply(qkv, attn.qkv.bias, where, attn.num_heads)
    if rows is not None:
        x, mixed = Rows.apply(x, rows), Rows.apply(mixed, rows)
        factors = None if factors is None else factors.index_select(1, rows)
    of_attention, of_mlp = (None, None) if factors is None else factors.unbind(0)
    added = Product.apply(mixed, attn.proj.weight, low.proj)
    norm = block.norm2
    x, hidden = NormLinear.apply(
        x, added, of_attention, attn.proj.bias, norm.weight, norm.bias, norm.eps, mlp.fc1.weight, low.fc1, None
    )
    return Pending(x, GeluProduct.apply(hidden, mlp.fc1.bias, mlp.fc2.weight, low.fc2), of_mlp, mlp.fc2.bias)


def weight_gradient(grad: Float[Tensor, "x m"], x: Float[Tensor, "x d"]) -> Float[Tensor, "m d"]:
    """grad^T x in float32, as the optimizer takes it."""
    if grad.is_cuda and grad.dtype != torch.float32:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return (grad.t() @ x).float()


TRIAL = (Group(3, 50), Group(5, 17))
MOST_APART = 0.05
"""Of a trial: how far tokens and gradients may be from the plain blocks', as a share of the largest value (16 bits: 0.004)."""


def compare(block: Any, kind: torch.dtype) -> float:
    """Compute one block both ways on drawn tokens, with gradients; how far they are apart, as a share of the largest value.

    Raises RuntimeError where that is more than roundings.
    """
    device, width = block.norm1.weight.device, len(block.norm1.weight)
    given, wanted = (torch.randn(sum(images * tokens for images, tokens in TRIAL), width, device=device) for _ in range(2))
    factors = torch.tensor([0.0, 1.0, 1.25] * 6, device=device)[:16].view(1, 2, 8)
    learns = [parameter.requires_grad for parameter in block.parameters()]
    block.requires_grad_(True)
    norm, found = nn.LayerNorm(width, device=device), []
    try:
        for fused in (True, False):
            x = given.clone().requires_grad_()
            with torch.autocast(device.type, kind):
                made = through([block], norm, x, TRIAL, factors, None, kind) if fused else norm(
                    packed_blocks.run(block, x, TRIAL, factors[0], recompute_activations=False)
                )  # fmt: skip
            gradients = torch.autograd.grad((made.float() * wanted).sum(), [x, *block.parameters()])
            found.append([made.detach(), *gradients])
    finally:
        for parameter, learnt in zip(block.parameters(), learns, strict=True):
            parameter.requires_grad_(learnt)
    pairs = zip(*found, strict=True)
    apart = torch.stack([(ours - plain).abs().max() / plain.abs().max().clamp(min=1e-9) for ours, plain in pairs])
    most = float(apart.max())
    if not most <= MOST_APART:
        raise RuntimeError(f"they are {100 * most:.1f} % of the largest value away from the plain blocks")
    return most


class AddNorm(torch.autograd.Function):
    """Layer norm of pending tokens."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor | None, factor: Tensor | None, bias: Tensor | None, weight: Tensor, shift: Tensor,
        epsilon: float, kind: torch.dtype,
    ) -> tuple[Tensor]:  # fmt: skip
        made, normed, mean, scale = kernels.add_norm(x, added, factor, bias, weight, shift, epsilon, kind)
        ctx.added = added is not None
        ctx.save_for_backward(made if ctx.added else x, mean, scale, factor, weight, shift)
        return (normed,)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_x, grad_added, _, parts = kernels.add_norm_backward(grad.contiguous(), None, *ctx.saved_tensors, ctx.added)
        return *_of_sum(ctx, grad_x, grad_added, parts), None, None


def _of_sum(ctx: Any, grad_x: Tensor, grad_added: Tensor, parts: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of pending tokens and of the norm's parameters."""
    of_weight, of_shift, of_bias = parts.sum(0).unbind(0)
    return grad_x, *((grad_added, None, of_bias) if ctx.added else (None, None, None)), of_weight, of_shift


class NormLinear(torch.autograd.Function):
    """Pending tokens summed, and a linear layer of their norm. Its bias is added here; `Attention` gives that its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor | None, factor: Tensor | None, bias: Tensor | None, weight: Tensor, shift: Tensor,
        epsilon: float, matrix: Tensor, low: Tensor, low_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        made, normed, mean, scale = kernels.add_norm(x, added, factor, bias, weight, shift, epsilon, low.dtype)
        ctx.added = added is not None
        if not ctx.added:
            made = x.view_as(x)
        ctx.save_for_backward(made, mean, scale, factor, weight, shift, low)
        return made, normed @ low.t() if low_bias is None else torch.addmm(low_bias, normed, low.t())

    @staticmethod
    def backward(ctx: Any, above: Tensor, grad: Tensor) -> Any:
        *saved, low = ctx.saved_tensors
        grad_x, grad_added, normed, parts = kernels.add_norm_backward(grad @ low, above, *saved, ctx.added)
        return *_of_sum(ctx, grad_x, grad_added, parts), None, weight_gradient(grad, normed), None, None


class Product(torch.autograd.Function):
    """A linear layer without its bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, low: Tensor) -> Tensor:
        ctx.save_for_backward(x, low)
        return x @ low.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, low = ctx.saved_tensors
        return grad @ low, weight_gradient(grad, x), None


class GeluProduct(torch.autograd.Function):
    """A linear layer, without its bias, of GELU(hidden + bias)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, bias: Tensor, matrix: Tensor, low: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, bias, low)
        return kernels.gelu(hidden, bias) @ low.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, bias, low = ctx.saved_tensors
        grad_hidden, active, parts = kernels.gelu_backward(grad @ low, hidden, bias)
        return grad_hidden, parts.sum(0), weight_gradient(grad, active), None


class Rows(torch.autograd.Function):
    """Some rows. torch's own backward of `index_select` copies the zeros that it adds to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_add_(0, rows, grad), None


class Attention(torch.autograd.Function):
    """Each image's tokens attend to each other. `bias` is that in `qkv`: its gradient is summed here, where it costs nothing."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, where: Sequences, heads: int) -> Tensor:
        q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        out, *rest = attend(q, k, v, where)
        ctx.where, ctx.heads = where, heads
        ctx.save_for_backward(qkv, out, *rest)
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        qkv, out, *rest = ctx.saved_tensors
        q, k, v = qkv.view(len(qkv), 3, ctx.heads, -1).unbind(1)
        grads = attend_backward(grad.view_as(out), q, k, v, out, rest, ctx.where)
        stacked, parts = kernels.stack(*(one.flatten(1) for one in grads))
        return stacked, parts.sum(0), None, None


Heads = Float[Tensor, "x heads width"]


def attend(q: Heads, k: Heads, v: Heads, where: Sequences) -> tuple[Tensor, ...]:
    """Attention of variable length: the output `[x, heads, width]`, and what its backward needs."""
    starts, longest = where.starts, where.longest
    forward = torch.ops.aten._flash_attention_forward
    return forward(q, k, v, starts, starts, longest, longest, 0.0, False, False)[:4]


def attend_backward(
    grad: Heads, q: Heads, k: Heads, v: Heads, out: Heads, rest: Sequence[Tensor], where: Sequences
) -> tuple[Tensor, ...]:
    """Gradients of queries, keys and values, each `[x, heads, width]`."""
    sums, *state = rest
    starts, longest = where.starts, where.longest
    backward = torch.ops.aten._flash_attention_backward
    return backward(grad, q, k, v, out, sums, starts, starts, longest, longest, 0.0, False, *state)
