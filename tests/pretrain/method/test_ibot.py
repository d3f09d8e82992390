"""The method's parts against their formulas, written out the slow way."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close

from checkpoints.architecture import Architecture, shape_of
from checkpoints.cli import UserError, WorkError
from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.batches.masking import Masks
from pretrain.engine import optim
from pretrain.engine.guard import MOST_BAD_STEPS, Attempt, Guard
from pretrain.engine.options import as_values
from pretrain.engine.precision import Precision
from pretrain.engine.verdict import Verdict
from pretrain.method import ibot
from pretrain.method.heads import Prototypes
from pretrain.method.ibot import Losses, Student
from pretrain.method.schedule import Ramp, ScheduleValues, warmup_cosine
from pretrain.models import drop_path, packed_blocks
from pretrain.models.drop_path import Group
from pretrain.models.vit import ViT
from pretrain.options.command_line import read_command_line
from pretrain.options.stored import differences, from_values
from pretrain.recipes.registry import RECIPES
from pretrain.setup.plan import plan_of
from pretrain.train import LossWeights, train_step
from tests.support import plain
from tests.support.networks import TRAINED, batch, student_and_teacher
from tests.support.states import named

FLOAT32 = Precision("fp32", torch.device("cpu"))
NOW = ScheduleValues(0, 1e-3, 0.1, 0.9, 0.04, 0.07, False, True)


def test_masked_prototypes_and_the_mean_bottleneck_give_what_all_patches_would() -> None:
    student, teacher = student_and_teacher()
    given = batch()
    with torch.no_grad():
        answer = teacher(given.crops, given.masks)
        tokens = teacher.backbone(given.crops.flatten(0, 1))
        every = teacher.head.patches(teacher.head.bottleneck(tokens[:, 1:]))
        logits = student(given.crops, given.masks, given.local_crops)
        student_tokens = student.backbone(given.crops.flatten(0, 1), given.masks.grid.flatten(0, 1))
        student_every = student.head.patches(student.head.bottleneck(student_tokens[:, 1:]))
    mask = given.masks.grid.flatten(2).flatten(0, 1)
    assert_close(answer.patches, every[mask], rtol=1e-5, atol=1e-6)
    assert_close(answer.patch_mean, every.mean((0, 1)), rtol=1e-5, atol=1e-6)
    assert_close(logits.patches, student_every[mask], rtol=1e-5, atol=1e-6)


def test_cls_loss_is_the_mean_over_pairs_of_different_views() -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(5, 4, 7), torch.randn(2, 4, 7).softmax(-1)
    terms = [-(targets[q] * F.log_softmax(logits[v] / 0.1, dim=-1)).sum(-1).mean() for q in range(2) for v in range(5) if v != q]
    assert_close(ibot.cls_loss(logits, targets), torch.stack(terms).mean())


def test_patch_loss_counts_images_without_masks_as_zero() -> None:
    masks = batch().masks
    torch.manual_seed(2)
    logits, targets = torch.randn(2, 4, 9, 7), torch.randn(2, 4, 9, 7).softmax(-1)
    total = torch.tensor(0.0)
    for view in range(2):
        for image in range(4):
            masked = masks.grid[view, image].flatten()
            if masked.any():
                terms = -(targets[view, image] * F.log_softmax(logits[view, image] / 0.1, dim=-1)).sum(-1)
                total += terms[masked].mean()
    flat = masks.indices
    ours = ibot.patch_loss(logits.flatten(0, 2)[flat], targets.flatten(0, 2)[flat], masks)
    assert_close(ours, total / 8)


def test_without_masks_the_patch_loss_is_zero_and_can_be_differentiated() -> None:
    unmasked = NOW._replace(masking=False)
    student, teacher = student_and_teacher()
    given = batch()
    outcome = train_step(
        student, teacher, optim.build_optimizer("adamw", student), [given], unmasked, LossWeights(), Guard(), FLOAT32
    )
    assert outcome.losses.patch == 0 and torch.isfinite(outcome.losses.total)


def test_a_batch_whose_masks_are_all_empty_trains() -> None:
    student, teacher = student_and_teacher()
    given = batch()._replace(masks=masking.as_masks(torch.zeros(2, 4, 3, 3, dtype=torch.bool)))
    outcome = train_step(student, teacher, optim.build_optimizer("adamw", student), [given], NOW, LossWeights(), Guard(), FLOAT32)
    assert outcome.losses.patch == 0 and torch.isfinite(outcome.losses.cls)


def test_teacher_follows_by_name_and_semi_shared_heads_differ_in_the_student_only() -> None:
    student, teacher = student_and_teacher(shared=False)
    assert student.head.last_layer2 is not student.head.last_layer
    assert teacher.head.last_layer2 is teacher.head.last_layer
    before = {name: weight.clone() for name, weight in teacher.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    teacher.update_ema_(student, 0.75)
    mine, theirs = dict(teacher.named_parameters()), dict(student.named_parameters())
    assert "backbone.masked_embed" in theirs and "backbone.masked_embed" not in mine
    for name, weight in mine.items():
        assert_close(weight.data, 0.75 * before[name] + 0.25 * theirs[name].data)


def test_prototypes_have_length_one_and_a_frozen_gain_stays() -> None:
    layer = Prototypes(8, 5, frozen_gain=True)
    rows = layer(torch.eye(8)).T
    assert_close(rows.norm(dim=1), torch.ones(5))
    assert not layer.weight_g.requires_grad and Prototypes(8, 5, frozen_gain=False).weight_g.requires_grad


def test_last_layer_keeps_weights_and_optimizer_state_while_it_is_frozen() -> None:
    student, teacher = student_and_teacher()
    optimizer = optim.build_optimizer("adamw", student)
    before = student.head.last_layer.weight_v.detach().clone()
    train_step(student, teacher, optimizer, [batch()], NOW._replace(last_layer_frozen=True), LossWeights(), Guard(), FLOAT32)
    assert torch.equal(before, student.head.last_layer.weight_v)
    assert student.head.last_layer.weight_v not in optimizer.state
    train_step(student, teacher, optimizer, [batch(1)], NOW, LossWeights(), Guard(), FLOAT32)
    assert not torch.equal(before, student.head.last_layer.weight_v)


def test_parameter_groups_follow_the_originals_rule() -> None:
    student, _ = student_and_teacher()
    groups: list[Any] = optim.parameter_groups(student)
    decayed, plain = groups
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    plain_names = {names[id(parameter)] for parameter in plain["params"]}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert plain_names == {name for name, p in student.named_parameters() if name.endswith(".bias") or p.ndim == 1}
    assert {"head.last_layer.weight_g", "backbone.cls_token", "backbone.pos_embed", "backbone.masked_embed"} <= decayed_names
    assert not plain_names & decayed_names


def test_clipping_is_per_tensor() -> None:
    parameters = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    for parameter, length in zip(parameters, (0.5, 3.0, 30.0), strict=True):
        parameter.grad = torch.full((4,), length / 2)
    gradients = optim.gradients_of([*parameters, nn.Parameter(torch.zeros(1))])
    lengths = optim.norms_of(gradients)
    optim.clip_each_(gradients, lengths, 3.0)
    assert_close(lengths, torch.tensor([0.5, 3.0, 30.0]))
    assert_close(optim.norms_of(gradients), torch.tensor([0.5, 3.0, 3.0]), rtol=1e-5, atol=0)
    gradients[2].fill_(15.0)
    optim.clip_each_(gradients, optim.norms_of(gradients), 0.0)
    assert_close(gradients[2].norm(), torch.tensor(30.0))


def test_factors_spread_over_gradients_clip_to_the_same_bits() -> None:
    """A GPU multiplies lists of equal shapes; lists of scalars, as in 46c01a2, take it a kernel for each tensor."""
    generator = torch.Generator().manual_seed(0)
    gradients = [10 * torch.randn(shape, generator=generator) for shape in ((3, 5), (7,), (), (2, 3, 4))]
    factors = torch.rand(4, generator=generator)
    expected = [gradient * factor for gradient, factor in zip(gradients, factors, strict=True)]
    spread = optim.spread_like(gradients, factors)
    assert [one.shape for one in spread] == [one.shape for one in gradients]
    torch._foreach_mul_(gradients, spread)
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_every_optimizer_lowers_a_loss(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    optimizer = optim.build_optimizer(name, layer)
    optim.set_values_(optimizer, {"adamw": 0.05, "sgd": 0.05, "lars": 5.0}[name], 0.01)
    x, losses = torch.randn(32, 6), []
    for _ in range(30):
        loss = (layer(x) - x.roll(1, dims=1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_lars_step_is_the_papers_formula() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.grad, layer.bias.grad = torch.randn(2, 3), torch.randn(2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = optim.build_optimizer("lars", layer)
    optim.set_values_(optimizer, 0.1, 0.2)
    optimizer.step()
    direction = layer.weight.grad + 0.2 * weight
    assert_close(layer.weight.detach(), weight - 0.1 * 0.001 * weight.norm() / direction.norm() * direction)
    assert_close(layer.bias.detach(), bias - 0.1 * layer.bias.grad)


def test_a_loss_that_is_not_finite_changes_nothing_and_many_stop_the_run() -> None:
    student, teacher = student_and_teacher()
    optimizer, guard = optim.build_optimizer("adamw", student), Guard()
    before = {name: value.clone() for name, value in [*student.state_dict().items(), *teacher.state_dict().items()]}
    broken = batch()
    broken.crops[0, 0] = float("nan")
    outcome = train_step(student, teacher, optimizer, [broken], NOW, LossWeights(), guard, FLOAT32)
    after = dict([*student.state_dict().items(), *teacher.state_dict().items()])
    assert not outcome.accepted and guard.skipped == 1
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    nan = torch.tensor(float("nan"))
    with pytest.raises(WorkError, match="lower --lr"):
        for _ in range(MOST_BAD_STEPS):
            assert not guard.accepts(Losses(nan, nan, nan), torch.ones(2))
    assert guard.accepts(Losses(nan * 0 + 1, nan, nan)._replace(total=torch.tensor(1.0)), torch.ones(2))
    assert not guard.accepts(Losses(torch.tensor(1.0), nan, nan), torch.tensor([1.0, math.inf]))


def test_a_verdict_that_stays_on_the_device_moves_what_an_immediate_one_moves() -> None:
    """Steps 1 and 3 are refused; the late guard hears of each before the next step changes anything."""
    found = []
    for late in (False, True):
        student, teacher = student_and_teacher()
        seen: list[tuple[int, Tensor]] = []

        def refused(attempt: Attempt, student: Student = student, seen: list = seen) -> None:
            seen.append((attempt.step, student.head.last_layer.weight_v.detach().clone()))

        optimizer, guard = optim.build_optimizer("adamw", student), Guard(refused, late=late)
        for step in range(5):
            given = batch(step)
            if step in (1, 3):
                given.crops[0, 0] = math.nan
            guard.begin(step, [given], NOW)
            train_step(student, teacher, optimizer, [given], NOW, LossWeights(), guard, FLOAT32)
        assert guard.resolve_pending() and guard.skipped == 2
        assert [step for step, _ in seen] == [1, 3]
        found.append((dict(student.state_dict()) | {"t." + k: v for k, v in teacher.state_dict().items()}, seen))
    for name, value in found[0][0].items():
        if not name.endswith("qkv.bias"):  # keys' biases have no gradient but rounding, which AdamW makes large
            assert_close(found[1][0][name], value, rtol=1e-4, atol=1e-6, msg=named(name))
    for (_, one), (_, other) in zip(found[0][1], found[1][1], strict=True):
        assert_close(other, one, rtol=1e-4, atol=1e-6)  # a step more would be 1e-3 away


def test_a_step_with_a_late_verdict_asks_the_device_for_nothing() -> None:
    """On tensors without content, where any question for a number is an error."""
    (student, teacher), real = student_and_teacher(), batch()

    def step(guard: Guard) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:

            def pretended(tensor: Tensor) -> Tensor:
                return mode.from_tensor(tensor)

            for network in (student, teacher):
                values = {name: pretended(value) for name, value in network.state_dict().items()}
                network.load_state_dict(values, assign=True)
            given = Batch(pretended(real.crops), Masks(*map(pretended, real.masks)), pretended(real.local_crops))
            train_step(student, teacher, optim.build_optimizer("adamw", student), [given], NOW, LossWeights(), guard, FLOAT32)

    step(Guard(late=True))
    with pytest.raises(DataDependentOutputException):  # what the test would see
        step(Guard(late=False))


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("on_device", [True, False])
def test_a_verdict_moves_everything_or_nothing(accepted: bool, on_device: bool) -> None:
    """Weights, moving averages and centres alike; a refused step may have left NaN where it would move to."""
    verdict = Verdict(torch.tensor(accepted) if on_device else accepted)
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.full((3,), 1.0 if accepted else math.nan)
    verdict.step_(optimizer, torch.amp.GradScaler("cpu", enabled=False))
    assert_close(weight.detach(), torch.full((3,), -0.1 if accepted else 0.0))
    average = [torch.zeros(2)]
    verdict.lerp_(average, [torch.ones(2)], 0.25)
    assert_close(average[0], torch.full((2,), 0.25 if accepted else 0.0))
    old = torch.zeros(2)
    assert_close(verdict.select(torch.full((2,), 1.0 if accepted else math.nan), old), torch.full((2,), float(accepted)))
    assert bool(verdict) is accepted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_on_a_gpu_do_not_wait_for_it() -> None:
    device = torch.device("cuda")
    student, teacher = student_and_teacher()
    student.to(device).train(), teacher.to(device).train()
    given = batch()
    given = Batch(given.crops.to(device), Masks(*(part.to(device) for part in given.masks)), given.local_crops.to(device))
    optimizer, guard, precision = optim.build_optimizer("adamw", student), Guard(late=True), Precision("bf16", device)
    for step in range(4):
        if step == 2:  # states and kernels are there by now
            torch.cuda.set_sync_debug_mode("error")
        try:
            train_step(student, teacher, optimizer, [given], NOW, LossWeights(), guard, precision)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert guard.resolve_pending() and guard.skipped == 0


def test_schedules_at_their_ends() -> None:
    assert warmup_cosine(0, 100, 1.0, 0.1, 10) == 0 and warmup_cosine(9, 100, 1.0, 0.1, 10) == 1.0
    assert warmup_cosine(10, 100, 1.0, 0.1, 10) == 1.0
    assert math.isclose(warmup_cosine(55, 100, 1.0, 0.1, 10), 0.55)
    assert [Ramp(0.04, 0.07, 3).at(epoch) for epoch in range(5)] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert Ramp(0.04, 0.07, 0).at(0) == 0.07 and Ramp(0.04, 0.07, 1).at(0) == 0.04


@settings(max_examples=60, deadline=None)
@given(side=st.integers(3, 20), ratio=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_block_masks_never_cover_more_than_asked(side: int, ratio: float, seed: int) -> None:
    masks = masking.block_masks(np.random.default_rng(seed), np.array([ratio, 0.0, ratio / 2]), side, side + 2)
    assert masks.shape == (3, side, side + 2) and not masks[1].any()
    rounding = 1e-9  # 0.45 * 120 is 53.99...
    assert masks[0].sum() <= ratio * masks[0].size + rounding and masks[2].sum() <= ratio / 2 * masks[2].size + rounding


@settings(max_examples=60, deadline=None)
@given(side=st.integers(1, 20), ratio=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_random_masks_cover_the_share_rounded_down(side: int, ratio: float, seed: int) -> None:
    masks = masking.random_masks(np.random.default_rng(seed), np.array([ratio, 0.0]), side, side)
    assert masks.sum(axis=(1, 2)).tolist() == [int(ratio * side * side), 0]


def test_mask_weights_are_means_over_patches_then_images() -> None:
    masks = batch().masks
    count = masks.grid.flatten(2).sum(-1)
    weights = torch.zeros(masks.grid.numel()).index_put((masks.indices,), masks.weight).reshape(2, 4, 9)
    assert_close(weights.sum(-1), (count > 0) / 8)
    assert torch.equal(masks.indices, masks.grid.flatten().nonzero().squeeze(1))


def test_masks_without_room_and_unmatched_ratios_are_refused() -> None:
    block = masking.MaskSettings((0.0, 0.3), (0.0, 0.2), "block")
    with pytest.raises(UserError, match="no room for block masks"):
        masking.check(block, 2, 2)
    with pytest.raises(UserError, match="give as many"):
        masking.check(block._replace(spread=(0.0,)), 14, 14)
    with pytest.raises(UserError, match="leaves the range"):
        masking.check(block._replace(ratio=(0.0, 0.9)), 14, 14)


def test_architectures_and_impossible_sizes() -> None:
    assert shape_of("vit_small", 16, 224) == Architecture("vit_small", 16, 224, 3, 384, 12, 6)
    for arguments, message in (
        (("vit_giant", 16, 224), "unknown --arch vit_giant: choose from vit_tiny"),
        (("vit_small", 16, 230), "not divisible by --patch-size"),
    ):
        with pytest.raises(UserError, match=message):
            shape_of(*arguments)
    with pytest.raises(UserError, match="multiple of 64"):
        shape_of("vit_small", 16, 224, width=100)


def test_the_originals_published_command_line_means_what_it_meant() -> None:
    line = (
        "--arch vit_small --teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --norm_last_layer false --epochs 800 "
        "--batch_size_per_gpu 64 --shared_head true --out_dim 8192 --local_crops_number 10 --global_crops_scale 0.25 1 "
        "--local_crops_scale 0.05 0.25 --pred_ratio 0 0.3 --pred_ratio_var 0 0.2 --data_path x --output_dir y "
        "--use_fp16 false --lambda1 1.0 --num_workers 3"
    )
    config = read_command_line(line.split())
    recipe = read_command_line(["--recipe", "ibot_vits16", "--data", "x", "--out", "y", "--precision", "fp32", "--workers", "3"])
    assert as_values(config) | {"recipe": None} == as_values(recipe) | {"recipe": None}
    assert (config.head.norm_last_layer, config.head.shared_head, config.masks.pred_ratio) == (False, True, (0.0, 0.3))


def test_without_masked_image_modelling_no_patch_is_masked() -> None:
    plan = plan_of(read_command_line(["--recipe", "ibot_vits16", "--use_masked_im_modeling", "false"]))
    masks = masking.draw(np.random.default_rng(0), plan.masks, 2, 8, 14, 14)
    assert not masks.grid.any() and len(masks.indices) == 0


def test_recipes_are_possible_and_the_default_depends_on_what_is_given() -> None:
    for name, values in RECIPES.items():
        needed = ["--tokenizer", "FILE"] if values.get("targets") in ("codes", "frozen") else []
        plan_of(read_command_line(["--recipe", name, *needed]))
    assert read_command_line([]).run.recipe == "sample"
    assert read_command_line(["--data", "x"]).run.recipe == "ibot_vits16"
    assert read_command_line(["--data", "sample:64"]).run.recipe == "sample"
    assert read_command_line(["--arch", "vit_base"]) == from_values(arch="vit_base")
    with pytest.raises(UserError, match="unknown --recipe nothing: choose from"):
        read_command_line(["--recipe", "nothing"])


def test_an_option_newer_than_a_run_was_at_its_default() -> None:
    stored = as_values(from_values())
    del stored["targets"]
    assert differences(as_values(from_values()), stored) == {}
    assert differences(as_values(from_values(targets="hard")), stored) == {"targets": "--targets was online, now hard"}


@pytest.mark.parametrize("head", [{}, {"shared": False}], ids=["shared", "semi-shared"])
def test_losses_gradients_and_centres_are_those_of_the_plain_method(head: dict) -> None:
    (student, teacher), given = student_and_teacher(**head), batch()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        teacher.centres.cls.normal_()
        teacher.centres.patch.normal_()
    slow = plain.step(student, teacher, given, 0.04, 0.07)
    slow.total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in student.named_parameters() if parameter.grad is not None}
    student.zero_grad()
    answer, logits = teacher(given.crops, given.masks), student(given.crops, given.masks, given.local_crops)
    targets = ibot.center_and_sharpen(answer, teacher.centres, 0.04, 0.07)
    losses = ibot.losses(logits, targets, given.masks, 1.0, 1.0)
    losses.total.backward()
    for ours, theirs in ((losses.total, slow.total), (losses.cls, slow.cls), (losses.patch, slow.patch)):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert_close(targets.cls_mean, slow.cls_mean, rtol=1e-5, atol=1e-6)
    assert_close(targets.patch_mean, slow.patch_mean, rtol=1e-5, atol=1e-6)
    found = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=named(name))


def test_accumulated_batches_are_one_large_batch() -> None:
    large = batch()
    halves = [
        Batch(large.crops[:, half], masking.as_masks(large.masks.grid[:, half]), large.local_crops[:, half])
        for half in (slice(0, 2), slice(2, 4))
    ]
    ends = []
    for batches in ([large], halves):
        student, teacher = student_and_teacher()
        optimizer, guard = optim.build_optimizer("adamw", student), Guard()
        outcomes = [train_step(student, teacher, optimizer, batches, NOW, LossWeights(), guard, FLOAT32) for _ in range(2)]
        ends.append((outcomes, student.state_dict(), teacher.state_dict()))
    for one, two in zip(ends[0][0], ends[1][0], strict=True):
        for ours, theirs in zip(two.losses, one.losses, strict=True):
            assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
        assert_close(two.gradient, one.gradient, rtol=1e-4, atol=1e-7)
    for weights, others in zip(ends[0][1:], ends[1][1:], strict=True):
        for name, value in weights.items():
            if not name.endswith("attn.qkv.bias"):  # the gradient of key biases is rounding, see docs/decisions.md
                assert_close(others[name], value, rtol=1e-4, atol=1e-6, msg=named(name))


def test_fp16_scales_its_loss_and_a_step_that_overflows_changes_nothing() -> None:
    student, teacher = student_and_teacher()
    half = Precision("fp16", torch.device("cpu"))
    optimizer, guard, given = optim.build_optimizer("adamw", student), Guard(), batch()
    before = student.state_dict()["head.last_layer.weight_v"].clone()
    half.scaler.load_state_dict(half.scaler.state_dict() | {"scale": 1e38})
    outcome = train_step(student, teacher, optimizer, [given], NOW, LossWeights(), guard, half)
    assert not outcome.accepted and torch.equal(student.head.last_layer.weight_v, before)
    assert half.scaler.get_scale() < 1e38
    half.scaler.load_state_dict(half.scaler.state_dict() | {"scale": 4.0})
    outcome = train_step(student, teacher, optimizer, [given], NOW, LossWeights(), guard, half)
    assert outcome.accepted and not torch.equal(student.head.last_layer.weight_v, before)
    exact_student, exact_teacher = student_and_teacher()
    exact = train_step(
        exact_student, exact_teacher, optim.build_optimizer("adamw", exact_student), [given], NOW, LossWeights(), guard, FLOAT32
    )
    assert_close(outcome.losses.total, exact.losses.total, rtol=2e-2, atol=0)
    assert_close(outcome.gradient, exact.gradient, rtol=5e-2, atol=0)


def test_dropped_paths_cost_nothing_and_keep_the_mean() -> None:
    torch.manual_seed(0)
    network = ViT(TRAINED, maskable=False, drop_path=0.5)
    block: Any = network.blocks[-1]
    groups: list[Group] = [Group(64, 10), Group(32, 5)]
    seen: list[int] = []
    block.mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    x = torch.randn(64 * 10 + 32 * 5, 64)
    with torch.no_grad():
        whole = packed_blocks.run(block, x, groups)
        dropped = torch.stack([packed_blocks.run(block, x, groups, drop_path.draw([0.5], [64, 32])[0]) for _ in range(400)])
    assert seen[0] == len(x) and 0.45 < np.mean(seen[1:]) / len(x) < 0.55 and min(seen[1:]) < 0.45 * len(x)
    # Attention is dropped as well, and the MLP sees what it left: the means agree to first order only.
    assert ((dropped.mean(0) - whole).norm() / (whole - x).norm()) < 0.2
    packed_blocks.run(block, x.requires_grad_(), groups, drop_path.draw([0.9999], [64, 32])[0]).sum().backward()
    assert all(p.grad is not None for p in block.parameters())  # also where every path was dropped


@pytest.mark.parametrize("fused", [False, True])
def test_packed_groups_are_what_timms_blocks_give_apart(fused: bool) -> None:
    torch.manual_seed(0)
    network = ViT(TRAINED, maskable=True, fused=fused)
    network.masked_embed.data.normal_()
    crops, local, mask = torch.randn(4, 3, 24, 24), torch.randn(6, 3, 16, 16), torch.rand(4, 3, 3) < 0.4
    results = []
    for recompute_activations in (True, False, None):
        network.zero_grad()
        if recompute_activations is None:
            tokens = [network.norm(network.blocks(network.embed(*group))) for group in ((crops, mask), (local, None))]
        else:
            network.recompute_activations = recompute_activations
            tokens = network.forward_multi([(crops, mask), (local, None)])
        (tokens[0].square().sum() + tokens[1].pow(3).sum()).backward()
        results.append((tokens, optim.gradients_of(network.parameters())))
    for tokens, gradients in results[:2]:
        for ours, theirs in zip([*tokens, *gradients], [*results[2][0], *results[2][1]], strict=True):
            assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_checkpointed_activations_change_nothing_but_memory() -> None:
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        network = ViT(TRAINED, maskable=False, drop_path=0.3, checkpointed=checkpointed).train()
        torch.manual_seed(1)
        network(torch.randn(8, 3, 24, 24)).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert_close(one, two)
