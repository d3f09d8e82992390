"""The GPU day's whole plan at tiny sizes on a CPU."""

import json
from pathlib import Path

import pytest
from PIL import Image

from checkpoints.cli import FAILED, INTERRUPTED, WRONG_COMMAND
from pretrain.sample import __main__ as sample
from probes.bench import day_plan, day_process, gpu_day
from tests.support.commands import exit_code
from tests.support.pictures import noise, write_parquet


def as_parquet(folders: Path, out: Path) -> Path:
    """Class folders as two files of rows, in the layout of Hugging Face's CIFAR-10."""
    for part, name in (("train", "train"), ("val", "test")):
        paths = sorted((folders / part).rglob("*.png"))
        classes = sorted({path.parent.name for path in paths})
        images = [Image.open(path) for path in paths]
        write_parquet(out / f"{name}.parquet", images, [classes.index(path.parent.name) for path in paths])
    return out


def test_the_whole_day_is_taken_once(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part, with its numbers, CIFAR-10's from parquet; the second call repeats none."""
    maps = tmp_path / "maps"
    sample.main(["--ade20k", str(maps), "--count", "10", "--size", "64"])
    out = tmp_path / "day"
    flags = ["--tiny", "--minutes", "30", "--out", str(out), "--ade20k", str(maps)]
    flags += ["--cifar10", str(as_parquet(folders, tmp_path / "cifar10"))]
    code = exit_code(gpu_day.main, flags)
    parts = json.loads((out / "gpu_day.json").read_text())["parts"]
    wrong = {name: one["said"] for name, one in parts.items() if one["state"] not in ("done", "left out")}
    assert code == 0 and not wrong, wrong
    assert (out / "profile" / "trace.json").exists() and "top1" in parts["cifar10_linear"]["numbers"]
    capsys.readouterr()
    assert exit_code(gpu_day.main, flags) == 0
    assert "at most" not in capsys.readouterr().out


def planned(monkeypatch: pytest.MonkeyPatch, *parts: day_plan.Part) -> None:
    monkeypatch.setattr(day_plan, "parts", lambda *arguments, **named: list(parts))


def test_a_part_that_fails_is_noted_and_the_next_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = day_plan.Part("good", ("pretrain.config", "sample"), 60)
    planned(monkeypatch, day_plan.Part("bad", ("pretrain.config", "nobody"), 60), good, day_plan.Part("no", (), 1, "no data"))
    assert exit_code(gpu_day.main, ["--out", str(tmp_path)]) == FAILED
    parts = json.loads((tmp_path / "gpu_day.json").read_text())["parts"]
    assert [parts[name]["state"] for name in ("bad", "good", "no")] == ["failed", "done", "left out"]
    table = (tmp_path / "gpu_day.md").read_text()
    assert "| good | done |" in table and "| no | left out |  | no data |" in table


@pytest.mark.parametrize(
    ("ended", "state", "code"),
    [
        (day_process.Ended(75, 1.0, True, False, "saved"), "cut", INTERRUPTED),
        (day_process.Ended(-9, 1.0, True, False, "x"), "over its limit", FAILED),
        (day_process.Ended(75, 1.0, False, True, "saved"), "cut", 75),
        (day_process.Ended(-15, 1.0, False, True, "x"), "cut", 130),
    ],
)
def test_what_is_cut_is_told_from_what_failed(
    ended: day_process.Ended, state: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, day_plan.Part("one", ("x",), 60, takes_rest=True))
    monkeypatch.setattr(day_process, "run", lambda *arguments: ended)
    assert exit_code(gpu_day.main, ["--out", str(tmp_path)]) == code
    assert json.loads((tmp_path / "gpu_day.json").read_text())["parts"]["one"]["state"] == state


def test_a_process_ends_at_its_limit(tmp_path: Path) -> None:
    ended = day_process.run(["pretrain.config"], tmp_path / "log", 0.0)
    assert ended.late and not ended.told and ended.code != 0


def test_a_wrong_day_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(gpu_day.main, ["--out", str(tmp_path), "--cifar10", str(tmp_path / "no")]) == WRONG_COMMAND
    write_parquet(tmp_path / "train.parquet", noise(2), [0, 1])
    alone = ["--out", str(tmp_path / "alone"), "--cifar10", str(tmp_path / "train.parquet")]
    assert exit_code(gpu_day.main, alone) == WRONG_COMMAND and not (tmp_path / "alone").exists()
    assert "has no test images" in capsys.readouterr().err
    (tmp_path / "gpu_day.json").write_text("[]")
    assert exit_code(gpu_day.main, ["--out", str(tmp_path)]) == WRONG_COMMAND
    assert "Traceback" not in capsys.readouterr().err
