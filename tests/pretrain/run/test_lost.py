"""Nothing is lost: kills at any moment, full disks, folders that go, signals, other numbers of processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import store
from checkpoints.cli import DONE, FAILED, INTERRUPTED, WRONG_COMMAND, WorkError, run_command
from pretrain import train
from tests.support.commands import PROGRAMS, ROOT, SMALL, command, program
from tests.support.killing import until_enough
from tests.support.states import same

KILLS = 25


def repeatedly(kills: int, longest: float, flags: list[str], out: Path) -> dict:
    """The report of a training into the empty folder `out`, killed so often (`tests.support.killing`)."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["-m", "tests.support.killing", "pretrain.train", "1", str(kills), str(longest), *flags, "--out", str(out)]
    done = subprocess.run(**command(*words, PYTHONPATH=str(ROOT)), check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_killed_at_random_moments_ends_in_the_same_bits(folders: Path, tmp_path: Path) -> None:
    """Saved after every step, so that many kills fall into a save; stochastic depth draws from torch's own generator."""
    flags = [*SMALL, "--data", str(folders), "--steps", "150", "--save-minutes", "0", "--drop-path", "0.2", "--workers", "1"]
    began = time.monotonic()
    whole = repeatedly(0, 0.0, flags, tmp_path / "whole")
    longest = 0.5 + 2 * (time.monotonic() - began) / KILLS  # so that a fast machine is not done before most kills
    killed = until_enough(lambda longest: repeatedly(KILLS, longest, flags, tmp_path / "killed"), longest, KILLS // 5)
    assert whole["code"] == killed["code"] == DONE
    one, other = (store.load_run(tmp_path / name) for name in ("whole", "killed"))
    assert one is not None and other is not None and one.state["step"] == other.state["step"] == 150
    for part in ("student", "teacher", "centres", "optimizer", "random"):
        assert same(one.state[part], other.state[part]), part
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    losses = [{line["step"]: line["loss"] for line in map(json.loads, log) if "loss" in line} for log in logs]
    assert losses[0] == losses[1] and len(logs[0]) == len(logs[1])
    assert not list((tmp_path / "killed").glob(".*.part"))


def test_a_changed_byte_is_noticed_and_the_previous_checkpoint_used(tmp_path: Path) -> None:
    for step in (1, 2):
        store.save_run(tmp_path, {"step": step, "weights": torch.arange(4000.0) + step, "more": [(1, None), {"a": True}]})
    found = store.load_run(tmp_path)
    assert found is not None and found.state["step"] == 2 and not found.passed_over
    last = tmp_path / store.LAST
    content = bytearray(last.read_bytes())
    at = content.index(torch.arange(4000.0).add(2).numpy().tobytes()[:64]) + 32
    content[at] ^= 1
    last.write_bytes(content)
    found = store.load_run(tmp_path)
    assert found is not None and found.state["step"] == 1 and "last.pt does not agree with its checksum" in found.passed_over


@pytest.fixture
def run(folders: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A run of one epoch, and its flags."""
    flags = [*SMALL, "--data", str(folders), "--out", str(tmp_path / "run")]
    assert run_command(train.main, [*flags, "--steps", "5"]) == DONE
    return tmp_path / "run", flags


def test_a_full_disk_is_one_sentence_and_the_last_good_checkpoint_stays(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for the full disk; the system refuses the write in the same way."""
    flags = [*SMALL, "--data", str(folders), "--out", str(tmp_path), "--epochs", "3"]
    done = subprocess.run(**program("full_disk", *flags), check=False, timeout=120)
    assert done.returncode == FAILED and done.stderr.startswith("failed: ") and "Traceback" not in done.stderr
    assert "last.pt could not be written (" in done.stderr and "make room" in done.stderr
    found = store.load_run(tmp_path)
    assert found is not None and found.state["step"] == 5 and not list(tmp_path.glob(".*.part"))
    assert run_command(train.main, flags) == DONE


def test_a_folder_that_vanishes_is_one_sentence(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = train.Progress.log

    def remove(self: train.Progress, done: int, *rest: Any) -> None:
        (tmp_path / "run").rename(tmp_path / "gone")
        (tmp_path / "run").write_text("a file in its place")
        logged(self, done, *rest)

    monkeypatch.setattr(train.Progress, "log", remove)
    assert run_command(train.main, [*SMALL, "--data", str(folders), "--out", str(tmp_path / "run"), "--steps", "5"]) == FAILED
    assert f"was moved to {tmp_path / 'gone'} during the run" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "a file in its place"


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    store.save_run(tmp_path, {"step": 1})
    with pytest.raises(WorkError, match="could not be written"):
        store.save_run(tmp_path / store.LAST, {"step": 2})
    found = store.load_run(tmp_path)
    assert found is not None and found.state["step"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_schedulers_send_saves_and_exits_with_75(number: signal.Signals, folders: Path, tmp_path: Path) -> None:
    flags = [*SMALL, "--data", str(folders), "--epochs", "2000", "--out", str(tmp_path), "--workers", "1"]
    with subprocess.Popen(**command("-m", "pretrain.train", *flags), start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / store.LAST).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, number)
        _, complained = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED and "Traceback" not in complained, complained


def test_changed_options_are_refused_unless_allowed(run: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, flags = run
    assert run_command(train.main, [*flags, "--steps", "10", "--lr", "1e-3"]) == WRONG_COMMAND
    complained = capsys.readouterr().err
    assert "--steps was 5, now 10" in complained
    assert "--lr was 0.0005, now 0.001" in complained
    assert "--allow-config-change" in complained
    assert run_command(train.main, [*flags, "--steps", "10", "--lr", "1e-3", "--allow-config-change", "true"]) == DONE
    assert "note: options have changed: " in capsys.readouterr().out
    found = store.load_run(folder)
    assert found is not None and found.state["step"] == 10


def test_a_damaged_checkpoint_is_passed_over_and_said(run: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, flags = run
    (folder / store.LAST).rename(folder / store.PREVIOUS)
    (folder / store.LAST).write_bytes((folder / store.PREVIOUS).read_bytes()[:-1000])
    assert run_command(train.main, [*flags, "--steps", "5"]) == DONE
    said = capsys.readouterr().out
    assert "last.pt is not a readable checkpoint" in said and "previous.pt is used" in said


def test_another_number_of_processes_goes_on_and_says_what_is_not_exact(run: tuple[Path, list[str]]) -> None:
    folder, flags = run
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pretrain.train"]
    more = ["--epochs", "2", "--allow-config-change", "true", "--batch-size-per-gpu", "4"]
    done = subprocess.run(**command(*launch, *flags, *more), check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "note: there were 1 processes, now 2: weights, optimizer and centres go on exactly" in done.stdout
    found = store.load_run(folder)
    assert found is not None and found.state["step"] == 10 and len(found.state["random"]) == 2


def test_a_slurm_job_saves_at_its_end_goes_back_into_the_queue_and_continues(folders: Path, tmp_path: Path) -> None:
    """Slurm's two commands are stood in for by scripts that start two tasks and pass the signal on to them."""
    for name in ("srun", "scontrol"):
        shutil.copy(PROGRAMS / f"{name}.sh", tmp_path / name)
        (tmp_path / name).chmod(0o755)
    requeued, run = tmp_path / "requeued", tmp_path / "run"
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": str(os.getpid())}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "REQUEUED": str(requeued), **slurm}
    flags = [*SMALL, "--data", str(folders), "--batch-size-per-gpu", "4", "--epochs", "400", "--out", str(run)]
    arguments = command(**environment) | {"args": ["bash", str(ROOT / "tools" / "slurm.sbatch"), *flags]}
    with subprocess.Popen(**arguments, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (run / store.LAST).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        os.kill(int((tmp_path / "requeued.srun").read_text()), signal.SIGUSR1)
        said, complained = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, complained
    assert requeued.read_text().split() == [slurm["SLURM_JOB_ID"]] and "the same command continues from here" in said
    found = store.load_run(run)
    assert found is not None and found.state["processes"] == 2 and found.state["step"] < 2000
