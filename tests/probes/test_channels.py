"""A checkpoint of four channels: each command works, or says in one sentence that it takes three."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain import train
from tests.support import small_world
from tests.support.commands import QUICK
from tests.support.modules import command_module

pytestmark = pytest.mark.filterwarnings("ignore")
PROBE = "--data cells --workers 0 --cache CACHE --out NEW.json"
WORKING = {
    "probes.knn": f"{PROBE} --k 3 --baselines",
    "probes.linear": f"{PROBE} --epochs 1 --lr 0.1 --mode cached",
    "probes.logistic": PROBE,
    "probes.cluster": PROBE,
    "probes.embed": PROBE.replace("NEW.json", "NEW.parquet"),
    "probes.compare": "--data cells --probes knn --crop 32 --resize 32 --workers 0 --cache CACHE --out NEW",
    "checkpoints.export": "--to original --out NEW",
}
REFUSING = {
    "probes.finetune": "--data cells --epochs 3 --workers 0 --folder NEW --out NEW.json",
    "probes.segment": "--images 4 --epochs 1 --out NEW.json",
    "probes.retrieval": "--suite copydays --out NEW.json",
    "probes.video": "--limit 1 --out NEW.json",
    "probes.robustness": "--suite shuffle --data cells --out NEW.json",
    "probes.visualize": "pca --data cells --limit 2 --out NEW",
    "transfer.train coco": "--task coco --out NEW",
    "transfer.train ade20k": "--task ade20k --out NEW",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("channels")
    drawn = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for level, name in ((900, "dark"), (3000, "light")):
            folder = root / "cells" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(drawn.normal(level, 300, (4, 40, 40)), 0, 4095).astype(np.uint16) * 16
                tifffile.imwrite(folder / f"{number}.tif", pixels, photometric="minisblack")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        small_world.make_samples_small(patch)
        flags = "--data cells --channels 4 --steps 1 --out runs/four"
        assert run_command(train.main, ["--recipe", "sample", *QUICK, *flags.split()]) == DONE
        yield root


def run(module: str, flags: str, new: Path) -> int:
    name = module.partition(" ")[0]
    words = [word.replace("NEW", str(new / "new")).replace("CACHE", str(new / "cache")) for word in flags.split()]
    ckpts = ["runs/four", "runs/four/last.pt"] if name == "probes.compare" else ["runs/four"]
    return run_command(importlib.import_module(command_module(name)).main, [*words, "--ckpt", *ckpts])


@pytest.mark.parametrize("module", WORKING)
def test_what_reads_images_of_any_channels_works(module: str, world: Path, tmp_path: Path) -> None:
    assert run(module, WORKING[module], tmp_path) == DONE


@pytest.mark.parametrize("module", REFUSING)
def test_what_takes_three_says_so(module: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(module, REFUSING[module], tmp_path) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert "channel" in said and said.count("error: ") == 1, said
    assert not (tmp_path / "new").exists()
