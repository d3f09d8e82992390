"""Refused steps and their replay, and the curves of a log."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from checkpoints import store
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, run_command
from pretrain import curves, train
from pretrain.engine import guard
from pretrain.engine.verdict import Verdict
from pretrain.method.ibot import Losses
from tests.support.commands import SMALL


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def spoil(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    """Make a global crop of some steps infinite."""
    taken = train.train_step
    steps = iter(range(10**6))

    def spoilt(student: Any, teacher: Any, optimizer: Any, given: Any, *rest: Any) -> Any:
        if first <= next(steps) <= last:
            given[0].crops[1, 2, 0, 3, 4] = math.inf
        return taken(student, teacher, optimizer, given, *rest)

    monkeypatch.setattr(train, "train_step", spoilt)


def test_a_refused_step_is_written_down_and_replayed(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 3, 3)
    flags = [*SMALL, "--data", str(folders), "--out", str(tmp_path), "--drop-path", "0.3", "--precision", "fp32"]
    assert run_command(train.main, [*flags, "--epochs", "2"]) == DONE
    (file,) = tmp_path.glob("refused-*.pt")
    lines = lines_of(tmp_path)
    assert [line["replay"] for line in lines if "refused_step" in line] == [str(file)]
    assert [line["skipped_steps"] for line in lines if "loss" in line][-1] == 1
    capsys.readouterr()
    assert run_command(train.main, ["--replay", str(file)]) == DONE
    said = capsys.readouterr().out
    assert "step 3 of" in said and "first things first" in said
    assert said.index("crops of batch 1, as they came from the loader") < said.index("output of")
    store.save_file(file, {**store.read_torch(file), "random_cuda": torch.get_rng_state()})
    assert run_command(train.main, ["--replay", str(file)]) == DONE
    assert "was computed on a GPU, and there is none here" in capsys.readouterr().out
    last = store.read_torch(tmp_path / store.LAST)
    assert all(bool(weight.isfinite().all()) for weight in last["student"].values())


def test_a_replay_repeats_the_numbers_of_the_step(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused, seen = guard.Guard.accepts, []

    def refuse(self: guard.Guard, losses: Losses, lengths: Tensor) -> Verdict:
        seen.append((losses.cls.item(), losses.patch.item()))
        return refused(self, losses, lengths * (math.nan if len(seen) == 4 else 1))

    monkeypatch.setattr(guard.Guard, "accepts", refuse)
    flags = [*SMALL, "--data", str(folders), "--out", str(tmp_path), "--drop-path", "0.3", "--steps", "6"]
    assert run_command(train.main, flags) == DONE
    capsys.readouterr()
    assert run_command(train.main, ["--replay", str(next(tmp_path.glob("refused-*.pt")))]) == DONE
    said = capsys.readouterr().out
    assert f"losses: [CLS] {seen[3][0]:.4f}, patch {seen[3][1]:.4f}" in said and "everything is finite here" in said


def test_many_refused_steps_stop_the_run_with_advice(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 7, 10**6)
    flags = [*SMALL, "--data", str(folders), "--out", str(tmp_path), "--epochs", "9"]
    assert run_command(train.main, flags) == FAILED
    complained = capsys.readouterr().err
    assert "20 steps in a row" in complained and "--replay FILE" in complained
    assert len(list(tmp_path.glob("refused-*.pt"))) == 3  # enough is enough
    found = store.load_run(tmp_path)
    assert found is not None and all(bool(weight.isfinite().all()) for weight in found.state["teacher"].values())


def test_what_is_no_refused_step_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name, message in (("other.pt", "is not a refused step"), ("none.pt", "there is no file")):
        assert run_command(train.main, ["--replay", str(tmp_path / name)]) == WRONG_COMMAND
        assert message in capsys.readouterr().err


def test_the_knn_curve_may_use_other_images_than_the_run(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted((folders / "train").rglob("*.png"))):
        (flat / f"{number}.png").write_bytes(file.read_bytes())
    flags = [*SMALL, "--data", str(flat), "--steps", "5", "--out", str(tmp_path / "run")]
    assert run_command(train.main, [*flags, "--knn-data", str(folders)]) == DONE
    assert [line["step"] for line in lines_of(tmp_path / "run") if "knn" in line] == [0, 5]
    assert run_command(train.main, [*flags[:-1], str(tmp_path / "other"), "--knn-data", str(flat)]) == WRONG_COMMAND
    assert "has no labels" in capsys.readouterr().err


def test_curves_are_drawn_from_the_log(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, "--data", str(folders), "--steps", "10"]
    for name in ("one", "two"):
        assert run_command(train.main, [*flags, "--out", str(tmp_path / name)]) == DONE
    lines = curves.read(tmp_path / "one")
    assert curves.series(lines, "loss_cls")[0] == [2, 4, 6, 8, 10] and curves.series(lines, "knn")[0] == [0, 5, 10]
    figure = curves.draw({"one": lines, "two": curves.read(tmp_path / "two")})
    shown = [len(panel.lines) for panel in figure.axes]
    assert shown == [2, 3, 1, 1, 1, 2] * 2
    for suffix in ("png", "svg"):
        out = tmp_path / f"curves.{suffix}"
        assert run_command(curves.main, ["--runs", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(out)]) == DONE
        assert out.stat().st_size > 10_000
    for wrong, code in ((["--runs", str(folders)], WRONG_COMMAND), ([], WRONG_COMMAND)):
        assert run_command(curves.main, wrong) == code
    assert run_command(curves.main, ["--runs", str(tmp_path / "one"), "--out", str(tmp_path / "no" / "x.png")]) == FAILED
    assert "holds no readable metrics.jsonl" in capsys.readouterr().err


def test_a_curve_that_cannot_be_measured_is_said_before_the_first_step(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ImageNet's val/ as it is distributed, 50,000 files in one folder; and labelled images of other channels."""
    shutil.copytree(folders / "train", tmp_path / "flat" / "train")
    (tmp_path / "flat" / "val").mkdir()
    for path in (folders / "val").rglob("*.png"):
        shutil.copy(path, tmp_path / "flat" / "val")
    flags = [*SMALL, "--steps", "1", "--out", str(tmp_path / "run")]
    assert run_command(train.main, [*flags, "--data", str(tmp_path / "flat")]) == WRONG_COMMAND
    complained = capsys.readouterr().err
    assert "flat/val has no labels, which the k-NN curve needs: sort its images into class folders" in complained
    (tmp_path / "six").mkdir()
    for number in range(8):
        np.save(tmp_path / "six" / f"{number}.npy", np.full((32, 32, 6), number / 8, dtype=np.float32))
    other = ["--data", str(tmp_path / "six"), "--channels", "6", "--knn-data", str(folders / "train")]
    assert run_command(train.main, [*flags, *other]) == WRONG_COMMAND
    assert "can be used with --channels 6 for the k-NN curve: give other --knn-data" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
