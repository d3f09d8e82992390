"""Backbones of every kind: as students, through training, and from each other's checkpoints."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.testing import assert_close

from checkpoints import published, store
from checkpoints.architecture import Architecture, SwinSize, shape_of, swin_shape, timm_shape
from checkpoints.cli import DONE, WRONG_COMMAND, UserError, run_command
from pretrain import train
from pretrain.batches.masking import as_masks
from pretrain.method.heads import Head
from pretrain.method.ibot import Student, Teacher, center_and_sharpen, losses
from pretrain.models.backbone import Trainable, load_backbone, make, starting_weights
from pretrain.models.timm_vit import AnyViT
from pretrain.sample import __main__ as sample
from tests.support import networks
from tests.support.commands import HEADS, SHORT, SMALL
from tests.support.trainings import trained

VIT = networks.VIT._replace(arch="vit_tiny")
SWIN = swin_shape("swin", SwinSize(16, (2, 2), 2), 4, 48, 3, 3)
REGISTERS = "vit_little_patch16_reg4_gap_256"


def test_named_architectures_have_their_published_sizes() -> None:
    millions = {"vit_small": 21.7, "vit_base": 85.8, "vit_large": 303.3, "swin_tiny": 27.5, "swin_small": 48.8, "swin_base": 86.7}
    for name, expected in millions.items():
        shape = shape_of(name, 4 if name.startswith("swin") else 16, 224)
        with torch.device("meta"):
            backbone = make(shape, maskable=False)
        assert round(sum(parameter.numel() for parameter in backbone.parameters()) / 1e6, 1) == expected, name
    assert shape_of("swin_tiny", 4, 224, window=14).window == 14 and shape_of("swin_tiny", 4, 224).stride == 32
    assert shape_of("vit_small", 8, 224).embed_dim == 384 and shape_of("vit_base", 14, 224).stride == 14


@pytest.mark.parametrize(
    ("name", "patch", "words"),
    [
        ("resnet50", 16, "unknown --arch resnet50|has no class token"),
        (REGISTERS, 16, "has no class token"),
        ("vit_small_patch16_dinov2_typo", 16, "unknown --arch"),
        ("beit_base_patch16_224", 16, "timm cannot make it for crops of several sizes"),
    ],
)
def test_architectures_that_cannot_be_used_are_refused_in_words(name: str, patch: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(shape_of(name, patch, 224), maskable=True)


@pytest.mark.parametrize("size, words", [(100, "not divisible by --patch-size 16"), (208, None)])
def test_sizes_must_be_divisible(size: int, words: str | None) -> None:
    if words:
        with pytest.raises(UserError, match=words):
            shape_of("vit_small", 16, size)
    else:
        with pytest.raises(UserError, match="not divisible by its patch size x 8"):
            shape_of("swin_tiny", 4, size)


def losses_of(backbones: tuple[Trainable, Trainable], shape: Architecture, local: int) -> torch.Tensor:
    head: dict[str, Any] = {
        "out_dim": 12,
        "patch_out_dim": 12,
        "hidden_dim": 16,
        "bottleneck_dim": 8,
        "shared": True,
        "norm_last_layer": False,
    }
    student, teacher = Student(backbones[0], Head(shape.embed_dim, **head)), Teacher(backbones[1], Head(shape.embed_dim, **head))
    teacher.copy(student)
    side = shape.image_size // shape.stride
    grid = torch.rand(2, 3, side, side) < 0.4
    grid[:, :, 0, 0] = True
    masks, crops = as_masks(grid), torch.randn(2, 3, 3, shape.image_size, shape.image_size)
    answer = teacher(crops, masks)
    logits = student(crops, masks, torch.randn(2, 3, 3, local, local))
    found = losses(logits, center_and_sharpen(answer, teacher.centres, 0.04, 0.07), masks, 1.0, 1.0)
    found.total.backward()
    without = [name for name, parameter in student.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not without, without
    return found.total


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("shape", [SWIN, shape_of("vit_tiny", 8, 32, depth=2, width=64)], ids=lambda shape: shape.arch)
def test_student_and_teacher_of_every_kind_give_losses_and_gradients(shape: Architecture, checkpointed: bool) -> None:
    torch.manual_seed(0)
    student = make(shape, maskable=True, drop_path=0.3, checkpointed=checkpointed).train()
    assert losses_of((student, make(shape, maskable=False)), shape, shape.stride * 2).isfinite()


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_timms_vits_with_registers_layerscale_swiglu_and_rotary_positions_are_students(name: str) -> None:
    torch.manual_seed(0)
    patch = 16 if "16" in name else 14
    shape = shape_of(name, 16, 4 * patch)
    network = make(shape, maskable=True)
    if "eva" in name:  # positions of another grid are interpolated in both ways
        assert shape.embed_dim == 192
    assert losses_of((network, make(shape, maskable=False)), shape, 2 * patch).isfinite()
    images, mask = torch.randn(1, 3, 4 * patch, 4 * patch), torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    with torch.no_grad():
        network.eval()
        network.masked_embed.fill_(3.0)
        plain, masked = network(images), network(images, mask)
        assert plain.shape == (1, 17, shape.embed_dim)
        assert_close(network(images, mask & False), plain)
        other = images.clone()
        other[:, :, patch : 2 * patch, 2 * patch : 3 * patch] = 7.0  # nothing of a masked patch is seen
        assert_close(network(other, mask), masked)
        assert not torch.allclose(network(other), plain)
        assert_close(network.last_blocks(images, 2)[-1], plain)


def test_swins_mask_hides_a_square_of_patches() -> None:
    torch.manual_seed(0)
    network, images = make(SWIN, maskable=True).eval(), torch.randn(1, 3, 48, 48)
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[0, 2, 3] = True
    other = images.clone()
    other[:, :, 16:24, 24:32] = 7.0
    with torch.no_grad():
        assert_close(network(other, mask), network(images, mask))
        assert not torch.allclose(network(other), network(images))


def test_dropped_paths_of_swin_keep_the_mean() -> None:
    torch.manual_seed(0)
    network = make(SWIN, maskable=False, drop_path=0.5).train()
    images = torch.randn(1, 3, 48, 48).expand(64, -1, -1, -1)
    with torch.no_grad():
        block = network.blocks[-1]
        x = torch.randn(1, 6, 6, 32).expand(4000, -1, -1, -1)
        mean = block(x).mean(dim=0)
        network.eval()
        assert (mean - block(x[:1])[0]).abs().mean() < 0.05 * (block(x[:1]) - x[:1]).abs().mean()
        assert torch.equal(network(images)[0], network(images)[1])


@pytest.mark.parametrize(
    "flags",
    [
        "--arch swin_tiny --patch-size 2 --window 7 --global-crops-size 48 --local-crops-size 16 --pred-start-epoch 1",
        "--arch vit_small_patch14_reg4_dinov2 --global-crops-size 42 --local-crops-size 14 --lr 0.0001",
    ],
)
def test_other_architectures_train_and_their_checkpoints_describe_themselves(tmp_path: Path, flags: str) -> None:
    """Two epochs of two steps."""
    data, out = tmp_path / "data", tmp_path / "run"
    sample.main(["--out", str(data), "--count", "10", "--size", "32"])
    rest = [*HEADS, *SHORT, *flags.split(), *"--batch-size-per-gpu 4 --steps 4 --knn-every 0".split()]
    assert run_command(train.main, [*rest, "--data", str(data), "--out", str(out)]) == DONE
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    patch = [line["loss_patch"] for line in lines if "loss" in line]
    if "swin" in flags:
        assert patch[0] == 0 and patch[-1] > 0  # masks begin with the second epoch
    for key in ("teacher", "student"):
        loaded = load_backbone(out, key=key)
        assert loaded.backbone.shape.arch == flags.split()[1]
        state = store.read_torch(out / store.LAST)[key]
        for name, weight in loaded.backbone.state_dict().items():
            assert torch.equal(weight, state[f"backbone.{name}"])


def test_a_backbone_may_begin_another_of_other_size_and_channels() -> None:
    torch.manual_seed(0)
    for shape in (VIT, SWIN):
        network = make(shape, maskable=False)
        same = starting_weights(network, shape, Path("x"))
        assert all(torch.equal(same[name], weight) for name, weight in network.state_dict().items())
        other = shape._replace(image_size=shape.image_size * 2, channels=6)
        make(other, maskable=False).load_state_dict(starting_weights(network, other, Path("x")))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
def test_a_backbone_of_timm_may_begin_another_of_other_size(name: str) -> None:
    """DINOv2 has positions of 518 pixels, with [CLS] and without (registers); at 224 they are those that timm resizes."""
    network = make(timm_shape(name, 518, 3), maskable=False).eval()
    assert isinstance(network, AnyViT)
    small = make(network.shape._replace(image_size=224), maskable=False).eval()
    small.load_state_dict(starting_weights(network, small.shape, Path("x")))
    other: Any = timm.create_model(name, img_size=224, num_classes=0).eval()
    known = sys.modules[type(other).__module__]
    other.load_state_dict(known.checkpoint_filter_fn(dict(network.model.state_dict()), other), strict=False)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = other.forward_features(images)[:, other.num_prefix_tokens :]
        assert_close(small(images)[:, 1:], expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_told_with_the_flags_that_would() -> None:
    network = make(VIT, maskable=False)
    with pytest.raises(UserError, match="x has patch size 8: give --arch vit_tiny --patch-size 8 --width 64 --depth 2"):
        starting_weights(network, VIT._replace(patch_size=16), Path("x"))
    with pytest.raises(UserError, match="x has arch vit_tiny: give --arch vit_tiny"):
        starting_weights(network, SWIN, Path("x"))
    swin = make(SWIN._replace(arch="swin_tiny"), maskable=False)
    with pytest.raises(UserError, match="window 3: give --arch swin_tiny --patch-size 4 --window 3"):
        starting_weights(swin, SWIN._replace(window=7), Path("x"))


@pytest.fixture(scope="module")
def whole(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run."""
    return trained(tmp_path_factory.mktemp("run") / "whole", "--data", folders, "--steps", 5, "--freeze-last-layer", 0)


def test_a_full_checkpoint_begins_a_run_with_heads_centres_and_moments(
    folders: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of zero and one step, everything is still what it was."""
    flags = [
        *SMALL,
        "--data",
        str(folders),
        "--init-from",
        str(whole),
        "--lr",
        "0",
        "--min-lr",
        "0",
        "--steps",
        "1",
        "--knn-every",
        "0",
    ]
    flags += ["--freeze-last-layer", "0"]
    out = tmp_path / "next"
    assert run_command(train.main, [*flags, "--momentum-teacher", "1", "--out", str(out)]) == DONE
    assert "backbones, heads, centres, the optimizer's moments; schedules begin anew" in capsys.readouterr().out
    before, after = (store.read_torch(folder / store.LAST) for folder in (whole, out))
    for key in ("student", "teacher"):
        for name, weight in before[key].items():
            assert torch.equal(after[key][name], weight), name
    steps = {int(state["step"]) for state in after["optimizer"]["state"].values()}
    assert steps == {6}, steps  # five before, one now
    moved = [
        (before["optimizer"]["state"][number]["exp_avg_sq"], state["exp_avg_sq"])
        for number, state in after["optimizer"]["state"].items()
    ]
    assert all(bool((new >= 0.998 * old).all()) for old, new in moved) and any(bool((old > 0).any()) for old, _ in moved)
    assert not torch.equal(before["centres"]["cls"], after["centres"]["cls"])  # moved once from where they were
    distance = (before["centres"]["cls"] - after["centres"]["cls"]).norm() / before["centres"]["cls"].norm()
    assert distance < 0.3


def test_heads_that_do_not_fit_are_told_with_their_flags_or_left_out(
    folders: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        *SMALL,
        "--data",
        str(folders),
        "--init-from",
        str(whole),
        "--steps",
        "1",
        "--knn-every",
        "0",
        "--out",
        str(tmp_path / "n"),
    ]
    other = ["--out-dim", "64", "--patch-out-dim", "64"]
    assert run_command(train.main, [*flags, *other]) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert "--out-dim 32 --patch-out-dim 32 --head-hidden-dim 32 --head-bottleneck-dim 16, or --init-heads false" in said
    assert run_command(train.main, [*flags, *other, "--init-heads", "false"]) == DONE
    assert "heads begin fresh (as asked)" in capsys.readouterr().out
    alone = [*flags[: flags.index("--init-from") + 1], str(whole / store.BACKBONE), *flags[flags.index("--steps") :]]
    assert run_command(train.main, [*alone[:-1], str(tmp_path / "m")]) == DONE
    assert "heads begin fresh (it has none)" in capsys.readouterr().out


def test_training_goes_on_from_the_originals_full_checkpoint(
    folders: Path, parity_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its moments are found by name: after a step they have their shapes and step counts."""
    file = parity_dir / "checkpoint_published_layout.pth"
    contents = published.read(file)
    backbone = load_backbone(file).backbone
    shape, teacher = backbone.shape, contents.networks["teacher"]
    sizes = {
        "--out-dim": len(teacher["head.last_layer.weight_v"]),
        "--patch-out-dim": len(teacher["head.last_layer2.weight_v"]),
        "--head-hidden-dim": len(teacher["head.mlp.0.weight"]),
        "--head-bottleneck-dim": len(teacher["head.mlp.4.weight"]),
        "--width": shape.embed_dim,
        "--depth": shape.depth,
        "--patch-size": shape.patch_size,
        "--global-crops-size": shape.image_size,
        "--local-crops-size": shape.patch_size * 2,
    }
    flags = [
        *SMALL,
        "--shared-head",
        "true",
        "--norm-last-layer",
        "false",
        *(str(word) for pair in sizes.items() for word in pair),
    ]
    flags += [
        "--data",
        str(folders),
        "--init-from",
        str(file),
        "--out",
        str(tmp_path),
        "--knn-every",
        "0",
        "--freeze-last-layer",
        "0",
    ]
    assert run_command(train.main, [*flags, "--lr", "0", "--min-lr", "0", "--momentum-teacher", "1", "--steps", "1"]) == DONE
    assert "the optimizer's moments" in capsys.readouterr().out
    after = store.read_torch(tmp_path / store.LAST)
    for key in ("student", "teacher"):
        for name, weight in contents.networks[key].items():
            assert torch.equal(after[key][name], weight), name
    before = {int(state["step"]) for state in contents.optimizer["state"].values()}
    assert {int(state["step"]) for state in after["optimizer"]["state"].values()} == {step + 1 for step in before}
