"""Exports as their users load them: round trips of every target, the card's own lines, nothing left behind when it fails."""

import json
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from checkpoints import export, published, store
from checkpoints.architecture import Architecture, SwinSize, shape_of, swin_shape
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, run_command
from pretrain.backbones.open import open_backbone
from pretrain.evaluate import views
from pretrain.models.backbone import load_backbone
from pretrain.models.measured import pooled
from tests.support.networks import DEEP, SMALL_LAST, SWIN, VIT, moved, write_moved
from tests.support.trainings import trained
from transfer.exports import key_maps, targets

FOUR = swin_shape("swin", SwinSize(8, (2, 2, 2, 2), 1), 4, 96, 3, 3)
"""MMPretrain's Swin has four stages."""
LOADING = pytest.mark.filterwarnings("ignore")  # libraries remark on themselves


def exported(shape: Architecture, target: str, root: Path, *flags: str) -> Path:
    out = root / "out"
    assert (
        run_command(
            export.main, ["--ckpt", str(write_moved(root / "b.safetensors", shape)), "--to", target, "--out", str(out), *flags]
        )
        == DONE
    )
    assert not list(root.glob(".*"))
    return out


def tokens_of(shape: Architecture, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return moved(shape)(images)


def run_card(folder: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What the model card's own lines give."""
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert len(code.splitlines()) <= 5
    names: dict = {"images": images}
    with torch.no_grad():
        exec(code, names)
    return torch.as_tensor(names["tokens"])


@LOADING
@pytest.mark.parametrize("shape", [VIT, DEEP, SWIN, SMALL_LAST], ids=["vit", "deep", "swin", "small-last"])
def test_timm_loads_it_strictly_by_the_lines_of_the_card(
    shape: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, images = exported(shape, "timm", tmp_path), torch.randn(2, 3, shape.image_size, shape.image_size)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    found, ours = run_card(out, images, monkeypatch), tokens_of(shape, images)
    if shape.depths:
        assert_close(found.flatten(1, 2), ours[:, 1:], rtol=0, atol=1e-4)
    else:
        assert_close(found, ours, rtol=0, atol=1e-4)
    by_folder: Any = timm.create_model(f"local-dir:{out}", pretrained=True)
    with torch.no_grad():
        assert_close(by_folder.eval().forward_features(images), found, rtol=0, atol=1e-2 if shape.depths else 1e-5)
    assert tuple(by_folder.pretrained_cfg["mean"]) == shape.mean
    loaded = load_backbone(out)
    assert torch.equal(loaded.backbone(images), ours) and loaded.backbone.shape._replace(arch=shape.arch) == shape


@LOADING
@pytest.mark.parametrize(
    "shape", [VIT, DEEP, SWIN, shape_of("vit_small_patch14_reg4_dinov2", 14, 56)], ids=["vit", "deep", "swin", "dinov2"]
)
def test_transformers_loads_it_whole_with_its_image_processor(
    shape: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, images = exported(shape, "huggingface", tmp_path), torch.randn(2, 3, shape.image_size, shape.image_size)
    found, ours = run_card(out, images, monkeypatch), tokens_of(shape, images)
    start = 0 if shape.depths else 1
    assert_close(found[:, -(ours.shape[1] - 1) :], ours[:, 1:], rtol=0, atol=1e-4)
    with torch.no_grad():  # and we read what transformers does
        assert_close(load_backbone(out).backbone(images), ours, rtol=0, atol=1e-4)
    import transformers  # noqa: PLC0415 (heavy)

    model = transformers.AutoModel.from_pretrained(out)
    if shape.kind != "timm":
        with torch.no_grad():
            assert_close(model(images).pooler_output, ours[:, 0], rtol=0, atol=1e-4)
    assert start in (0, 1)
    with torch.inference_mode():  # 46c01a2 could not read it back
        assert_close(pooled(open_backbone(out).backbone, images), ours[:, 0], rtol=0, atol=1e-4)
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    processed = transformers.AutoImageProcessor.from_pretrained(out)(images=Image.fromarray(pixels), return_tensors="pt")[
        "pixel_values"
    ][0]
    size = shape.image_size
    expected = views.evaluation_view(pixels, views.evaluation_resize(size), size)
    assert processed.shape == expected.shape
    assert (processed - expected).abs().mean() < 0.02  # resizing rounds otherwise by at most two levels


@LOADING
@pytest.mark.parametrize("shape", [VIT, FOUR], ids=["vit", "swin"])
def test_mmpretrain_loads_it(shape: Architecture, tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain")
    out = exported(shape, "openmmlab", tmp_path)  # which compares the tokens
    assert 'prefix="backbone"' in (out / "README.md").read_text()
    state = torch.load(out / "backbone.pth", weights_only=True)["state_dict"]
    assert all(name.startswith("backbone.") for name in state)


def test_the_four_patches_that_swin_merges_are_gathered_as_openmmlab_does() -> None:
    """Its unfolding holds channel by channel, rows before columns: the same numbers by both ways."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 5, 4, 6), torch.randn(7, 20)
    four = torch.cat([x[:, :, a::2, b::2] for b in (0, 1) for a in (0, 1)], dim=1)  # ours: first down, then across
    ours = torch.einsum("oc,bchw->bohw", weight, four)
    unfolded = torch.nn.functional.unfold(x, 2, stride=2).unflatten(2, (2, 3))
    assert_close(torch.einsum("oc,bchw->bohw", key_maps._unfolded(weight), unfolded), ours)


@LOADING
@pytest.mark.parametrize("shape", [VIT, swin_shape("swin", SwinSize(16, (2, 2), 2), 4, 48, 3, 3)], ids=["vit", "swin"])
def test_onnxruntime_takes_any_batch_and_size(shape: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, size, step = exported(shape, "onnx", tmp_path), shape.image_size, shape.stride
    for count, height, width in ((1, size, size), (3, size + 2 * step, size), (2, 3 * step, 5 * step)):
        images = torch.randn(count, 3, height, width)
        assert_close(run_card(out, images, monkeypatch), tokens_of(shape, images), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with its record of k-NN."""
    root = tmp_path_factory.mktemp("run")
    trained(root / "run", "--shared-head", "true", "--data", folders, "--steps", 10)
    (root / "run" / "results").mkdir()
    record = {"metrics": {"top1": 43.21}, "data": {"val": "some images (val)"}}
    (root / "run" / "results" / "knn.json").write_text(json.dumps(record))
    return root / "run"


def test_the_originals_layout_has_its_names_and_comes_back(run: Path, parity_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "original"
    assert run_command(export.main, ["--ckpt", str(run), "--to", "original", "--out", str(out)]) == DONE
    with torch.serialization.safe_globals(published.ALLOWED):
        theirs, ours = (
            torch.load(path, weights_only=True)
            for path in (parity_dir / "checkpoint_published_layout.pth", out / "checkpoint.pth")
        )
    assert ours.keys() == theirs.keys() and isinstance(ours["args"], Namespace) and ours["args"].arch == "vit_tiny"
    for part in ("student", "teacher", "ibot_loss"):
        assert {re.sub(r"\d+", "0", name) for name in ours[part]} == {re.sub(r"\d+", "0", name) for name in theirs[part]}
    back, before = published.read(out / "checkpoint.pth"), store.read_torch(run / store.LAST)
    assert back.epoch == 2 and not back.lacks()
    for key in ("student", "teacher"):
        assert back.networks[key].keys() == before[key].keys()
        assert all(torch.equal(weight, before[key][name]) for name, weight in back.networks[key].items())
    assert torch.equal(back.centres["cls"], before["centres"]["cls"])
    again = tmp_path / "again"
    assert run_command(export.main, ["--ckpt", str(out / "checkpoint.pth"), "--to", "original", "--out", str(again)]) == DONE


@pytest.mark.parametrize("shape", [DEEP, SWIN], ids=["vit", "swin"])
def test_a_backbone_alone_becomes_what_the_original_publishes(shape: Architecture, tmp_path: Path) -> None:
    out = exported(shape, "original", tmp_path)
    state = torch.load(out / "checkpoint.pth", weights_only=True)["state_dict"]
    if shape.depths:
        assert "layers.0.downsample.reduction.weight" in state and "layers.0.blocks.0.attn.relative_position_index" in state
    images = torch.randn(1, 3, shape.image_size, shape.image_size)
    assert torch.equal(load_backbone(out / "checkpoint.pth").backbone(images), tokens_of(shape, images))


@LOADING
def test_the_card_says_where_it_comes_from(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "timm"
    assert run_command(export.main, ["--ckpt", str(run), "--to", "timm", "--out", str(out), "--key", "student"]) == DONE
    card = (out / "README.md").read_text()
    for words in (
        "vit_tiny, patch 8",
        "| network | student |",
        "| epochs | 2 |",
        "43.2 on some images (val)",
        store.sha256(run / store.LAST),
    ):
        assert words in card, words
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1,
        checkpoint_path=str(out / "model.safetensors"),
    )  # fmt: skip
    student = store.read_torch(run / store.LAST)["student"]
    assert all(torch.equal(weight, student[f"backbone.{name}"]) for name, weight in model.state_dict().items())


@LOADING
def test_a_file_that_differs_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = targets.TARGETS["timm"].write

    def spoilt(source: targets.Source, folder: Path) -> str:
        name = real(source, folder)
        weights = load_file(folder / name)
        weights["norm.bias"] += 1e-3
        save_file(weights, folder / name)
        return name

    monkeypatch.setitem(targets.TARGETS, "timm", targets.TARGETS["timm"]._replace(write=spoilt))
    flags = ["--ckpt", str(write_moved(tmp_path / "b.safetensors")), "--to", "timm", "--out", str(tmp_path / "out")]
    assert run_command(export.main, flags) == FAILED
    assert "tokens differ from ours by 1.0e-03: nothing is left behind" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]

    def broken(source: targets.Source, folder: Path) -> str:
        name = real(source, folder)
        os.truncate(folder / name, 100)
        return name

    monkeypatch.setitem(targets.TARGETS, "timm", targets.TARGETS["timm"]._replace(write=broken))
    assert run_command(export.main, flags) == FAILED
    assert "does not load" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


@LOADING
@pytest.mark.parametrize(
    ("shape", "target", "words"),
    [
        (SMALL_LAST, "huggingface", "the last stage of this one has 3 x 3 patches, fewer than the window of 4: give --to timm"),
        (SMALL_LAST, "openmmlab", "OpenMMLab gives every stage of a Swin the same window"),
        (shape_of("vit_small_patch14_reg4_dinov2", 14, 28), "openmmlab", "OpenMMLab has no backbone for"),
        (shape_of("vit_small_patch14_reg4_dinov2", 14, 28), "original", "the original has no"),
        (
            shape_of("eva02_tiny_patch14_224", 14, 28),
            "huggingface",
            "transformers has no model of its own for eva02_tiny_patch14_224",
        ),
    ],
)
def test_what_a_library_cannot_hold_is_said_before_it_is_written(
    shape: Architecture, target: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        run_command(
            export.main, ["--ckpt", str(write_moved(tmp_path / "b.safetensors", shape)), "--to", target, "--out", str(out)]
        )
        == WRONG_COMMAND
    )
    assert words in capsys.readouterr().err and not out.exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    flags = ["--ckpt", str(write_moved(tmp_path / "b.safetensors")), "--to", "timm", "--out", str(tmp_path / "out")]
    assert run_command(export.main, flags) == WRONG_COMMAND
    assert "exists already: give another --out" in capsys.readouterr().err and (tmp_path / "out" / "mine.txt").exists()
