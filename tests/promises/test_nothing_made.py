"""A command that is wrong leaves nothing: no folder of a run, no record, no features, no lock, whatever option is wrong."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints.cli import WRONG_COMMAND
from pretrain import train
from pretrain.tokenizers import __main__ as tokenizers
from probes.finetune import __main__ as finetune
from probes.linear import __main__ as linear
from probes.robustness import __main__ as robustness
from tests.support import networks
from tests.support.commands import SMALL, exit_code

TUNED = "--ckpt a.safetensors --data data --workers 0 --recipe small --epochs 2 --batch-size 8 --precision fp32 --lr 1e-3"
COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "train": (train.main, f"{' '.join(SMALL)} --data data --out new/run --steps 2"),
    "finetune": (finetune.main, f"{TUNED} --warmup-epochs 0 --folder new/tuned --out new/record.json"),
    "linear": (linear.main, "--ckpt a.safetensors --data data --workers 0 --epochs 1 --lr 0.1 --out new/record.json"),
    "kmeans": (tokenizers.main, "kmeans --ckpt a.safetensors --data data --codes 8 --images 16 --out new/t.safetensors"),
    "patches": (tokenizers.main, "patches --data data --codes 8 --share 0.5 --size 32 --out new/t.safetensors"),
    "robustness": (robustness.main, "--ckpt a.safetensors --suite in9 --limit 2 --out new/record.json"),
    "convert": (tokenizers.main, "convert a.safetensors --out new/t.safetensors"),
}
IMAGES = ("--data nowhere", "--data empty", "--data words.txt", "--data broken.parquet", "--data a.safetensors")
LABELLED = (*IMAGES, "--data flat", "--data one", "--val nowhere", "--val flat", "--val others")
CHECKPOINT = ("--ckpt nowhere", "--ckpt words.txt", "--ckpt empty", "--ckpt timm:nonsense", "--key student")
WRONG: dict[str, tuple[str, ...]] = {
    "train": (
        *IMAGES,
        "--knn-data nowhere",
        "--knn-data empty",
        "--knn-data flat",
        "--knn-data one",
        "--knn-data unreadable",
        "--knn-data words.txt",
        "--knn-data no_labels_to_test",
        "--knn-data others_to_test",
        "--init-from nowhere",
        "--init-from words.txt",
        "--init-from wide.safetensors",
        "--tokenizer colour",
        "--targets codes",
        "--targets codes --shared-head-teacher false --tokenizer kmeans:nowhere",
        "--targets codes --shared-head-teacher false --tokenizer kmeans:words.txt",
        "--targets codes --shared-head-teacher false --tokenizer nonsense",
        "--targets frozen --shared-head-teacher false --tokenizer nowhere",
        "--targets frozen --shared-head-teacher false --tokenizer a.safetensors",
        "--value-range 0 100",
        "--value-range 1 0",
        "--channels 5",
        "--batch-size-per-gpu 10000",
        "--recipe nonsense",
        "--arch nonsense",
        "--local-crops-size 12",
        "--shard --optimizer lars",
        "--lr nan",
        "--out a.safetensors",
        "--out folder",
        "--track mlflow",
        "--track wandb",
        "--track trackio",
    ),
    "finetune": (
        *LABELLED,
        *CHECKPOINT,
        "--names nowhere",
        "--names empty.txt",
        "--names words.txt",
        "--names words.txt --percent 50",
        "--percent 0",
        "--limit 1",
        "--randaugment nonsense",
        "--randaugment rand-m9-nonsense1",
        "--randaugment nonsense --lr 1e-3 1e-4",
        "--input-size 30",
        "--input-size 30 --lr 1e-3 1e-4",
        "--batch-size 10000",
        "--batch-size 10000 --lr 1e-3 1e-4",
        "--batch-size 7 --mixup 0.5",
        "--accumulate 3",
        "--lr 0",
        "--lr 0.1 0.1",
        "--warmup-epochs 2",
        "--keep-head-layer",
        "--recipe transfer",
        "--crop-scale 0.5 0.1",
        "--out folder",
        "--out words.txt",
        "--folder folder",
        "--folder words.txt",
        "--folder folder --lr 1e-3 1e-4",
    ),
    "linear": (
        *LABELLED,
        *CHECKPOINT,
        "--crop 30",
        "--resize 8",
        "--limit 1",
        "--limit 2 --select val-split",
        "--device cuda:77",
        "--device nonsense",
        "--out folder",
        "--out words.txt",
        "--lr 0",
        "--batch-size 0",
        "--cache words.txt",
    ),
    "kmeans": (*IMAGES, *CHECKPOINT, "--codes 1", "--codes 100000", "--images 0", "--out folder", "--seed -1"),
    "patches": (*IMAGES, "--share 0", "--share 2", "--size 33", "--codes 100000", "--patch-size 0", "--out folder"),
    "robustness": (
        "--class-map words.txt",
        "--class-map words.txt --suite shuffle --data data",
        "--class-map nowhere --data data",
        "--head nowhere",
        "--corrupt",
    ),
    "convert": ("--out folder", "--out a.safetensors/x"),
}


def picture(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBOT_FEATURES", str(tmp_path / "cache"))
    monkeypatch.setenv("IBOT_CACHE", str(tmp_path / "cache"))
    for number in range(8):
        for part in ("train", "val"):
            picture(tmp_path / "data" / part / ("cat", "dog")[number % 2] / f"{part}{number}.png", number)
        picture(tmp_path / "flat" / f"{number}.png", number)
        picture(tmp_path / "one" / "cat" / f"{number}.png", number)
        picture(tmp_path / "others" / ("cow", "hen")[number % 2] / f"{number}.png", number)
        for name in ("no_labels_to_test", "others_to_test"):
            picture(tmp_path / name / "train" / ("cat", "dog")[number % 2] / f"{number}.png", number)
        picture(tmp_path / "no_labels_to_test" / "val" / f"{number}.png", number)
        picture(tmp_path / "others_to_test" / "val" / ("cow", "hen")[number % 2] / f"{number}.png", number)
        broken = tmp_path / "unreadable" / ("cat", "dog")[number % 2] / f"{number}.png"
        broken.parent.mkdir(parents=True, exist_ok=True)
        broken.write_bytes(b"\x89PNG\r\n\x1a\n nothing else")
    for name in ("empty", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    (tmp_path / "words.txt").write_text("some words\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing else")
    networks.write(tmp_path / "a.safetensors")
    networks.write(tmp_path / "wide.safetensors", networks.FAN_IN._replace(embed_dim=128, num_heads=2))
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def possible(flags: str) -> None:
    """Skip what is not wrong on this machine."""
    name = flags.removeprefix("--track ")
    if name != flags and importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")


@pytest.mark.parametrize(("command", "flags"), [(command, flags) for command, every in WRONG.items() for flags in every])
def test_a_wrong_command_makes_nothing(command: str, flags: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 a training with wrong --knn-data had made its folder, and a fine-tuning of two rates with wrong options."""
    possible(flags)
    main, words = COMMANDS[command]
    before = everything(folder)
    code = exit_code(main, [*words.split(), *flags.split()])
    said = capsys.readouterr().err
    assert code == WRONG_COMMAND, said
    assert "Traceback" not in said and len([line for line in said.splitlines() if line.startswith("error: ")]) == 1, said
    assert everything(folder) == before
