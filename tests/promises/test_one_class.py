"""Data of one class: every number would be 100 %, so that it is an error in every probe with labels, and no record is left.

The frozen probes and fine-tuning: `tests/promises/test_tars.py`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints.cli import FAILED, WRONG_COMMAND, run_command
from probes import knn
from probes.linear import __main__ as linear
from probes.robustness import __main__ as robustness
from probes.segment import __main__ as segment
from probes.segment import data as segment_data
from tests.support import networks

Main = Callable[..., object]


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def refused(main: Main, words: str, folder: Path, capsys: pytest.CaptureFixture[str], code: int = WRONG_COMMAND) -> str:
    """The one sentence of a command that leaves no record."""
    checkpoint = networks.write(folder / "tiny.safetensors")
    about = ["--ckpt", str(checkpoint), "--out", str(folder / "out" / "record.json")]
    assert run_command(main, [*about, *words.format(folder).split()]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "one class only" in said, said
    assert not list(folder.glob("out/**/*.json"))
    return said


SUITES = {
    "shuffle": "--suite shuffle --data {0}/one",
    "occlusion": "--suite occlusion --saliency itself --saliency-head 0 --data {0}/one",
    "inc, corrupted here": "--suite inc --corrupt --data {0}/one",
    "shuffle, --train": "--suite shuffle --data {0}/two --train {0}/one",
    "shuffle, of the sample, --train": "--suite shuffle --data sample --limit 4 --train {0}/one/train",
    "in9, --train": "--suite in9 --data sample --limit 4 --train {0}/one",
    "ina, --train": "--suite ina --data sample --limit 4 --train {0}/one",
    "inr, --train": "--suite inr --data sample --limit 4 --train {0}/one",
    "sketch, --train": "--suite sketch --data sample --limit 4 --train {0}/one",
    "after --train-images": "--suite shuffle --data {0}/two --train-images 1",
}


@pytest.mark.parametrize("suite", SUITES)
def test_a_head_of_one_class_is_trained_for_no_suite(suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        for part in ("train", "val"):
            picture(tmp_path / "one" / part / "cat" / f"{number}.png", number)
            picture(tmp_path / "two" / part / ("cat", "dog")[number % 2] / f"{number}.png", number)
    said = refused(robustness.main, SUITES[suite], tmp_path, capsys)
    assert "a probe needs two or more" in said


MAPS = {"label 1": (1, "0"), "label 7": (7, "0"), "label 1 and void": (1, "0"), "label 0": (0, "none")}


@pytest.mark.parametrize("head", ["linear", "knn"])
@pytest.mark.parametrize("maps", MAPS)
def test_label_maps_of_one_class_are_an_error(maps: str, head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label, background = MAPS[maps]
    for images, labels in segment_data.FOLDERS.values():
        for number in range(3):
            picture(tmp_path / "data" / images / f"{number}.jpg", number)
            values = np.full((36, 40), label, dtype=np.uint8)
            values[:4] = 255 if "void" in maps else label
            (tmp_path / "data" / labels).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "data" / labels / f"{number}.png")
    words = f"--data {{0}}/data --head {head} --size 32 --epochs 1 --background {background}"
    said = refused(segment.main, words, tmp_path, capsys, FAILED)
    assert f"one class only, label {label}" in said


@pytest.mark.parametrize("main", [knn.main, linear.main])
def test_a_list_of_one_class_is_an_error(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        picture(tmp_path / f"{number}.png", number)
    lines = "".join(f"{tmp_path}/{number}.png\tcat\n" for number in range(4))
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).write_text(lines)
    refused(main, "--data {0}/train.txt --val {0}/val.txt --workers 0", tmp_path, capsys)
