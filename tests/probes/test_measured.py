"""Probes of a backbone that is only measured, a small ResNet of timm: what needs its features works, what needs more refuses."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from probes import cluster, knn, logistic, parts
from probes.linear import __main__ as linear
from probes.retrieval import __main__ as retrieval
from probes.robustness import __main__ as robustness
from probes.segment import __main__ as segment
from probes.video import __main__ as video
from probes.visualize import __main__ as visualize
from tests.support import small_world

Main = Callable[[Sequence[str]], Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Labelled images of two classes, a small sample, and weights."""
    root = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for name, level in (("dark", 60), ("light", 190)):
            folder = root / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(generator.normal(level, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), root / "weights.safetensors")
    save_file(timm.create_model("test_vit").state_dict(), root / "vit.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        small_world.make_samples_small(patch)
        yield root


RESNET, VIT = "timm:test_resnet.r160_in1k@weights.safetensors", "timm:test_vit.r160_in1k@vit.safetensors"
WORKING: list[tuple[Main, str]] = [
    (knn.main, "--data data --crop 64 --k 3 --baselines"),
    (logistic.main, "--data data --crop 64"),
    (cluster.main, "--data data --crop 64"),
    (linear.main, "--data data --crop 64 --mode cached --epochs 2 --lr 0.1 1"),
    (retrieval.main, "--suite roxford5k"),
    (retrieval.main, "--suite copydays --size 64"),
    (segment.main, "--images 4 --epochs 1 --size 64"),
    (video.main, "--limit 1 --size 64"),
    (robustness.main, "--suite shuffle --data data --crop 64"),
    (visualize.main, "pca --data data --limit 2 --size 96"),
    (visualize.main, "tsne --data data/train --perplexity 3 --size 64"),
]


@pytest.mark.parametrize(("main", "flags"), WORKING)
def test_probes_that_need_features_only_measure_a_resnet(main: Main, flags: str, world: Path, tmp_path: Path) -> None:
    """On 46c01a2 a ResNet was refused by all of them."""
    frozen = main in (retrieval.main, segment.main, video.main, robustness.main, visualize.main)
    more = [] if frozen else ["--workers", "0", "--cache", str(tmp_path / "cache")]
    out = tmp_path / ("out" if main is visualize.main else "record.json")
    assert run_command(main, [*flags.split(), "--ckpt", RESNET, "--out", str(out), *more]) == DONE
    if main is not visualize.main:
        record = json.loads(out.read_text())
        assert record["checkpoint"]["arch"] == "test_resnet.r160_in1k" and all(map(np.isfinite, record["metrics"].values()))


@pytest.mark.parametrize(
    ("main", "flags", "words"),
    [
        (visualize.main, "attention --data data", "has no attention of [CLS] that can be read, which this needs"),
        (linear.main, "--data data --features cls4", "has no [CLS] token, which this needs"),
        (knn.main, "--data data --features patches", "patch tokens before the final norm are read of iBOT's own networks only"),
        (parts.main, "--data data", "does not show the patches that [CLS] looks at"),
    ],
)
def test_a_probe_that_needs_more_says_so(
    main: Main, flags: str, words: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [*flags.split(), "--ckpt", RESNET, "--out", str(tmp_path / "out")]) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_view_is_the_papers_for_all_and_the_backbones_own_where_asked(world: Path, tmp_path: Path) -> None:
    """On 46c01a2 a backbone was seen at the size that its weights show."""
    seen = {}
    for view in ("paper", "own"):
        out = tmp_path / f"{view}.json"
        flags = f"--data data --k 3 --view {view} --ckpt {VIT} --out {out} --workers 0 --cache {tmp_path / 'cache'}"
        assert run_command(knn.main, flags.split()) == DONE
        seen[view] = json.loads(out.read_text())["protocol"]
    assert (seen["paper"]["resize"], seen["paper"]["crop"]) == (256, 224) and "view" not in seen["paper"]
    assert (seen["own"]["resize"], seen["own"]["crop"], seen["own"]["view"]) == (168, 160, "own")


def test_attention_of_a_vit_of_timm_is_drawn(world: Path, tmp_path: Path) -> None:
    """On 46c01a2: "is computed by timm, which keeps it"."""
    flags = f"attention --data data --limit 1 --size 96 --ckpt {VIT} --out {tmp_path / 'out'}"
    assert run_command(visualize.main, flags.split()) == DONE
