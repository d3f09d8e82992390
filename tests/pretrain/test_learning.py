"""The method learns: about a minute of the sample's own recipe. A broken loss, teacher, mask or crop shows here first."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoints.cli import DONE, run_command
from pretrain import train
from probes import cluster, logistic
from probes.linear import __main__ as linear
from tests.support import records


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of the sample's recipe."""
    folder = tmp_path_factory.mktemp("learning")
    flags = ["--seed", "1", "--epochs", "3", "--knn-every", "3", "--workers", "1", "--report", "false", "--out", str(folder)]
    assert run_command(train.main, flags) == DONE
    return folder


def test_three_epochs_of_the_sample_lift_knn_well_above_the_untrained_backbone(run: Path) -> None:
    """Seed 1 went from 26 to 38 % in the first two epochs of the whole recipe; 6 points are four standard errors."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    untrained, trained = (line["knn"] for line in lines if "knn" in line)
    assert trained > untrained + 6


@pytest.mark.parametrize(
    ("main", "flags", "name", "metric", "margin"),
    [
        (linear.main, "--epochs 20 --lr 0.01 0.03 0.1 0.3 1", "linear", "top1", 5.0),
        (logistic.main, "", "logistic", "top1", 5.0),
        (cluster.main, "--method kmeans", "cluster", "kmeans_nmi", 2.0),
    ],
)
def test_frozen_probes_find_the_trained_backbone_above_the_untrained_one(
    main: Callable[..., None], flags: str, name: str, metric: str, margin: float, run: Path
) -> None:
    """1,000 test images: a standard error of 1.6 points of accuracy."""
    found = {}
    for more in ("", "--untrained"):
        assert run_command(main, ["--ckpt", str(run), *flags.split(), *more.split()]) == DONE
        record = records.only(run / "results", f"{name}{'_untrained' if more else ''}")
        found[more] = json.loads(record.read_text())["metrics"][metric]
    assert found[""] > found["--untrained"] + margin
