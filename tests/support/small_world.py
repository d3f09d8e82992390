"""A folder in which every name that the documents use exists, small: data sets, runs, records, checkpoints."""

import functools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from checkpoints import store, zoo
from checkpoints.cli import DONE, run_command
from pretrain import train
from pretrain.sample import __main__ as sample
from pretrain.sample import classification, clips, dense, retrieval, shifts
from probes import knn
from probes.embed import main as embed_main
from probes.linear import __main__ as linear
from probes.reproduce import __main__ as reproduce
from tests.support.commands import QUICK

PROBE = "--limit 24 --workers 0"
"""What makes a probe take a second."""
NAMES = ("DIR", "DATA", "IMAGENET", "CIFAR10")
"""What the documents call labelled images in two parts."""


def make(root: Path, patch: pytest.MonkeyPatch, original: Path, runs: set[str]) -> None:
    """Fill the folder, which is the working directory. Published checkpoints are then a small one, and the sample is small.

    `original` is a checkpoint in the original's layout, `runs` are the names that runs have in the documents.
    """
    draw_data(root)
    make_samples_small(patch)
    make_runs(root, runs)
    patch.setattr(zoo, "fetch", lambda *_: root / "runs" / "NAME" / store.LAST)
    for name in ("checkpoint.pth", "FILE"):
        shutil.copy(original, name)


def make_samples_small(patch: pytest.MonkeyPatch) -> None:
    """Of the embedded sample, in every layout, a few images."""
    classification.classification.cache_clear()
    patch.setattr(classification, "COUNTS", {"train": 40, "val": 20})
    patch.setattr(dense, "COUNTS", {"train": 4, "val": 2})
    patch.setattr(clips, "COUNT", 2)
    few = (
        (retrieval, "landmarks", 2),
        (retrieval, "copies", 3),
        (shifts, "in9_train", 20),
        (shifts, "in9", 18),
    )
    for module, name, count in few:
        patch.setattr(module, name, functools.partial(getattr(module, name), count=count))
    patch.setattr(reproduce, "CALIBRATION", 0.01)


def draw_data(root: Path) -> None:
    """Images in every layout that a document names."""
    sample.main(["--out", str(root / "DIR"), "--count", "20", "--size", "32"])
    sample.main(["--coco", str(root / "COCO"), "--ade20k", str(root / "ADEChallengeData2016"), "--count", "10", "--size", "64"])
    sample.main(["--davis", str(root / "DAVIS"), "--roxford", str(root / "REVISITED"), "--count", "10", "--size", "32"])
    sample.main(["--in9", str(root / "bg_challenge"), "--count", "18", "--size", "32"])
    draw_scenes(root / "CAMVID")
    for name, flags in (("THREE", []), ("BCCD", ["--no-masks"])):
        sample.main(["--coco", str(root / name), "--ids", "1", "5", "9", "--count", "10", "--size", "64", *flags])
    for name in NAMES[1:]:
        (root / name).symlink_to(root / "DIR")
    (root / "1percent.txt").write_text("".join(f"{path.name}\n" for path in sorted((root / "DIR" / "train").rglob("*.png"))[::2]))
    (root / "PHOTOS").mkdir()
    for number, image in enumerate(classification.classification("val", 10, 32).images):
        Image.fromarray(image).save(root / "PHOTOS" / f"{number}.png")
    cells = np.random.default_rng(0).integers(0, 4096, (12, 4, 40, 40), dtype=np.uint16)
    for number, image in enumerate(cells):
        for folder in ("CELLS", f"LABELLED/{'ab'[number % 2]}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(root / folder / f"{number}.tif", image, photometric="minisblack")


def draw_scenes(root: Path) -> None:
    """Street scenes as CamVid's are cut for SegNet, which are noise: classes 0 to 10, void 11, in the layout of ADE20K."""
    generator = np.random.default_rng(0)
    for part, count in (("training", 6), ("validation", 3)):
        for number in range(count):
            drawn = {"images": (64, 64, 3), "annotations": (64, 64)}
            for kind, shape in drawn.items():
                (root / kind / part).mkdir(parents=True, exist_ok=True)
                top = 256 if kind == "images" else 12
                values = generator.integers(0, top, shape, dtype=np.uint8)
                Image.fromarray(values).save(root / kind / part / f"{number}.png")


def make_runs(root: Path, named: set[str]) -> None:
    """A finished run under every name of a document, one of four channels, records, a linear head."""
    flags = [*QUICK, "--steps", "2", "--recipe", "ibot_vits16"]
    assert run_command(train.main, [*flags, "--data", "DIR", "--out", "runs/NAME"]) == DONE
    cells = ["--data", "CELLS", "--channels", "4", "--init-from", "runs/NAME/backbone.safetensors", "--out", "runs/cells"]
    assert run_command(train.main, [*flags, *cells]) == DONE
    assert run_command(knn.main, [*PROBE.split(), "--ckpt", "runs/NAME", "--out", "RESULTS/knn.json"]) == DONE
    assert run_command(linear.main, [*PROBE.split(), "--epochs", "2", "--ckpt", "runs/NAME"]) == DONE
    (head,) = (root / "runs/NAME/results").glob("linear_*_head.safetensors")
    shutil.copy(head, "HEAD")
    features = ["--data", "DIR", "--ckpt", "runs/NAME", "--out", "features.parquet"]
    assert run_command(embed_main, [*PROBE.split(), *features]) == DONE
    shutil.copy("runs/NAME/last.pt", "F")
    for name in sorted(named - {"NAME", "cells"}):
        (root / "runs" / name).symlink_to(root / "runs" / ("cells" if name.startswith("cells") else "NAME"))
    os.utime("runs/NAME/last.pt")  # the newest run is one of three channels
