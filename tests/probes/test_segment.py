"""Segmentation with a frozen backbone."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, run_command
from pretrain.sample import dense as sample_dense
from probes.segment import __main__ as segment
from probes.segment import data as segment_data
from probes.segment import features as segment_features
from probes.segment.features import Kept, kept
from probes.segment.held_out import held_out
from probes.segment.knn import bank_of, by_neighbours, patch_labels
from probes.segment.linear import CHANNELS, by_linear, fit, statistics
from probes.segment.options import SegmentOptions
from probes.segment.scores import Confusion, add_whole
from probes.shared import memory, windows
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
    confusion = Confusion(3)
    confusion.add(said, labels)
    metrics = confusion.metrics()  # class 0: 1 of 3, class 1: 2 of 4; class 2 does not occur
    assert metrics["miou"] == pytest.approx(100 * (1 / 3 + 2 / 4) / 2) and metrics["aacc"] == pytest.approx(60)
    assert metrics["macc"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    squares = torch.tensor([[[0, 0, 5, 255], [0, 1, 255, 255], [1, 1, 2, 2], [1, 1, 2, 2]]])
    assert patch_labels(squares, 2, 6).tolist() == [[0, 255, 1, 2]]


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
    part = segment_data.Labelled([np.zeros((24, 96, 3), dtype=np.uint8)], [values])
    one = segment_features.seen(part, 0, networks.backbone(), 32, 2)
    assert (one.height, one.width) == (32, 128) and len(one.features) == len(one.where) > 3
    labels = segment_data.label_view(values, None)
    confusion = Confusion(3)
    everything = lambda features: torch.ones(len(features), 3, 2, 2) * torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)  # noqa: E731
    assert add_whole(confusion, one, labels, everything, 32, "bilinear")
    assert confusion.counts.sum(dim=1).tolist() == [24 * 58, 24 * 32, 24 * 6] and confusion.counts[:, 1].sum() == 24 * 96


def test_the_learning_rate_is_chosen_without_test_images(ade20k: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 took the rate that was best on the test images."""
    options = SegmentOptions(data=str(ade20k), size=32, epochs=1, lr=(1e-3, 1e-1), images=6)
    data, backbone = segment_data.open_data(options), networks.backbone()
    first = by_linear(backbone, data, options, 11)
    turned = data._replace(val=data.val._replace(labels=[np.full((64, 64), 3, dtype=np.uint8)] * 8))
    again = by_linear(backbone, turned, options, 11)
    assert (first.setting, first.tried) == (again.setting, again.tried) and first.setting == max(
        first.tried, key=first.tried.__getitem__
    )
    held = held_out(10, options)
    assert len(held) == 2 and not held_out(10, replace(options, lr=(1.0,)))


def by_the_plain_loop(known: Kept, options: SegmentOptions, rates: tuple[float, ...], classes: int) -> list[torch.nn.Linear]:
    """All windows on the device at once and one backward pass for all rates, as 0.1.0 had it."""
    torch.manual_seed(options.seed)
    features, labels = known.features.float(), known.labels.long()
    some = features[: 20 * options.batch_size].flatten(0, 1)
    normed = (features - some.mean(dim=0)) / (some.std(dim=0) + 1e-6)
    heads = [torch.nn.Linear(features.shape[2], classes) for _ in rates]
    groups = [{"params": head.parameters(), "lr": lr} for head, lr in zip(heads, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * -(-len(features) // options.batch_size))
    side = round(features.shape[1] ** 0.5)
    for _ in range(options.epochs):
        for batch in torch.randperm(len(features)).split(options.batch_size):
            maps = [head(normed[batch]).transpose(1, 2).unflatten(2, (side, side)) for head in heads]
            logits = [F.interpolate(one, size=labels.shape[1:], mode="bilinear") for one in maps]
            losses = [F.cross_entropy(one, labels[batch], ignore_index=255) for one in logits]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return heads


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_where_features_lie_changes_no_bit(ade20k: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHARE", share)
    options = SegmentOptions(data=str(ade20k), size=32, epochs=2, batch_size=3)
    backbone, data, rates = networks.backbone(), segment_data.open_data(options), (1e-3, 1e-1)
    with kept(backbone, data, options.batch_size) as known:
        assert torch.equal(known.of_image(3, 32, torch.device("cpu")).features.float(), seen_in_half(data, 3))
        plain = by_the_plain_loop(known, options, rates, 11)
        mine = fit(known, range(len(known.rows)), options, rates, 11, torch.device("cpu"))
    for one, other in zip(mine, plain, strict=True):
        head = one.args[0]  # type: ignore[attr-defined]
        assert torch.equal(head.weight, other.weight) and torch.equal(head.bias, other.bias)


def seen_in_half(data: segment_data.Set, number: int) -> torch.Tensor:
    return segment_features.seen(data.train, number, networks.backbone(), 32, 3).features.half().float()


def test_statistics_of_channels_do_not_depend_on_how_many_are_taken_at_once() -> None:
    features = torch.randn(6, 9, 2 * CHANNELS + 7, generator=torch.Generator().manual_seed(0)).half()
    rows = torch.tensor([0, 2, 5, 1])
    mean, spread = statistics(features, rows)
    every = features[rows].float().flatten(0, 1)
    assert torch.equal(mean, every.mean(dim=0)) and torch.equal(spread, every.std(dim=0) + 1e-6)


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_what_the_features_need_is_said_before_and_what_has_no_room_is_one_sentence(
    head: str, tiny: Path, ade20k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--ckpt", str(tiny), "--data", str(ade20k), "--size", "32", "--epochs", "1", "--head", head]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken = r"features of the 16 windows of 16 training images take " if head == "linear" else "64 patches of each of 16"
    for share, where in ((0.5, "held in memory"), (0.0, f"held in a temporary file in {tmp_path}")):
        monkeypatch.setattr(memory, "SHARE", share)
        assert run_command(segment.main, [*flags, "--out", str(tmp_path / f"{share}.json")]) == DONE
        said = capsys.readouterr().out
        assert taken in said and where in said
    mious = [json.loads((tmp_path / f"{share}.json").read_text())["metrics"] for share in (0.5, 0.0)]
    assert mious[0] == mious[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.0.json", "0.5.json"]
    monkeypatch.setattr(memory, "_room", lambda folder: 1000)
    assert run_command(segment.main, [*flags, "--out", str(tmp_path / "r.json")]) == FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "has room for 1 kB: give fewer --images" in error and "set TMPDIR" in error


def test_k_is_chosen_without_test_images(ade20k: Path) -> None:
    options = SegmentOptions(data=str(ade20k), size=32, head="knn", k=(1, 5), images=6)
    data, backbone = segment_data.open_data(options), networks.backbone()
    first = by_neighbours(backbone, data, options, 11)
    turned = data._replace(val=data.val._replace(labels=[np.full((64, 64), 3, dtype=np.uint8)] * 8))
    again = by_neighbours(backbone, turned, options, 11)
    assert (first.setting, first.tried) == (again.setting, again.tried) and set(first.tried) == {"k 1", "k 5"}
    assert first.setting == max(first.tried, key=first.tried.__getitem__)
    one = by_neighbours(backbone, data, replace(options, k=(int(first.setting[2:]),)), 11)
    assert torch.equal(one.confusion.counts, first.confusion.counts) and not one.tried
    with bank_of(backbone, data, options, 11) as bank:
        held = sorted(held_out(6, options))
        assert len(held) == 1 and not set(bank.without(held).image.tolist()) & set(held)
        assert len(bank.without(held).tokens) == len(bank.tokens) - int((bank.image == held[0]).sum())


def two_colours(root: Path, classes: int) -> Path:
    """Images twice as wide as high, left black and right white; label 7 is the border between, 0 left, 1 right."""
    for images, labels in segment_data.FOLDERS.values():
        (root / images).mkdir(parents=True)
        (root / labels).mkdir(parents=True)
        for number in range(3):
            values = np.zeros((32, 64), dtype=np.uint8)
            values[:, 24 + 8 * number :] = 1
            Image.fromarray(np.repeat(values[..., None] * 255, 3, axis=2)).save(root / images / f"{number}.png")
            values[:8] = 7
            Image.fromarray(values).save(root / labels / f"{number}.png")
    (root / "classes.txt").write_text("".join(f"class {number}\n" for number in range(classes)))
    return root


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_both_heads_read_labels_by_the_same_flags(head: str, tiny: Path, tmp_path: Path) -> None:
    """Whole images, void labels neither learnt nor counted, classes by the list."""
    data, out = two_colours(tmp_path / "data", 3), tmp_path / "r.json"
    flags = ["--ckpt", str(tiny), "--data", str(data), "--head", head, "--size", "32", "--lr", "0.01", "--epochs", "20"]
    flags += ["--background", "none", "--out", str(out)]
    assert run_command(segment.main, flags) == FAILED  # label 7 is beyond the list
    assert run_command(segment.main, [*flags, "--ignore", "7"]) == DONE
    record = json.loads(out.read_text())
    assert record["protocol"]["classes"] == 3 and record["protocol"]["void_labels"] == [7, 255]
    assert record["metrics"]["miou"] == pytest.approx(99.5, abs=1)  # class 2 neither occurs nor is answered
    out.unlink()
    assert (
        run_command(segment.main, [*flags, "--ignore", "7", "--held-out", "50", "--lr", "1e-9", "1e-2", "--k", "1", "3"]) == DONE
    )
    record = json.loads(out.read_text())
    assert sum(name.startswith("held_out_miou") for name in record["metrics"]) == 2
    assert record["protocol"]["lr_chosen_on" if head == "linear" else "k_chosen_on"] == "50 % of the training images"
    assert head == "knn" or record["protocol"]["chosen"] == "lr 0.01"
