"""Several processes: their steps are those of one, whole and sharded."""

import gc
import socket
import subprocess
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from checkpoints import store
from pretrain.engine import distributed
from tests.support.commands import SMALL, command
from tests.support.states import named


def torchrun(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def test_two_processes_compute_what_one_does_with_the_double_batch(folders: Path, tmp_path: Path) -> None:
    """Crops come from files of 32 pixels cut whole, so that both draw the same; gradients are averages of the halves."""
    results = []
    for processes, how in ((1, "whole"), (2, "whole"), (2, "shard")):
        out = tmp_path / f"{processes}-{how}.pt"
        work = ["-m", "tests.support.programs.train_in_processes", str(out), how]
        done = subprocess.run(**command(*torchrun(processes), *work), check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "find_unused_parameters" not in done.stderr
        results.append(torch.load(out, weights_only=True))
    for result in results[1:]:
        assert results[0].keys() == result.keys()
        for name, value in results[0].items():
            assert_close(result[name], value, rtol=1e-4, atol=1e-6, msg=named(name))


def test_no_group_outlives_the_processes_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 left groups that something in a cycle held to the interpreter's end, where their threads could abort it (-6)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))

    def work() -> weakref.ref[Any]:
        holder: list[Any] = [DistributedDataParallel(torch.nn.Linear(2, 2))]
        holder.append(holder)
        return weakref.ref(torch.distributed.distributed_c10d._get_default_group())

    gc.disable()  # so that chance does not collect it
    try:
        with distributed.processes():
            group = work()
            assert group() is not None
        assert group() is None and not torch.distributed.is_initialized()
    finally:
        gc.enable()


def test_several_processes_train_resume_and_leave_one_run(folders: Path, tmp_path: Path) -> None:
    launch = [*torchrun(2), "-m", "pretrain.train"]
    flags = [*SMALL, "--data", str(folders), "--epochs", "2", "--batch-size-per-gpu", "4", "--out", str(tmp_path)]
    done = subprocess.run(**command(*launch, *flags), check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert store.read_torch(tmp_path / store.LAST)["step"] == 10
    assert done.stdout.count("-m probes.knn --ckpt") == 1 and "Warning" not in done.stderr
    again = subprocess.run(**command(*launch, *flags), check=False, timeout=300)
    assert again.returncode == 0 and again.stdout.count("this run is finished") == 1


def test_a_sharded_run_goes_on_from_its_checkpoint_and_without_shards(folders: Path, tmp_path: Path) -> None:
    """Two epochs sharded, in one piece and in two, end alike; then one more unsharded, in one process.

    46c01a2 wrote sharded checkpoints in the loop.
    """
    launch = [*torchrun(2), "-m", "pretrain.train"]
    flags = [*SMALL, "--data", str(folders), "--epochs", "2", "--batch-size-per-gpu", "4", "--knn-every", "1"]
    whole, parts = ["--out", str(tmp_path / "whole")], ["--out", str(tmp_path / "parts")]
    done = subprocess.run(**command(*launch, *flags, *whole, "--shard", "true"), check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "k-NN" in done.stdout
    work = ["-m", "tests.support.programs.interrupted", *flags, *parts, "--shard", "true"]
    stopped = subprocess.run(**command(*torchrun(2), *work), check=False, timeout=300)
    assert store.read_torch(tmp_path / "parts" / store.LAST)["step"] == 4, stopped.stderr
    assert "written by thread checkpoint" in stopped.stdout
    again = subprocess.run(**command(*launch, *flags, *parts, "--shard", "true"), check=False, timeout=300)
    assert again.returncode == 0 and "continuing after step 4" in again.stdout, again.stderr
    one, other = (store.read_torch(tmp_path / name / store.LAST) for name in ("whole", "parts"))
    for part in ("student", "teacher"):
        for name, value in one[part].items():
            assert_close(other[part][name], value, rtol=0, atol=0, msg=named(name))
    assert {value.shape for value in one["student"].values()} == {value.shape for value in other["student"].values()}
    alone = ["-m", "pretrain.train", *flags, *parts, "--epochs", "3", "--allow-config-change", "true"]
    done = subprocess.run(**command(*alone), check=False, timeout=300)
    assert done.returncode == 0 and "--shard was True, now False" in done.stdout, done.stderr
