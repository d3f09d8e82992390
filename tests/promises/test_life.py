"""A run's folder: one owner at a time, nobody else's files touched, what is derived is of the last checkpoint."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints import hold, store, terminal
from checkpoints.cli import DONE, FAILED, INTERRUPTED, WRONG_COMMAND, UserError, run_command
from pretrain import train
from pretrain.engine.guard import Guard
from pretrain.engine.run_folder import claimed, refuse_foreign
from tests.support.commands import SMALL, program


def flags(out: Path, *more: str) -> list[str]:
    return [*SMALL, "--data", "sample", "--steps", "2", "--depth", "1", "--knn-every", "0", "--out", str(out), *more]


def test_two_runs_in_one_folder_are_one_too_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 trained both, and their logs ran into each other."""
    with claimed(tmp_path / "run", "--out", told=False):
        assert run_command(train.main, flags(tmp_path / "run")) == FAILED
    said = capsys.readouterr().err
    assert f"is in use by process {os.getpid()} on" in said and "give another --out" in said and said.count("\n") == 1
    assert run_command(train.main, flags(tmp_path / "run")) == DONE
    assert not (tmp_path / "run" / hold.NAME).exists()


def test_a_lock_is_gone_with_the_process_that_had_it(tmp_path: Path) -> None:
    lock = tmp_path / hold.NAME
    done = subprocess.run(**program("killed_with_lock", str(lock)), check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL and lock.exists()
    with hold.held(lock, "the folder", "wait"):
        assert f"process {os.getpid()}" in lock.read_text()


def test_a_file_system_without_locks_is_named_and_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none_here(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    with hold.held(tmp_path / hold.NAME, "the folder", "wait"):
        assert "has no locks (No locks available)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [".thesis.odt.part", ".last.pt.part", ".last.pt.12.part.bak", "last.pt.7.part", ".x.jsonl.3.part"]
)
def test_other_peoples_temporary_files_stay(name: str, tmp_path: Path) -> None:
    """46c01a2 deleted every `.*.part` of the folder."""
    out = tmp_path / "run"
    assert run_command(train.main, flags(out)) == DONE
    (out / name).write_text("mine")
    (out / ".last.pt.123.part").write_text("left by a killed run")
    (out / ".backbone.safetensors.5.part").mkdir()
    assert run_command(train.main, flags(out, "--steps", "3", "--allow-config-change", "true")) == DONE
    assert (out / name).read_text() == "mine" and not (out / ".last.pt.123.part").exists()
    assert (out / ".backbone.safetensors.5.part").is_dir()


@pytest.mark.parametrize(
    ("name", "content", "refused"),
    [
        ("thesis.odt", "x", True),
        ("config.json", "[1]", True),
        ("photo.jpg", "x", True),
        ("metrics.jsonl", "{}\n", False),
        ("slurm-7.out", "x", False),
        ("results", None, False),
        (".last.pt.4.part", "x", False),
    ],
)
def test_a_folder_of_other_things_is_used_only_when_told(name: str, content: str | None, refused: bool, tmp_path: Path) -> None:
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_text(content)
    if refused:
        with pytest.raises(UserError, match=r"holds no run but other files .* --allow-foreign-files true"):
            refuse_foreign(tmp_path, "--out")
    else:
        refuse_foreign(tmp_path, "--out")


def test_a_foreign_folder_costs_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.odt").write_text("mine")
    assert run_command(train.main, flags(tmp_path)) == WRONG_COMMAND
    assert "thesis.odt" in capsys.readouterr().err and sorted(path.name for path in tmp_path.iterdir()) == ["thesis.odt"]
    assert run_command(train.main, flags(tmp_path, "--allow-foreign-files", "true")) == DONE
    assert (tmp_path / "thesis.odt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["gone", "older", "cut"])
def test_a_backbone_that_is_not_the_last_checkpoints_is_made_anew(damage: str, tmp_path: Path) -> None:
    """46c01a2 said "finished" and left the backbone of an earlier step, after a kill between the two files."""
    out = tmp_path / "run"
    assert run_command(train.main, flags(out)) == DONE
    path = out / store.BACKBONE
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:-9])
    else:
        weights, metadata = store.read_safetensors(path)
        store.save_backbone(path, {name: weight + 1 for name, weight in weights.items()}, metadata["about"] | {"step": 1})
    assert run_command(train.main, flags(out)) == DONE
    again, metadata = store.read_safetensors(path)
    assert metadata["about"]["step"] == 2 and path.read_bytes() == whole and again


def test_a_checkpoint_is_moved_aside_only_if_it_is_whole(tmp_path: Path) -> None:
    """46c01a2 rotated a damaged `last.pt` over the good `previous.pt`."""
    out = tmp_path / "run"
    assert run_command(train.main, flags(out)) == DONE
    good = (out / store.PREVIOUS).read_bytes() if (out / store.PREVIOUS).exists() else (out / store.LAST).read_bytes()
    (out / store.PREVIOUS).write_bytes(good)
    (out / store.LAST).write_bytes(b"damaged" * 99)
    assert run_command(train.main, flags(out, "--steps", "3", "--allow-config-change", "true")) == DONE
    for name in (store.LAST, store.PREVIOUS):
        assert store.read_torch(out / name)["step"] > 0


def at_second_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` happens before the second step is judged."""
    accepts, calls = Guard.accepts, []

    def with_act(self: Guard, *given: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            act()
        return accepts(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Guard, "accepts", with_act)


def test_a_folder_that_is_moved_away_is_followed_and_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 trained on for ever and saved nothing in either place."""
    out, there = tmp_path / "run", tmp_path / "elsewhere"
    at_second_step(monkeypatch, lambda: out.rename(there))
    assert run_command(train.main, flags(out, "--steps", "9", "--log-every", "1")) == FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert f"was moved to {there} during the run" in said and not out.exists()
    assert store.read_torch(there / store.LAST)["step"] == 2


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1])
def test_a_closed_connection_saves_first(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 died of SIGHUP unsaved."""
    at_second_step(monkeypatch, lambda: os.kill(os.getpid(), number))
    assert run_command(train.main, flags(tmp_path / "run", "--steps", "9")) == INTERRUPTED
    assert store.read_torch(tmp_path / "run" / store.LAST)["step"] == 2


class Closed:
    """A standard output that takes nothing more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "no file")


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, INTERRUPTED), (errno.ENOSPC, DONE)])
def test_an_output_that_takes_nothing_more_loses_no_work(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`| head` ends the run, saved; a full disk behind `> log` does not end it. 46c01a2 died unsaved of both."""
    monkeypatch.setattr(sys, "stdout", Closed(number))
    assert run_command(train.main, flags(tmp_path / "run", "--steps", "3")) == code
    assert "takes nothing more" in capsys.readouterr().err
    assert store.read_torch(tmp_path / "run" / store.LAST)["step"] >= 1
    assert not terminal._lasting
