"""Segmentation with a frozen backbone."""

import json
from pathlib import Path

import pytest
import torch

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain.sample import dense as sample_dense
from probes import segment
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
    assert numbers["miou"] == max(value for name, value in numbers.items() if name.startswith(("miou_lr", "miou_k")))
    assert run_command(segment.main, [*flags[:2], "--data", str(tmp_path), "--head", head]) == WRONG_COMMAND
    assert "there are no images in" in capsys.readouterr().err
