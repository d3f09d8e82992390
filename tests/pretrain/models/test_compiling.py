"""Compiled blocks: few graphs, the same losses, nothing eager in silence."""

import json
import subprocess
from typing import Any

import pytest
import torch

from checkpoints.architecture import Architecture
from pretrain.models import drop_path, packed_blocks
from pretrain.models.drop_path import Group
from pretrain.models.timm_vit import TensorDropPath
from pretrain.models.vit import ViT
from tests.support.commands import command
from tests.support.networks import TWO_STAGES, backbone
from tests.support.networks import VIT as VIT_SHAPE

SMALL = (
    "--recipe ibot_vits16 --batch-size-per-gpu 4 --out-dim 64 --patch-out-dim 64 --head-hidden-dim 64 --head-bottleneck-dim 32 "
    "--drop-path 0.1"
).split()
VIT = "--width 64 --global-crops-size 64 --local-crops-size 32".split()
SWIN = "--arch swin_tiny --patch-size 4 --window 4 --pred-shape rand --global-crops-size 64 --local-crops-size 32".split()
TIMM = "--arch vit_small_patch14_reg4_dinov2 --global-crops-size 56 --local-crops-size 28".split()


def steps_of(backend: str, steps: int, *flags: str) -> dict[str, Any]:
    words = ["-m", "tests.support.programs.compiled_steps", backend, str(steps), *SMALL, *flags]
    done = subprocess.run(**command(*words), check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_blocks_are_two_graphs_heads_and_losses_three_and_no_step_makes_another_or_runs_eagerly() -> None:
    """Masks and temperatures differ from step to step.

    46c01a2: 8 graphs in the trial, 36 of 36 block calls eager from the first step on, without a word.
    """
    found = steps_of("aot_eager", 26, *VIT, "--compile", "on", "--precision", "bf16")
    assert [note.partition(" in ")[0] for note in found["notes"]] == [
        "student: 12 blocks compiled as 1 graph",
        "teacher: 12 blocks compiled as 1 graph",
        "heads and losses compiled as 3 graphs",
    ]
    assert found["graphs"] == [5, 5, 5]  # after the trial, after the steps, after evaluation at other batch sizes
    assert found["eager"] == [0] * 26


@pytest.mark.parametrize("flags", [SWIN, TIMM], ids=["swin", "timm"])
def test_other_backbones_compile_once_too(flags: list[str]) -> None:
    found = steps_of("aot_eager", 3, *flags, "--compile", "on", "--precision", "fp32")
    trial, trained, evaluated = found["graphs"]
    assert trial > 0 and trained == trial == evaluated, found["notes"]
    assert found["eager"] == [0] * 3


def test_compiled_losses_are_the_eager_ones() -> None:
    flags = [*VIT, "--depth", "2", "--precision", "fp32"]
    compiled, eager = (steps_of("inductor", 2, *flags, "--compile", mode) for mode in ("on", "off"))
    assert compiled["losses"] == pytest.approx(eager["losses"], rel=1e-4)
    assert compiled["eager"] == [0, 0] and min(eager["eager"]) > 0


def test_a_compiler_that_fails_is_said_and_changes_nothing() -> None:
    flags = [*VIT, "--depth", "2", "--precision", "fp32"]
    broken, eager = steps_of("broken", 2, *flags, "--compile", "on"), steps_of("inductor", 2, *flags, "--compile", "off")
    assert all("not compiled (" in note and "no compiler here" in note for note in broken["notes"])
    assert len(broken["notes"]) == 3 and broken["losses"] == eager["losses"]


def test_blocks_that_fail_in_a_step_go_on_uncompiled() -> None:
    flags = [*VIT, "--depth", "2", "--precision", "fp32"]
    late = steps_of("late", 2, *flags, "--compile", "on")
    assert late["eager"] == [7, 7] and late["graphs"][0] == 5


def test_factors_do_what_the_subset_does() -> None:
    """One draw, applied both ways; and the one upload holds it for all blocks."""
    torch.manual_seed(0)
    network = ViT(Architecture("vit_tiny", 8, 24, 3, 64, 3, 1), maskable=False, drop_path=0.5).double()
    groups, x = (Group(16, 10), Group(8, 5)), torch.randn(16 * 10 + 8 * 5, 64, dtype=torch.float64)
    drawn = drop_path.draw([0.0, 0.25, 0.5], [16, 8])
    factors = drop_path.factors(drawn, 24, torch.device("cpu"))
    assert drawn[0] is None and bool((factors[0] == 1).all())
    assert factors[1].unique().tolist() == pytest.approx([0.0, 4 / 3])
    for block, draw, factor in zip(network.blocks, drawn, factors, strict=True):
        one, two = (packed_blocks.run(block, x, groups, depth) for depth in (draw, factor.double()))
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [VIT_SHAPE, TWO_STAGES], ids=["vit", "swin"])
def test_a_residual_stream_in_bf16_stays_close_and_is_left_out_of_evaluation(shape: Architecture) -> None:
    network: Any = backbone(shape).train()
    block, seen, outputs = network.blocks[-1], [], []
    block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    images = torch.randn(4, 3, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(0))
    for kind, autocast in ((None, True), (torch.bfloat16, True), (torch.bfloat16, False)):
        network.residual = kind
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs.append(network(images).float())
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(images)
    assert seen[1] == torch.bfloat16 and seen[2] == torch.float32 and seen[3] == seen[0]
    assert (outputs[1] - outputs[0]).norm() < 0.03 * outputs[0].norm()  # a bf16 sum is right to 0.4 %, and a few follow


def test_a_rate_in_a_tensor_drops_as_often_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer, x = TensorDropPath(0.25), torch.ones(20_000, 1, 2)
    dropped = layer(x)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(x), x)
