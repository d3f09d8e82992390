"""Machines without room: every command that writes, with a limit on the size of files in the place of a full disk."""

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import export, hold
from checkpoints.cli import DONE, FAILED, MACHINE, WRONG_COMMAND, run_command
from pretrain import curves, train
from pretrain.sample import __main__ as sample
from pretrain.tokenizers import __main__ as tokenizers
from probes import cluster, knn, logistic, tables
from probes.finetune import __main__ as finetune
from probes.linear import __main__ as linear
from probes.report import __main__ as report
from probes.visualize import __main__ as visualize
from tests.support import networks
from tests.support.commands import SMALL
from tests.support.trainings import trained

TUNED = "--recipe small --epochs 1 --batch-size 8 --precision fp32 --warmup-epochs 0"
COMMANDS: dict[str, tuple[Any, str]] = {
    "train": (train.main, f"{' '.join(SMALL)} --knn-every 0 --out new --steps 2"),
    "knn": (knn.main, "--ckpt a.safetensors --data data --workers 0 --k 3"),
    "linear": (linear.main, "--ckpt a.safetensors --data data --workers 0 --mode cached --epochs 1 --lr 0.1"),
    "linear of crops": (linear.main, "--ckpt a.safetensors --data data --workers 0 --mode paper --epochs 1 --lr 0.1"),
    "logistic": (logistic.main, "--ckpt a.safetensors --data data --workers 0 --strength 1"),
    "cluster": (cluster.main, "--ckpt a.safetensors --data data --workers 0 --method kmeans"),
    "finetune": (finetune.main, f"--ckpt a.safetensors --data data --workers 0 {TUNED} --lr 1e-3"),
    "kmeans": (tokenizers.main, "kmeans --ckpt a.safetensors --data data --codes 8 --images 16 --out t.safetensors"),
    "patches": (tokenizers.main, "patches --data data --codes 8 --share 0.5 --size 32 --out t.safetensors"),
    "attention": (visualize.main, "attention --ckpt a.safetensors --data data"),
    "export": (export.main, "--ckpt a.safetensors --to timm"),
    "sample": (sample.main, "--out drawn --count 10 --size 32"),
    "report": (report.main, "run --no-pictures --out page.html"),
    "curves": (curves.main, "--runs run --out curves.png"),
    "tables": (tables.main, "run --every --form markdown --out tables.md"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    trained(root / "run", "--steps", 2)
    assert run_command(sample.main, ["--out", str(root / "data"), "--count", "20", "--size", "32"]) == DONE
    flags = ["--ckpt", str(root / "run"), "--limit", "12", "--workers", "0", "--k", "3", "--cache", str(root / "cache")]
    assert run_command(knn.main, flags) == DONE
    networks.write(root / "a.safetensors")
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("run", "data", "a.safetensors"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBOT_FEATURES", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def limit() -> Iterator[Any]:
    """A function that limits the size of files from now on, to the end of the test."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 5_000])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_room_is_one_sentence_and_leaves_nothing_half_written(
    command: str, size: int, folder: Path, limit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 ended in tracebacks, and of a cache in SIGBUS (-7)."""
    main, words = COMMANDS[command]
    limit(size)
    code = run_command(main, words.split())
    limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    said = capsys.readouterr().err
    assert code in (DONE, FAILED, WRONG_COMMAND) and "Traceback" not in said, said
    told = [line for line in said.splitlines() if line.startswith(("failed: ", "error: "))]
    assert len(told) == (code != DONE), said
    if size == 0:
        assert code != DONE
    assert run_command(main, words.split()) == DONE, capsys.readouterr().err  # with room, the same command works
    left = list(folder.rglob(".*.part"))
    assert not left


@pytest.mark.parametrize("number", MACHINE)
def test_a_fault_of_the_machine_is_one_sentence_wherever_it_comes_about(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: Any) -> None:
        raise OSError(number, os.strerror(number), "a/file")

    assert run_command(broken, []) == FAILED
    assert capsys.readouterr().err == f"failed: {os.strerror(number)} (a/file): {MACHINE[number]}\n"


def test_no_memory_is_one_sentence_and_a_fault_of_ours_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: Exception) -> Any:
        def main(_: Any) -> None:
            raise error

        return main

    assert run_command(fails(MemoryError()), []) == FAILED
    assert capsys.readouterr().err.startswith("failed: there is no memory left")
    assert run_command(fails(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")), []) == FAILED
    assert capsys.readouterr().err.startswith("failed: the GPU has too little memory")
    assert run_command(lambda _: torch.empty(1 << 60), []) == FAILED  # torch's own words
    assert capsys.readouterr().err.startswith("failed: there is no memory left")
    for error in (OSError(errno.ENOENT, "x"), KeyError("x"), OSError("x"), RuntimeError("x")):
        with pytest.raises(type(error)):
            run_command(fails(error), [])


def test_two_commands_that_make_one_tokenizer_or_tune_in_one_folder_are_one_too_many(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, lock in (("patches", ".t.safetensors.lock"), ("kmeans", ".t.safetensors.lock")):
        main, flags = COMMANDS[words]
        with hold.held(folder / lock, "x", "y"):
            assert run_command(main, flags.split()) == FAILED
        assert "--out t.safetensors is in use by process" in capsys.readouterr().err
        assert run_command(main, flags.split()) == DONE and not (folder / lock).exists()
    rates = f"--ckpt a.safetensors --data data --workers 0 {TUNED} --lr 1e-3 1e-4 --folder tuned".split()
    with hold.held(folder / "tuned" / hold.NAME, "x", "y"):
        assert run_command(finetune.main, rates) == FAILED
    assert "--folder tuned is in use by process" in capsys.readouterr().err
    assert run_command(finetune.main, rates) == DONE
