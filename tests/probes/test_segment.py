"""Segmentation with a frozen backbone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain.sample import dense as sample_dense
from probes import segment
from probes.shared import windows
from tests.support import networks
from tests.support.networks import VIT, write_moved


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with four blocks."""
    return write_moved(tmp_path_factory.mktemp("ckpt") / "b.safetensors", VIT._replace(depth=4, image_size=32))


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade20k")
    sample_dense.write_ade20k(root, {"train": 16, "val": 8}, size=64)
    return root


def test_segmentation_counts_are_their_formulas() -> None:
    labels = torch.tensor([[[0, 0, 1], [1, 1, 255]]])
    said = torch.tensor([[[0, 1, 1], [1, 0, 0]]])
    confusion = segment.Confusion(3)
    confusion.add(said, labels)
    metrics = confusion.metrics()  # class 0: 1 of 3, class 1: 2 of 4; class 2 does not occur
    assert metrics["miou"] == pytest.approx(100 * (1 / 3 + 2 / 4) / 2) and metrics["aacc"] == pytest.approx(60)
    assert metrics["macc"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    squares = torch.tensor([[[0, 0, 5, 255], [0, 1, 255, 255], [1, 1, 2, 2], [1, 1, 2, 2]]])
    assert segment.patch_labels(squares, 2, 6).tolist() == [[0, 255, 1, 2]]


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_the_frozen_probe_writes_its_record(
    tiny: Path, ade20k: Path, tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    flags = [
        "--ckpt",
        str(tiny),
        "--data",
        str(ade20k),
        "--head",
        head,
        "--size",
        "64",
        "--epochs",
        "2",
        "--baseline",
        "--out",
        str(out),
    ]
    assert run_command(segment.main, flags) == DONE
    record = json.loads(out.read_text())
    numbers = record["metrics"]
    assert {"miou", "macc", "aacc", "untrained_miou"} <= numbers.keys() and 0 < numbers["miou"] < 100
    assert sum(name.startswith("held_out_miou_lr") for name in numbers) == (3 if head == "linear" else 0)
    assert run_command(segment.main, [*flags[:2], "--data", str(tmp_path), "--head", head]) == WRONG_COMMAND
    assert "there are no images in" in capsys.readouterr().err


@pytest.mark.parametrize("height, width, side", [(12, 12, 12), (12, 17, 12), (40, 12, 12), (31, 29, 6)])
def test_windows_cover_every_pixel_and_their_mean_is_exact(height: int, width: int, side: int) -> None:
    where = windows.corners(height, width, side)
    truth = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    cut = torch.stack([truth[:, upper : upper + side, left : left + side] for upper, left in where])
    assert torch.allclose(windows.joined(cut, where, height, width), truth)
    assert len(set(where)) == len(where) and (len(where) == 1) == (height == width == side)


def test_whole_images_count_at_the_size_of_their_maps() -> None:
    """46c01a2 cut the centre out: of an image of 24 x 96 three quarters were never asked about."""
    values = np.ones((24, 96), dtype=np.uint8)
    values[:, :32], values[:, 90:] = 2, 3
    part = segment.Labelled([np.zeros((24, 96, 3), dtype=np.uint8)], [values])
    one = segment.seen(part, 0, networks.backbone(), 32, 2)
    assert (one.height, one.width) == (32, 128) and len(one.features) == len(one.where) > 3
    labels = segment.label_view(values, None)
    confusion = segment.Confusion(3)
    everything = lambda features: torch.ones(len(features), 3, 2, 2) * torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)  # noqa: E731
    assert segment.add_whole(confusion, one, labels, everything, 32, "bilinear")
    assert confusion.counts.sum(dim=1).tolist() == [24 * 58, 24 * 32, 24 * 6] and confusion.counts[:, 1].sum() == 24 * 96


def test_the_learning_rate_is_chosen_without_test_images(ade20k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 took the rate that was best on the test images."""
    options = segment.SegmentOptions(data=str(ade20k), size=32, epochs=1, lr=(1e-3, 1e-1), images=6)
    data, backbone = segment.open_data(options), networks.backbone()
    first = segment.by_linear(backbone, data, options, 11)
    turned = data._replace(val=data.val._replace(labels=[np.full((64, 64), 3, dtype=np.uint8)] * 8))
    again = segment.by_linear(backbone, turned, options, 11)
    assert (first.setting, first.tried) == (again.setting, again.tried) and first.setting == max(
        first.tried, key=first.tried.__getitem__
    )
    held = segment.held_out(10, options)
    assert len(held) == 2 and not segment.held_out(10, replace(options, lr=(1.0,)))
