"""Checkpoints written by a thread while the training goes on. Sharded runs: tests/pretrain/engine/test_processes.py."""

import copy
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import store
from checkpoints.cli import WorkError
from pretrain.run import checkpoint
from pretrain.run.writing import Writer
from tests.support.commands import program
from tests.support.saving import Saving, saved_by_thread
from tests.support.states import same


@pytest.fixture
def saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saving:
    monkeypatch.setattr(checkpoint, "in_background", checkpoint.in_background)  # put back at the end
    return saved_by_thread(tmp_path)


def fails() -> None:
    raise WorkError("the disk is full")


def test_a_checkpoint_has_the_values_of_its_step_though_training_goes_on(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, moments and centres change before the thread reads them."""
    changed, save_run = threading.Event(), store.save_run

    def late(folder: Path, state: Mapping[str, Any]) -> Path:
        assert changed.wait(60)
        return save_run(folder, state)

    monkeypatch.setattr(store, "save_run", late)
    before, centres = copy.deepcopy(saving.state()), copy.deepcopy(saving.teacher.centres.state_dict())
    saving.at(3)
    with torch.no_grad():
        moments = [one for state in saving.optimizer.state.values() for one in state.values()]
        for value in (*saving.student.parameters(), *saving.teacher.parameters(), *saving.teacher.buffers(), *moments):
            value.add_(1)
    changed.set()
    saving.run.writer.wait()
    found = store.load_run(saving.run.folder)
    assert found is not None and found.state["step"] == 3
    assert all(same(found.state[name], value) for name, value in before.items())
    assert same(found.state["centres"], dict(centres))
    weights, about = store.read_safetensors(saving.run.folder / store.BACKBONE)
    assert about["about"]["step"] == 3 and not same(weights, dict(saving.teacher.backbone.state_dict()))


def test_what_the_thread_meets_is_raised_in_the_loop(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the question that each step asks, and by the next save."""
    monkeypatch.setattr(store, "save_run", lambda folder, state: fails())
    for ask in (lambda: saving.run.time_to_save(1), lambda: saving.at(2)):
        saving.at(1)
        thread = saving.run.writer._thread
        assert thread is not None
        thread.join()
        with pytest.raises(WorkError, match="the disk is full"):
            ask()


def test_a_kill_while_it_is_written_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    done = subprocess.run(**program("killed_while_writing", str(tmp_path)), check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = store.load_run(tmp_path)
    assert found is not None and found.state["step"] == 1 and not found.passed_over
    assert list(tmp_path.glob(".last.pt.*.part"))  # it was being written


def ends_by(error: BaseException, work: Callable[[], None]) -> threading.Thread:
    writer = Writer()
    writer.begin(work)
    thread = writer._thread
    assert thread is not None
    with pytest.raises(type(error)), writer:
        raise error
    return thread


def test_a_run_that_ends_by_ctrl_c_waits_for_the_thread() -> None:
    written: list[int] = []
    release = threading.Event()
    threading.Timer(0.2, release.set).start()
    thread = ends_by(KeyboardInterrupt(), lambda: written.append(int(release.wait(60))))
    assert written == [1] and not thread.is_alive()


def test_of_two_errors_the_loops_is_raised_and_the_threads_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    ends_by(WorkError("diverged"), fails)
    assert "note: the disk is full" in capsys.readouterr().err
    with pytest.raises(WorkError, match="the disk is full"), Writer() as writer:
        writer.begin(fails)
