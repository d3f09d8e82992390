"""Triton's interpreter (TRITON_INTERPRET=1) runs the kernels of a GPU's blocks on CPU tensors beside the plain blocks.

Prints the largest difference of tokens and of each gradient, as a share of the largest value, for each case.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models import block_kernels as kernels
from pretrain.models import fused_blocks, packed_blocks
from pretrain.models.drop_path import Group
from pretrain.models.fused_blocks import Sequences
from pretrain.models.packed_blocks import PackedBlock

GROUPS = (Group(2, 9), Group(3, 5))
WIDTH, HEADS, DEPTH = 96, 4, 2


def attend(q: Tensor, k: Tensor, v: Tensor, where: Sequences) -> tuple[Tensor, ...]:
    """Image by image."""
    ends = where.starts.tolist()
    images = [[one[start:end].transpose(0, 1) for one in (q, k, v)] for start, end in pairwise(ends)]
    return (torch.cat([F.scaled_dot_product_attention(q, k, v).transpose(0, 1) for q, k, v in images]),)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, rest: Sequence[Tensor], where: Sequences
) -> tuple[Tensor, ...]:
    q, k, v = (one.detach().requires_grad_() for one in (q, k, v))
    with torch.enable_grad():
        again = attend(q, k, v, where)[0]
    assert torch.equal(again, out)
    return torch.autograd.grad(again, (q, k, v), grad)


def replace() -> None:
    """The launches in place of the operators, which take a GPU's tensors only."""
    module: Any = kernels
    for name in ("add_norm", "add_norm_backward", "gelu", "gelu_backward", "stack"):
        setattr(module, name, getattr(module, f"launch_{name}"))
    module.PARTS = 5  # programs that an interpreter goes through one by one
    fused: Any = fused_blocks
    fused.attend, fused.attend_backward = attend, attend_backward


def blocks() -> nn.ModuleList:
    torch.manual_seed(0)
    found = nn.ModuleList([*(PackedBlock(WIDTH, HEADS, qkv_bias=True) for _ in range(DEPTH)), nn.LayerNorm(WIDTH)])
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.3)
    return found


def plain(parts: nn.ModuleList, x: Tensor, factors: Tensor | None, rows: Tensor | None) -> Tensor:
    *stack, norm = parts
    for number, block in enumerate(stack):
        factor = None if factors is None else factors[number]
        if rows is not None and number == DEPTH - 1:
            x = packed_blocks.run_rows(block, x, GROUPS, rows, factor)
        else:
            x = packed_blocks.run(block, x, GROUPS, factor, False)
    return norm(x)


def main() -> None:
    replace()
    tokens = sum(images * each for images, each in GROUPS)
    x = torch.randn(tokens, WIDTH)
    drawn = torch.tensor([0.0, 1.0, 1.25, 0.0, 1.25]).repeat(DEPTH, 2, 1)
    rows = torch.tensor([0, 9, 18, 23, 28, 4, 11])
    for name, factors, chosen in (("all", None, None), ("stochastic depth", drawn, None), ("rows", drawn, rows)):
        found = []
        for fused in (False, True):
            parts, given = blocks(), x.clone().requires_grad_()
            *stack, norm = parts
            if fused:
                assert all(map(fused_blocks.fits, stack))
                made = fused_blocks.through(stack, norm, given, GROUPS, factors, chosen, torch.float32)
            else:
                made = plain(parts, given, factors, chosen)
            made.square().sum().backward()
            gradients = {key: parameter.grad for key, parameter in parts.named_parameters()}
            found.append({"tokens": made.detach(), "x": given.grad, **gradients})
        for key, wanted in found[0].items():
            got = found[1][key]
            assert wanted is not None and got is not None and got.shape == wanted.shape and wanted.any()
            print(f"{name}, {key}: {((got - wanted).abs().max() / wanted.abs().max()).item():.2e}")
    trial()


def trial() -> None:
    """What a GPU does before the first step, in bf16: with these kernels, and with one that is wrong."""
    block, module = PackedBlock(64, 1, qkv_bias=True), fused_blocks.kernels
    print(f"trial: {fused_blocks.compare(block, torch.bfloat16):.2e}")
    right = module.add_norm_backward
    module.add_norm_backward = lambda *given: (right(*given)[0] * 1.2, *right(*given)[1:])
    try:
        fused_blocks.compare(block, torch.bfloat16)
    except RuntimeError as error:
        print(f"wrong kernel, {error}: 1")


if __name__ == "__main__":
    main()
