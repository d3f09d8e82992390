"""Where the log goes besides metrics.jsonl: TensorBoard's file where it is installed, and trackers."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain import train
from pretrain.engine import board
from tests.support.commands import SMALL


def flags(folders: Path, out: Path, *more: str) -> list[str]:
    return [*SMALL, "--data", str(folders), "--steps", "4", "--out", str(out), *more]


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *rest: None if module == name else find(module, *rest))
    for module in [module for module in sys.modules if module.split(".")[0] == name or module == f"torch.utils.{name}"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_log_goes_where_a_team_looks(name: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, dict]] = []
    begun: list[dict] = []
    fake = types.ModuleType(name)
    log = lambda values, step: sent.append((step, values))  # noqa: E731

    def init(**named: object) -> types.SimpleNamespace:
        begun.append(named)
        return types.SimpleNamespace(log=log)

    fake.init = init  # type: ignore[attr-defined]
    fake.set_experiment = fake.log_params = lambda *_: None  # type: ignore[attr-defined]
    fake.start_run = lambda **named: begun.append({"name": named["run_name"]})  # type: ignore[attr-defined]
    fake.log_metrics = log  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, fake)
    assert run_command(train.main, flags(folders, tmp_path / "run", "--track", name)) == DONE
    assert [step for step, values in sent if "loss" in values] == [2, 4]
    assert [one["name"] for one in begun] == ["run"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_tracker_is_named_before_anything_is_made(
    name: str, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(name, monkeypatch)
    assert run_command(train.main, flags(folders, tmp_path / "run", "--track", name)) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert f"--track {name} needs the package" in said and f"pip install {name}" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_run_without_tensorboard_has_the_same_log_and_no_word_of_it(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first build could not be imported without it: it was no extra."""
    assert run_command(train.main, flags(folders, tmp_path / "with", "--track", "tensorboard")) == DONE
    without("tensorboard", monkeypatch)
    assert run_command(train.main, flags(folders, tmp_path / "without")) == DONE
    assert "ensor" not in capsys.readouterr().err.replace("safetensors", "")
    assert list((tmp_path / "with").glob("events.*")) and not list((tmp_path / "without").glob("events.*"))
    lines = {run: (tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("with", "without")}
    losses = {run: [json.loads(line).get("loss") for line in those] for run, those in lines.items()}
    assert losses["with"] == losses["without"] and any(losses["with"])


def test_the_file_of_tensorboard_takes_no_more_once_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = board.Board()
    one.begin(tmp_path, 0)
    asked: list[str] = []

    def full(name: str, *_: object) -> None:
        asked.append(name)
        raise OSError("No space left on device")

    monkeypatch.setattr(one._writer, "add_scalar", full)
    one.write(1, {"loss": 1.0, "knn": 2.0})
    one.write(2, {"loss": 1.0})
    one.flush()
    assert asked == ["loss"]
    said = capsys.readouterr().err
    assert said.count("TensorBoard's file takes no more values (No space left on device): the run goes on") == 1
