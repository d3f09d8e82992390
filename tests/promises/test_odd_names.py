"""Names that no file can have, and pipes and devices in the place of files, for every flag that takes a name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints import export, store
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, UserError
from pretrain import curves, train
from pretrain.images.open import open_images
from pretrain.tokenizers import __main__ as tokenizers
from probes import cluster, knn, logistic, parts, semi, tables
from probes.finetune import __main__ as finetune
from probes.finetune.subsets import named
from probes.linear import __main__ as linear
from probes.report import __main__ as report
from probes.retrieval import __main__ as retrieval
from probes.robustness import __main__ as robustness
from probes.segment import __main__ as segment
from probes.video import __main__ as video
from probes.visualize import __main__ as visualize
from tests.support import networks
from tests.support.commands import SMALL, exit_code

FROZEN = "--ckpt a.safetensors --data data"
TUNED = f"{FROZEN} --recipe small --epochs 2 --batch-size 8 --precision fp32 --lr 1e-3 --warmup-epochs 0"
COMMANDS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "train": (train.main, " ".join([*SMALL, "--data data --steps 1 --knn-every 1"]), "data out init-from knn-data replay"),
    "train, codes": (
        train.main,
        " ".join([*SMALL, "--data data --steps 1 --targets codes --shared-head-teacher false"]),
        "tokenizer",
    ),
    "knn": (knn.main, f"{FROZEN} --workers 0 --k 3", "ckpt data val out cache"),
    "linear": (linear.main, f"{FROZEN} --workers 0 --mode cached --epochs 1 --lr 0.1", "ckpt data val out cache"),
    "logistic": (logistic.main, f"{FROZEN} --workers 0", "ckpt data out"),
    "cluster": (cluster.main, f"{FROZEN} --workers 0 --method kmeans", "ckpt data out"),
    "parts": (parts.main, f"{FROZEN} --workers 0", "ckpt data out"),
    "semi": (semi.main, f"{FROZEN} --workers 0 --frozen --epochs 1", "ckpt data out names"),
    "finetune": (finetune.main, f"{TUNED} --workers 0", "ckpt data val names folder out"),
    "robustness": (robustness.main, "--ckpt a.safetensors --suite in9 --limit 2", "ckpt data head class-map train out"),
    "video": (video.main, "--ckpt a.safetensors --limit 1 --size 64", "ckpt data out"),
    "segment": (segment.main, "--ckpt a.safetensors", "ckpt data out"),
    "landmarks": (retrieval.main, "--ckpt a.safetensors --suite roxford5k", "ckpt data out"),
    "copies": (retrieval.main, "--ckpt a.safetensors --suite copydays", "ckpt data out"),
    "attention": (visualize.main, f"attention {FROZEN}", "ckpt data out"),
    "patches": (tokenizers.main, "patches --data data --codes 8 --share 0.5 --size 32", "data out"),
    "kmeans": (tokenizers.main, f"kmeans {FROZEN} --codes 8 --images 16", "ckpt data out"),
    "export": (export.main, "--ckpt a.safetensors --to timm", "ckpt out"),
    "curves": (curves.main, "", "runs out"),
    "report": (report.main, "", "out"),
    "tables": (tables.main, "", "out"),
}
FLAGS = [(command, flag) for command, (_, _, flags) in COMMANDS.items() for flag in flags.split()]
WRITTEN = [(command, flag) for command, flag in FLAGS if flag in ("out", "folder")]
NO_NAMES = {"long": "n" * 300, "deep": "n/" * 3000, "circle": "circle/x", "no UTF-8": "\udce9\udcff"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBOT_FEATURES", str(tmp_path / "cache"))
    for number in range(8):
        for part in ("train", "val"):
            path = tmp_path / "data" / part / ("cat", "dog")[number % 2] / f"{part}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    networks.write(tmp_path / "a.safetensors")
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


def told(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(("error: ", "failed: "))]


@pytest.mark.parametrize("kind", NO_NAMES)
@pytest.mark.parametrize(("command", "flag"), FLAGS)
def test_a_name_that_no_file_can_have_is_one_sentence(
    command: str, flag: str, kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 a name of 300 letters was a traceback, of whichever function looked first."""
    main, words, _ = COMMANDS[command]
    code = exit_code(main, [*words.split(), f"--{flag}", NO_NAMES[kind]])
    said = capsys.readouterr().err
    if kind == "no UTF-8" and flag in ("out", "folder", "cache", "masks"):  # a file can have that name
        assert "Traceback" not in said
        return
    assert code == WRONG_COMMAND and len(told(said)) == 1 and "Traceback" not in said, said


@pytest.mark.parametrize(("command", "flag"), WRITTEN)
def test_a_pipe_in_the_place_of_an_output_stays(
    command: str, flag: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 a tokenizer took its place: called with `--out /dev/null` by root it would have removed that."""
    os.mkfifo(folder / "pipe")
    main, words, _ = COMMANDS[command]
    code = exit_code(main, [*words.split(), f"--{flag}", "pipe"])
    said = capsys.readouterr().err
    assert code in (WRONG_COMMAND, FAILED) and len(told(said)) == 1, said
    assert (folder / "pipe").is_fifo()


def test_no_file_of_ours_takes_the_place_of_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(UserError, match="is no plain file"):
        store.write_bytes(folder / "pipe", b"x")
    assert (folder / "pipe").is_fifo() and not list(folder.glob(".*.part"))


@pytest.mark.parametrize("text", ["\ufefftrain0.png\n", "train0.png\r\ntrain1.png\r\n", "\n\ncat/train0.png \n"])
def test_a_list_of_names_is_read_however_it_was_saved(text: str, folder: Path) -> None:
    """On 46c01a2 the mark that Windows' editors write first was part of the first name."""
    (folder / "names.txt").write_text(text, encoding="utf-8", newline="")
    assert len(named(open_images("data"), folder / "names.txt")) == text.count(".png")


def test_the_commands_above_are_right_but_for_the_name(folder: Path) -> None:
    main, words, _ = COMMANDS["knn"]
    assert exit_code(main, [*words.split(), "--out", "new/record.json"]) == DONE
