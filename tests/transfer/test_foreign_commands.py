"""Detectors and segmenters on other libraries' networks, as they are typed."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain.sample import dense as sample_dense
from tests.support.commands import ROOT, command
from tests.support.networks import VIT, write_moved

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

from transfer import ops

ops.register()


from transfer import train  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train and two to test in both layouts, and weights of timm's with nothing learnt in them."""
    root = tmp_path_factory.mktemp("world")
    counts = {"train": 4, "val": 2}
    (root / "coco").mkdir()
    sample_dense.write_coco(root / "coco", counts, size=64)
    (root / "ade20k").mkdir()
    sample_dense.write_ade20k(root / "ade20k", counts, size=64)
    for name in ("vit_small_patch14_dinov2", "test_resnet", "test_vit"):
        torch.manual_seed(0)
        weights = timm.create_model(name, num_classes=0).state_dict()
        save_file({key: weight.contiguous() for key, weight in weights.items()}, root / f"{name}.safetensors")
    return root


def flags_of(world: Path, task: str, name: str, out: Path, *more: object) -> list[str]:
    """One step."""
    length = {"coco": "train_cfg.max_epochs=1", "ade20k": "train_cfg.max_iters=1"}[task]
    flags = ["--task", task, "--ckpt", f"timm:{name}@{world / name}.safetensors", "--data", world / task, "--out", out]
    config = "sample" if task == "coco" else "sample_upernet"
    flags += ["--config", config, *more, "--cfg-options", "train_dataloader.batch_size=4", length]
    return [str(flag) for flag in flags]


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_dinov2_s_trains_a_step_of_each_task(world: Path, tmp_path: Path, task: str) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    flags = flags_of(world, task, "vit_small_patch14_dinov2", tmp_path)
    arguments = command("-m", "transfer.train", *flags, PYTHONPATH=paths)
    done = subprocess.run(**arguments, check=False, timeout=600)
    assert done.returncode == DONE, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "patches of 14 pixels after blocks 4, 6, 8, 12 of 12, resized to tokens of 16" in said
    assert "are normalised as the backbone's: mean 123.675 116.28 103.53, std 58.395 57.12 57.375" in said
    assert "the checkpoint's weights, verified" in (tmp_path / "log.txt").read_text()
    record = json.loads((tmp_path / "results" / f"transfer_{task}.json").read_text())
    assert record["protocol"]["mean"] == [123.675, 116.28, 103.53] and record["protocol"]["neck"] == "taps"
    assert record["protocol"]["position"] == "as the backbone's library does it"
    state = torch.load(next(tmp_path.glob("*_1.pth")), weights_only=False)["state_dict"]
    trained = {name.removeprefix("backbone.net.model."): one for name, one in state.items() if name.startswith("backbone.net.")}
    assert trained.keys() == timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict().keys()


def refused(world: Path, capsys: pytest.CaptureFixture[str], out: Path, *flags: str) -> str:
    assert run_command(train.main, list(flags)) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said and not out.exists()
    return said


def test_what_has_no_pyramid_or_no_simple_one_is_one_sentence(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(task: str, name: str, *more: object) -> str:
        return refused(world, capsys, tmp_path / "out", *flags_of(world, task, name, tmp_path / "out", *more))

    assert "is a pyramid by itself: leave it out" in said("ade20k", "test_resnet", "--neck", "simple")
    linear = said("ade20k", "test_vit", "--neck", "simple", "--config", "sample_linear")
    assert "--neck simple is for UPerNet" in linear
    assert "the config is for vit_small" in said("coco", "test_resnet", "--config", "cascade_vits16_1x")
    grey = write_moved(tmp_path / "grey.safetensors", VIT._replace(depth=4, channels=1, mean=(0.5,), std=(0.5,)))
    flags = ["--task", "coco", "--ckpt", str(grey), "--data", str(world / "coco"), "--out", str(tmp_path / "out")]
    assert "is for images of 1 channels: dense transfer reads RGB" in refused(world, capsys, tmp_path / "out", *flags)


def test_random_weights_of_a_network_of_stages_learn_their_own_statistics(world: Path, tmp_path: Path) -> None:
    flags = flags_of(world, "ade20k", "test_resnet", tmp_path, "--from-scratch", "true")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(**command("-m", "transfer.train", *flags, PYTHONPATH=paths), check=False, timeout=600)
    assert done.returncode == DONE, done.stderr[-3000:]
    assert "backbone: random weights" in (tmp_path / "log.txt").read_text()
    state: dict[str, Any] = torch.load(tmp_path / "iter_1.pth", weights_only=False)["state_dict"]
    before = timm.create_model("test_resnet", num_classes=0).state_dict()
    moved = [name for name in before if name.endswith("running_mean") and state[f"backbone.net.model.{name}"].any()]
    assert len(moved) == sum(name.endswith("running_mean") for name in before)


def test_a_segmenter_trains_on_the_simple_feature_pyramid(world: Path, tmp_path: Path) -> None:
    flags = flags_of(world, "ade20k", "test_vit", tmp_path, "--neck", "simple")
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(**command("-m", "transfer.train", *flags, PYTHONPATH=paths), check=False, timeout=600)
    assert done.returncode == DONE, done.stderr[-3000:]
    record = json.loads((tmp_path / "results" / "transfer_ade20k.json").read_text())
    assert record["protocol"]["neck"] == "simple" and "miou" in record["metrics"]
    state = torch.load(tmp_path / "iter_1.pth", weights_only=False)["state_dict"]
    assert any(name.startswith("neck.levels.0.") for name in state)
