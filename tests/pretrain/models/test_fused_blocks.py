"""A GPU's blocks, without one: their kernels interpreted on a CPU, compiled for an H100, and left where they do not work."""

import subprocess
from typing import Any

import pytest
import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from checkpoints.architecture import Architecture
from pretrain.models import block_kernels, fused_blocks
from pretrain.models.compiling import compile_blocks
from pretrain.models.vit import ViT
from tests.support.commands import program


def test_interpreted_blocks_are_the_plain_ones_with_all_gradients() -> None:
    """Two blocks and a norm, two sizes of crops; with stochastic depth; with some rows of the last block only. Float32."""
    done = subprocess.run(**program("interpreted_blocks", TRITON_INTERPRET="1"), check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    apart = {name: float(share) for name, _, share in (line.rpartition(": ") for line in done.stdout.splitlines())}
    tried = apart.pop("trial")  # in bf16, and it has gradients to compare
    assert 1e-4 < tried < 0.03, tried
    (wrong,) = [name for name in apart if name.startswith("wrong kernel")]
    assert "away from the plain blocks" in wrong and apart.pop(wrong)
    assert len(apart) == 3 * (2 + 2 * 12 + 2)  # tokens, their gradient, and those of every parameter
    assert {name: share for name, share in apart.items() if not share < 1e-5} == {}  # orders of additions


POINTERS = {
    "add_norm_kernel": "x y normed",
    "add_norm_backward_kernel": "grad above x grad_x grad_y normed",
    "gelu_kernel": "hidden made",
    "gelu_backward_kernel": "grad hidden grad_hidden made",
    "stack_kernel": "q k v made",
}
"""Arguments of 16 bits."""
NUMBERS = {"n": "i32", "d": "i32", "m": "i32", "tiles": "i32", "values": "i32", "epsilon": "fp32"}


@pytest.mark.parametrize("name", POINTERS)
def test_the_kernels_compile_for_a_gpu_that_is_not_here(name: str) -> None:
    """To machine code, by Triton's own assembler, for the width of a ViT-S and a residual of 16 bits."""
    kernel: Any = getattr(block_kernels, name)
    low = set(POINTERS[name].split()) | ({"made"} if name == "add_norm_kernel" else set())
    constants = {"ADDED": True, "SCALED": True, "PASSED": True, "ROWS": 8, "WIDTH": 512, "BLOCK": 4096}
    own = {one: constants[one] for one in kernel.arg_names if one in constants}
    kinds = {one: NUMBERS.get(one, "*bf16" if one in low else "*fp32") for one in kernel.arg_names if one not in own}
    source = ASTSource(fn=kernel, signature={**kinds, **dict.fromkeys(own, "constexpr")}, constexprs=own)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=block_kernels.OPTIONS)
    assert len(made.asm["cubin"]) > 1000


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = ViT(Architecture("vit_tiny", 8, 16, 3, 64, 2, 1), maskable=False)


def test_where_the_kernels_do_not_work_it_is_said_and_torch_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has none of them: the operators refuse its tensors."""
    network, real = Network(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: real(function, **{**kwargs, "backend": "eager"}))

    def trial() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network.backbone(torch.zeros(2, 3, 16, 16))

    note = compile_blocks(network, trial, torch.bfloat16)
    assert "not by this project's kernels (" in note and "compile" in note, note
    assert network.backbone.kernels is None and all(one.grad is None for one in network.parameters())


@pytest.mark.parametrize("changed", ["approximate", "drop", "norm"])
def test_blocks_of_another_kind_are_not_computed_by_them(changed: str) -> None:
    block: Any = ViT(Architecture("vit_tiny", 8, 16, 3, 64, 1, 1), maskable=False).blocks[0]
    assert fused_blocks.fits(block)
    if changed == "approximate":
        block.mlp.act.approximate = "tanh"
    elif changed == "drop":
        block.attn.proj_drop.p = 0.1
    else:
        block.norm2 = nn.Identity()
    assert not fused_blocks.fits(block)
