"""What the original computes, ours computes: its numbers against the functions that training calls.

All sizes come from the fixtures. Tolerances are those of float32 sums in another order: 1e-5 of the largest number on losses
and activations, and what the fixtures' README names for whole training runs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from checkpoints import layouts, published
from checkpoints.architecture import Architecture
from checkpoints.resolve import load_strictly
from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.engine import optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.evaluate import knn
from pretrain.method import ibot
from pretrain.method.heads import Head
from pretrain.method.ibot import Centres, Network, Student, StudentOutput, Teacher, TeacherOutput
from pretrain.models.backbone import backbone_of, load_backbone
from pretrain.models.swin import Swin
from pretrain.models.vit import ViT
from pretrain.train import LossWeights, train_step
from tests.support.parity import Fixture, Read, assert_near, schedule_of
from tests.support.states import named


def shape_from(about: dict) -> Architecture:
    return Architecture("vit", about["patch"], about["img"], 3, about["dim"], about["depth"], about["heads"])


def vit_of(fixture: Fixture, *, fused: bool = True) -> ViT:
    vit = ViT(shape_from(fixture.about), maskable=True, fused=fused)
    load_strictly(vit, fixture.part("state."), Path("fixture"))
    return vit.eval()


def head_of(fixture: Fixture) -> Head:
    about, state = fixture.about, fixture.part("state.")
    head = Head(
        about["in_dim"],
        out_dim=len(state["last_layer.weight_g"]),
        patch_out_dim=len(state["last_layer2.weight_g"]),
        hidden_dim=about["hidden_dim"],
        bottleneck_dim=about["bottleneck_dim"],
        shared=about["shared"],
        norm_last_layer=True,
    )
    load_strictly(head, state, Path("fixture"))
    return head


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_parity_vit_tokens_with_and_without_mask_and_at_other_sizes(parity: Read, fused: bool) -> None:
    fixture = parity("vit")
    vit, given = vit_of(fixture, fused=fused), fixture.tensors
    assert_near(vit(given["x"]), given["tokens"])
    assert_near(vit(given["x"], given["mask"]), given["tokens_masked"])
    assert_near(vit(given["x_rect"]), given["tokens_rect"])
    assert_near(vit(given["x_small"]), given["tokens_small"])


@torch.no_grad()
def test_parity_vit_last_blocks_and_attention(parity: Read) -> None:
    fixture = parity("vit")
    vit, given = vit_of(fixture), fixture.tensors
    expected = [given[name] for name in sorted(given) if name.startswith("intermediate.")]
    for ours, theirs in zip(vit.last_blocks(given["x"], len(expected)), expected, strict=True):
        assert_near(ours, theirs)
    assert_near(vit.get_last_selfattention(given["x"]), given["last_attention"])


@torch.no_grad()
def test_parity_swin_tokens_with_and_without_mask_and_where_windows_do_not_divide_the_grid(parity: Read) -> None:
    """The original pads before it shifts: exactly equal on the tested machine."""
    fixture = parity("swin")
    given, weights = fixture.tensors, layouts.to_ours(fixture.part("state."))[0]
    backbone = backbone_of(published.Contents("fixture", {"only": {f"backbone.{n}": w for n, w in weights.items()}}), "", Path())
    assert isinstance(backbone, Swin)
    assert_near(backbone(given["x"]), given["tokens"])
    assert_near(backbone(given["x"], given["mask"]), given["tokens_masked"])
    assert_near(backbone(given["x_small"]), given["tokens_small"])
    assert_near(backbone(given["x_tiny"]), given["tokens_tiny"])
    assert_near(backbone.last_blocks(given["x"], 3)[-1], given["tokens"])


@pytest.mark.parametrize("name", ["head_shared", "head_separate"])
@torch.no_grad()
def test_parity_head(parity: Read, name: str) -> None:
    fixture = parity(name)
    head, given = head_of(fixture), fixture.tensors
    bottleneck = head.bottleneck(given["x"])
    assert_near(head.cls(bottleneck[:, 0]), given["cls_logits"])
    assert_near(head.patches(bottleneck[:, 1:]), given["patch_logits"])
    assert_near(head.cls(head.bottleneck(given["x"][:, 0])), given["cls_only_logits"])
    mean_first = head.patches(bottleneck[:, 1:].mean(dim=(0, 1)))
    assert_near(mean_first, given["patch_logits"].mean(dim=(0, 1)), size=given["patch_logits"])


def test_parity_losses_and_centres_of_every_call(parity: Read) -> None:
    fixture = parity("loss")
    about, given = fixture.about, fixture.tensors
    assert about["student_temp"] == ibot.STUDENT_TEMPERATURE and about["center_momentum"] == ibot.CENTRE_MOMENTUM
    views, images = about["crops_global"], about["B"]
    centres = Centres(about["out_dim"], about["out_dim"])
    schedule = schedule_of(about)  # a step is an epoch
    for step in range(sum(name.endswith(".loss") for name in given)):
        call = fixture.part(f"step{step}.")
        masks = masking.as_masks(call["mask"])
        patch_logits = call["teacher_patch"].flatten(0, 1)
        answer = TeacherOutput(
            call["teacher_cls"].unflatten(0, (views, images)), patch_logits[masks.indices], patch_logits.mean(dim=0)
        )
        logits = StudentOutput(
            torch.cat([call["student_cls"], call["student_local_cls"]]).unflatten(0, (-1, images)),
            call["student_patch"].flatten(0, 1)[masks.indices],
        )
        now = schedule.at(step)
        targets = ibot.center_and_sharpen(answer, centres, now.cls_temperature, now.patch_temperature)
        losses = ibot.losses(logits, targets, masks, about["lambda_cls"], about["lambda_patch"])
        centres.update_(targets)
        assert_near(losses.cls, call["loss_cls"])
        assert_near(losses.patch, call["loss_patch"])
        assert_near(losses.total, call["loss"])
        assert_near(centres.cls, call["center_cls_after"], 1e-6, size=call["teacher_cls"])
        assert_near(centres.patch, call["center_patch_after"], 1e-6, size=call["teacher_patch"])
    for part, name in (("cls_temperature", "teacher_temp_schedule"), ("patch_temperature", "teacher_patch_temp_schedule")):
        ours = [getattr(schedule.at(epoch), part) for epoch in range(about["epochs"])]
        assert_close(torch.tensor(ours, dtype=torch.float64), given[name])


def test_the_patch_temperature_waits_for_the_first_masks() -> None:
    """With `pred_start_epoch` in a fixture the original holds the patches' temperature and then starts its warm-up."""
    ramps = {"warmup_teacher_temp": 0.04, "teacher_temp": 0.07, "warmup_teacher_patch_temp": 0.03, "teacher_patch_temp": 0.06}
    schedule = schedule_of({**ramps, "warmup_teacher_temp_epochs": 3, "epochs": 7, "pred_start_epoch": 2})
    values = [schedule.at(epoch) for epoch in range(7)]
    assert [now.cls_temperature for now in values] == pytest.approx([*np.linspace(0.04, 0.07, 3), *[0.07] * 4])
    assert [now.patch_temperature for now in values] == pytest.approx([*[0.03] * 2, *np.linspace(0.03, 0.06, 3), *[0.06] * 2])


def training_of(fixture: Fixture, fused: bool) -> tuple[Student, Teacher]:
    """Networks with the fixture's first weights."""
    about = fixture.about

    def head() -> Head:
        return Head(
            about["dim"],
            out_dim=about["out_dim"],
            patch_out_dim=about["out_dim"],
            hidden_dim=about["hidden_dim"],
            bottleneck_dim=about["bottleneck_dim"],
            shared=about["shared_head"],
            norm_last_layer=about["norm_last_layer"],
        )

    student = Student(ViT(shape_from(about), maskable=True, drop_path=about["drop_path"], fused=fused), head())
    teacher = Teacher(ViT(shape_from(about), maskable=False, fused=fused), head())
    load_strictly(student, fixture.part("init.student."), Path("fixture"))
    teacher.copy(student)
    return student.train(), teacher.train()


def test_parity_schedules_of_every_step(parity: Read) -> None:
    fixture = parity("train_steps")
    schedule = schedule_of(fixture.about)
    for name in ("lr", "weight_decay", "momentum"):
        ours = [getattr(schedule.at(step), name) for step in range(schedule.total_steps)]
        assert_close(torch.tensor(ours, dtype=torch.float64), fixture.tensors[name])


@torch.no_grad()
def compare_weights(network: Network, theirs: dict[str, Tensor], images: Tensor) -> None:
    """Every weight, to the tolerance that the fixtures name, but for the keys' biases, which are noise in both.

    A key's bias adds the same to all attention logits of a query, so softmax takes it away again and its true gradient
    is zero. What arrives is rounding, which AdamW scales up to whole steps. Its only effect can be on the outputs, by
    nothing: these are compared as well.
    """
    ours = {name: weight.data.clone() for name, weight in network.named_parameters()}
    assert ours.keys() <= theirs.keys()
    width = network.backbone.shape.embed_dim
    for name, weight in ours.items():
        kept, known = weight, theirs[name]
        if name.endswith("attn.qkv.bias"):
            kept, known = (torch.cat([bias[:width], bias[2 * width :]]) for bias in (kept, known))
        assert_close(kept, known, rtol=1e-4, atol=1e-5, msg=named(name))
    tokens = network.backbone(images)
    network.load_state_dict({name: theirs[name] for name in ours}, strict=False)
    assert_near(tokens, network.backbone(images), 1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_parity_whole_training_steps(parity: Read, fused: bool) -> None:
    fixture = parity("train_steps")
    about = fixture.about
    student, teacher = training_of(fixture, fused)
    optimizer, schedule, guard = optim.build_optimizer("adamw", student), schedule_of(about), Guard()
    precision = Precision("fp32", torch.device("cpu"))
    for step in range(schedule.total_steps):
        given = fixture.part(f"step{step}.")
        batch = Batch(given["global"], masking.as_masks(given["mask"]), given["local"])
        weights = LossWeights(clip_grad=about["clip_grad"])
        outcome = train_step(student, teacher, optimizer, [batch], schedule.at(step), weights, guard, precision)
        for ours, name in (
            (outcome.losses.total, "loss"),
            (outcome.losses.cls, "loss_cls"),
            (outcome.losses.patch, "loss_patch"),
        ):
            assert_near(ours.detach(), given[name])
        assert outcome.accepted
        assert_close(outcome.gradient, given["grad_norm_mean"], rtol=1e-3, atol=1e-6)
    for network, prefix in ((student, "final.student."), (teacher, "final.teacher.")):
        compare_weights(network, fixture.part(prefix), given["global"][0])
    assert_close(teacher.centres.cls, fixture.tensors["final.center_cls"], rtol=1e-4, atol=1e-5)
    assert_close(teacher.centres.patch, fixture.tensors["final.center_patch"], rtol=1e-4, atol=1e-5)


def test_parity_published_checkpoint_loads_strictly(parity_dir: Path) -> None:
    path = parity_dir / "checkpoint_published_layout.pth"
    parts = published.read(path)
    assert parts.centres["cls"].ndim == 2 and parts.centres["patch"].ndim == 3
    assert parts.optimizer["param_groups"] and isinstance(parts.args["arch"], str) and not parts.lacks()
    networks: dict[str, Any] = {}
    for key, weights in parts.networks.items():
        loaded = load_backbone(path, key=key)
        shape = loaded.backbone.shape
        assert loaded.epoch == parts.epoch
        head = Head(
            shape.embed_dim,
            out_dim=len(weights["head.last_layer.weight_g"]),
            patch_out_dim=len(weights["head.last_layer2.weight_g"]),
            hidden_dim=len(weights["head.mlp.0.bias"]),
            bottleneck_dim=len(weights["head.mlp.4.bias"]),
            shared=bool(torch.equal(weights["head.last_layer.weight_v"], weights["head.last_layer2.weight_v"])),
            norm_last_layer=True,
        )
        network = (Student if key == "student" else Teacher)(ViT(shape, maskable=key == "student"), head)
        centres = {f"centres.{k}": v for k, v in parts.centres.items()} if key == "teacher" else {}
        load_strictly(network, {**weights, **centres}, path)
        networks[key] = network
        images = torch.randn(2, 3, shape.image_size, shape.image_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert_close(loaded.backbone(images), network.eval().backbone(images))
    assert not torch.equal(networks["student"].head.mlp[0].weight, networks["teacher"].head.mlp[0].weight)


def test_parity_knn(parity: Read) -> None:
    fixture = parity("knn")
    given = fixture.tensors
    ks = sorted(int(name.removeprefix("top1.k")) for name in given if name.startswith("top1.k"))
    answers = knn.vote(
        given["test_features"],
        given["train_features"],
        given["train_labels"],
        fixture.about["classes"],
        ks,
        fixture.about["temperature"],
    )
    for k in ks:
        for top in (1, 5):
            ours = torch.tensor(knn.accuracy(answers[k], given["test_labels"], top))
            assert_close(ours, given[f"top{top}.k{k}"], rtol=0, atol=1e-4)


def settings_in(path: Path) -> list[dict]:
    return json.loads((path / "mask_statistics.json").read_text())


@pytest.mark.parametrize("number", range(4))
def test_parity_mask_statistics(parity_dir: Path, number: int) -> None:
    """Each statistic lies within five standard errors of two samples of `draws` masks each."""
    given = settings_in(parity_dir)[number]
    draws, grid = given["draws"], given["grid"]

    def several(value: float | list[float]) -> tuple[float, ...]:
        return tuple(value) if isinstance(value, list) else (value,)

    settings = masking.MaskSettings(several(given["ratio"]), several(given["var"]), given["shape"])
    masks = masking.draw(np.random.default_rng(7), settings, 1, draws, grid, grid).grid[0]
    count = masks.flatten(1).sum(1).double()
    error = 5 * (2 / draws) ** 0.5
    spread = given["std_count"]
    assert abs(count.mean() - given["mean_count"]) <= error * spread
    # The variance of a spread is (kurtosis - 1) / 4 of its square; ten covers the heavy tail of the fixed ratio.
    assert abs(count.std() - spread) <= error * spread * (10 if min(several(given["ratio"])) > 0 else 1)
    assert abs((count == 0).double().mean() - given["p_empty"]) <= error * 0.5
    frequency = masks.double().mean(0)
    least, most = given["mean_map_min"], given["mean_map_max"]
    for ours, theirs in ((frequency.min(), least), (frequency.max(), most)):
        # The extreme of grid^2 frequencies is itself drawn from the tail: one more standard error for it.
        assert abs(ours - theirs) <= (error + (2 / draws) ** 0.5) * (theirs * (1 - theirs)) ** 0.5 + 2e-3
    agreement = (masks[:, :, 1:] == masks[:, :, :-1]).double().mean((1, 2))
    assert abs(agreement.mean() - given["horizontal_neighbour_agreement"]) <= error * agreement.std()
    deciles(count, given, error)


def deciles(count: Tensor, given: dict, error: float) -> None:
    """A decile's share of draws at or below it matches 0, 10, ..., 100 %, as far as counts are whole numbers."""
    for tenth, value in enumerate(given["deciles"]):
        share = tenth / 10
        below, up_to = (count < value).double().mean(), (count <= value).double().mean()
        if 0 < tenth < 10:
            assert below - error * 0.5 <= share <= up_to + error * 0.5, (tenth, value, below, up_to)
    assert count.max() <= given["deciles"][10] + 1
