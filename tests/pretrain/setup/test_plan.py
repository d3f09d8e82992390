"""The plan of a run: what is derived of its options, value by value, and what is refused before anything is made."""

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.architecture import Architecture
from checkpoints.cli import WRONG_COMMAND, UserError, run_command
from pretrain import train
from pretrain.batches.augment import MultiCrop, View
from pretrain.batches.masking import MaskSettings
from pretrain.method.objective import LossWeights
from pretrain.method.schedule import Ramp, Schedule
from pretrain.options.command_line import read_command_line
from pretrain.options.stored import from_values
from pretrain.setup.plan import HeadPlan, Plan, plan_of

HEAD = HeadPlan(8192, 8192, 2048, 256, True, False, "original", 0, False)
CROPS = MultiCrop(
    (View(224, (0.25, 1.0), 1.0, 0.0), View(224, (0.25, 1.0), 0.1, 0.2)), View(96, (0.05, 0.25), 0.5, 0.0), locals=10
)
MASKS = MaskSettings((0.0, 0.3), (0.0, 0.2), "block")
VIT = read_command_line("--recipe ibot_vits16 --data x --workers 3".split())
SWIN = read_command_line("--recipe ibot_swint7 --data x --workers 3 --accumulate 4 --out y".split())
PLANS = {
    "vit": Plan(
        options=VIT,
        folder=Path("runs/ibot_vits16"),
        architecture=Architecture("vit_small", 16, 224, 3, 384, 12, 6),
        views=CROPS,
        masks=MASKS,
        grid=(14, 14),
        local_grid=None,
        student_head=HEAD,
        teacher_head=HEAD,
        loss_weights=LossWeights(1.0, 1.0, 3.0),
        batch_size=64,
        some_unused=False,
        workers=3,
    ),
    "swin": Plan(
        options=SWIN,
        folder=Path("y"),
        architecture=Architecture("swin_tiny", 4, 224, 3, 768, 12, 3, depths=(2, 2, 6, 2), window=7),
        views=CROPS,
        masks=MASKS,
        grid=(7, 7),
        local_grid=None,
        student_head=HEAD,
        teacher_head=HEAD,
        loss_weights=LossWeights(1.0, 1.0, 3.0),
        batch_size=128,
        some_unused=True,  # there are no masks before epoch 50
        workers=3,
    ),
}
"""Written down from what `config.shape`, `views`, `masks`, ... gave before there was a plan."""
RAMP = Ramp(0.04, 0.07, 30)
SCHEDULES = {
    "vit": Schedule(1000800, 1251, 0.001, 1e-6, 12510, 0.04, 0.4, 0.996, RAMP, RAMP, 1, 0),
    "swin": Schedule(375300, 1251, 0.002, 1e-6, 12510, 0.04, 0.4, 0.996, RAMP, RAMP, 1, 50),
}
"""Of 1251 steps an epoch on eight processes, likewise."""


@pytest.mark.parametrize("name", PLANS)
def test_every_value_that_is_derived_is_what_it_was(name: str) -> None:
    expected = PLANS[name]
    plan = plan_of(expected.options)
    for field, value in expected._asdict().items():
        assert getattr(plan, field) == value, field
    assert plan.schedule(1251, processes=8) == SCHEDULES[name]


def test_what_replaces_an_act_of_the_step_is_in_the_plan() -> None:
    """Semi-shared heads, BEiT's head, layers apart, local masks, no masks, a length in steps."""
    semi = plan_of(from_values(shared_head=False, shared_head_teacher=True, separate_layers=2, init="fan_in"))
    assert (semi.student_head.shared, semi.student_head.separate_layers, semi.student_head.init) == (False, 2, "fan_in")
    assert (semi.teacher_head.shared, semi.teacher_head.separate_layers) == (True, 0)
    apart = {"shared_head": False, "shared_head_teacher": False}
    assert plan_of(from_values(targets="codes", tokenizer="colour", **apart)).student_head.codes
    local = plan_of(from_values(masked_crops="all", local_crops_number=2, pred_shape="rand"))
    assert local.local_grid == (6, 6) and local.masks == MaskSettings((0.3,), (0.0,), "rand") and not local.some_unused
    dino = plan_of(from_values(use_masked_im_modeling=False, masked_crops="global"))
    assert dino.masks == MaskSettings((0.0,), (0.0,), "rand") and dino.some_unused and dino.local_grid is None
    assert plan_of(from_values(targets="dense_feature")).some_unused and not plan_of(from_values()).some_unused
    short = plan_of(from_values(steps=7, warmup_epochs=10, accumulate=2, batch_size_per_gpu=32)).schedule(3, processes=2)
    assert (short.total_steps, short.warmup_steps, short.lr) == (7, 7, 5e-4 * 32 * 2 * 2 / 256)
    ranged = plan_of(from_values(channels=1, value_range=(-1.0, 3.0)))
    assert (ranged.architecture.channels, ranged.architecture.value_range) == (1, (-1.0, 3.0))


@pytest.mark.parametrize(
    ("values", "kind", "compiles", "late"),
    [
        ({}, "cuda", True, True),
        ({}, "cpu", False, False),
        ({"compile": "on"}, "cpu", True, False),
        ({"compile": "off"}, "cuda", False, True),
        ({"shard": True}, "cuda", False, False),
        ({"optimizer": "sgd"}, "cuda", True, False),
    ],
)
def test_what_depends_on_the_device(values: dict[str, Any], kind: str, compiles: bool, late: bool) -> None:
    plan, device = plan_of(from_values(**values)), torch.device(kind)
    assert (plan.compiles(device), plan.refuses_late(device)) == (compiles, late)


def test_workers_are_as_many_as_cores_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes, workers in ((1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, 63), (64, 8, 7)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert plan_of(from_values()).workers == workers
    assert plan_of(from_values(workers=0)).workers == 0


REFUSED = {
    "--global-crops-number 1": "the [CLS] loss compares two views: ask for at least 2 crops in all",
    "--global-crops-number 1 --local-crops-number 1 --targets dense_position": "give --global-crops-number 2",
    "--targets codes": "--targets codes needs --tokenizer: give it: dalle, dalle:FILE, kmeans:FILE or colour",
    "--targets frozen": "--targets frozen needs --tokenizer: give it: a full checkpoint",
    "--tokenizer colour": "--targets online has no --tokenizer: give --targets codes or --targets frozen, or leave it out",
    "--targets codes --tokenizer colour": "give --shared-head false --shared-head-teacher false",
    "--shared-head true --separate-layers 1": "--separate-layers is for heads that are not shared: give --shared-head false",
    "--targets hard --masked-crops one": "--targets hard and --masked-crops do not go together: give one of them",
    "--centre-patches false --masked-crops one": "--masked-crops and --centre-patches false do not go together",
    "--targets hard --use-masked-im-modeling false": "without masked image modelling --targets hard says nothing",
    "--masked-crops all": "--masked-crops all is about local crops: give --local-crops-number",
    "--lambda-cls 0 --lambda-patch 0": "both losses have the weight 0",
    "--lambda-cls 0 --use-masked-im-modeling false": "both losses have the weight 0",
    "--out-dim 16": "a teacher with one set of prototypes needs --patch-out-dim 8192 equal to --out-dim 16",
    "--value-range 1 0": "--value-range 1 0: give the least and the largest value",
    "--value-range 1": "--value-range 1: give the least and the largest value",
    "--residual bf16 --precision fp16": "--residual bf16 goes with --precision bf16, not with fp16: leave one of them out",
    "--residual bf16 --arch vit_base_patch14_reg4_dinov2": "--residual bf16 is for this project's ViT and Swin",
    "--shard true --precision fp16": "--shard does not go with --precision fp16: give --precision bf16 or fp32",
    "--shard true --optimizer lars": "--shard does not go with --optimizer lars: give --optimizer adamw or sgd",
    "--shard true --compile on": "--shard does not go with --compile on: leave --compile out",
    "--arch vit_nothing": "unknown --arch vit_nothing: choose from vit_tiny",
    "--arch swin_tiny --patch-size 4 --depth 3": "--width and --depth change vit_tiny",
    "--width 100": "--width 100 is not a multiple of 64",
    "--global-crops-size 100": "--global-crops-size 100 is not divisible by --patch-size 16",
    "--local-crops-number 2 --local-crops-size 50": "--local-crops-size 50 is not divisible by --patch-size 16",
    "--pred-ratio 0 0.3": "--pred-ratio has 2 values and --pred-ratio-var 1: give as many",
    "--pred-ratio 0.3 --pred-ratio-var 0.4": "--pred-ratio 0.3 +- 0.4 leaves the range from 0 to 1",
    "--global-crops-size 32": "a grid of 2 x 2 patches has no room for block masks",
    "--local-crops-number 2 --local-crops-size 32 --masked-crops all": "a grid of 2 x 2 patches has no room for block masks",
    "--global-crops-scale 0.5 0.4": "--global-crops-scale 0.5 0.4: give two shares of the image, 0 < least <= most <= 1",
    "--local-crops-scale 0.5 0.4": "--local-crops-scale 0.5 0.4: give two shares of the image, 0 < least <= most <= 1",
}
"""Flags after `--arch vit_small` -> what is said, the same words as before there was a plan."""


@pytest.mark.parametrize("flags", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_is_made(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.distributed, "processes", lambda: pytest.fail("a process group was begun"))
    assert run_command(train.main, ["--arch", "vit_small", *flags.split()]) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and REFUSED[flags] in said and not list(tmp_path.iterdir())


OUT_OF_BOUNDS: list[tuple[dict[str, Any], str]] = [
    ({"global_crops_number": 0, "local_crops_number": 2}, "--global-crops-number must be 1 or more"),
    ({"max_bad": -1}, "--max-bad must be 0 or more"),
    ({"batch_size_per_gpu": 0}, "--batch-size-per-gpu must be 1 or more"),
    ({"accumulate": 0}, "--accumulate must be 1 or more"),
    ({"epochs": 0}, "--epochs must be 1 or more"),
    ({"steps": 0}, "--steps must be 1 or more"),
    ({"out_dim": 0, "shared_head": True}, "--out-dim must be 1 or more"),
    ({"log_every": 0}, "--log-every must be 1 or more"),
    ({"keep_every": 0}, "--keep-every must be 1 or more"),
    ({"channels": 0}, "--channels must be 1 or more"),
    ({"value_range": (0.0, float("inf"))}, "--value-range 0 inf: give the least and the largest value"),
    ({"separate_layers": 4}, "--separate-layers must be from 0 to 3"),
    ({"patch_centre_momentum": 1.0}, "--patch-centre-momentum must be 0 or more and less than 1"),
]


@pytest.mark.parametrize(("values", "words"), OUT_OF_BOUNDS, ids=[words for _, words in OUT_OF_BOUNDS])
def test_options_of_a_program_have_bounds_too(values: dict[str, Any], words: str) -> None:
    """A command line is refused before, by `checkpoints/bounds.py`."""
    with pytest.raises(UserError) as refused:
        plan_of(from_values(**values))
    assert words in str(refused.value)
