"""Numbers and intervals of the probes against scikit-learn's own, computed from the features independently."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import normalize

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain.images.open import open_images
from pretrain.models.backbone import load_backbone
from probes import cluster, knn, logistic, semi
from probes.features.cache import extract
from probes.linear import __main__ as linear
from probes.shared import metrics
from probes.shared import record as results
from probes.shared.subject import Common, View
from tests.support import networks
from tests.support.pictures import encoded, noise

COUNT = 60
STRUCTS = [{"bytes": encoded(image), "path": None} for image in noise(COUNT)]
GENERATOR = np.random.default_rng(0)
CLASSES = np.array(["cat", "dog", "bird"])[GENERATOR.integers(0, 3, COUNT)]
SEVERAL = [list(np.array(list("abcd"))[row]) for row in GENERATOR.random((COUNT, 4)) < 0.4]
VALUES = GENERATOR.normal(size=COUNT)
PATIENTS = GENERATOR.integers(0, 15, COUNT)
Main = Callable[[Sequence[str]], Any]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.write(tmp_path_factory.mktemp("ckpt") / "backbone.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images to train and twenty to test with labels of every kind; all of them in one file, too."""
    root = tmp_path_factory.mktemp("data")
    columns = {"image": STRUCTS, "kind": CLASSES, "labels": SEVERAL, "age": VALUES, "patient": PATIENTS}
    whole = pa.table({name: pa.array(values) for name, values in columns.items()})
    (root / "parts").mkdir()
    pq.write_table(whole.slice(0, 40), root / "parts" / "train.parquet")
    pq.write_table(whole.slice(40), root / "parts" / "val.parquet")
    pq.write_table(whole, root / "all.parquet")
    return root


def measured(main: Main, ckpt: Path, out: Path, *flags: object) -> dict[str, Any]:
    """The record of a probe."""
    given = ["--ckpt", ckpt, "--out", out, "--device", "cpu", "--crop", 32, "--resize", 32, *flags]
    assert run_command(main, [str(flag) for flag in given]) == DONE
    found = results.read(out)
    assert found is not None
    return found


def features(ckpt: Path, data: Path) -> np.ndarray:
    """[CLS] of all sixty, of length one."""
    backbone = load_backbone(ckpt).backbone
    return normalize(extract(backbone, open_images(str(data / "all.parquet")), View(32, 32), Common()).cls)


def indicators(rows: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([[name in row for name in "abcd"] for row in rows]).astype(int)


def agrees(found: dict[str, Any], expected: dict[str, float]) -> None:
    """Numbers are equal, and inside their intervals."""
    for name, value in expected.items():
        assert found["metrics"][name] == pytest.approx(value, abs=2e-3), name
        low, high = found["intervals"][name]
        assert low <= value <= high, name


def votes(near: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the k nearest of the forty, and their weights."""
    order = np.argsort(-near, axis=1)[:, :k]
    weights = np.exp(np.take_along_axis(near, order, axis=1) / 0.07)
    return order, weights / weights.sum(axis=1, keepdims=True)


def test_several_labels_an_image_give_scikit_learns_numbers(ckpt: Path, data: Path, tmp_path: Path) -> None:
    """46c01a2 had no such labels."""
    every, truth = features(ckpt, data), indicators(SEVERAL)
    order, weights = votes(every[40:] @ every[:40].T, 5)
    shares = (weights[:, :, None] * truth[:40][order]).sum(axis=1)
    found = measured(knn.main, ckpt, tmp_path / "knn.json", "--data", data / "parts", "--k", 5)
    asked = truth[40:]
    of = {
        "mean_ap": 100 * float(sk.average_precision_score(asked, shares)),
        "auroc": 100 * float(sk.roc_auc_score(asked, shares)),
        "macro_f1": 100 * float(sk.f1_score(asked, shares >= 0.5, average="macro", zero_division=0)),
        "micro_f1": 100 * float(sk.f1_score(asked, shares >= 0.5, average="micro")),
    }
    agrees(found, of)
    assert found["data"]["task"] == "multi-label" and found["metrics"]["mean_ap_k5"] == found["metrics"]["mean_ap"]
    own = [
        LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8, max_iter=5000).fit(every[:40], truth[:40, k]) for k in range(4)
    ]
    logits = np.stack([one.decision_function(every[40:]) for one in own], axis=1)
    found = measured(logistic.main, ckpt, tmp_path / "logistic.json", "--data", data / "parts", "--strength", 1)
    agrees(
        found, {"mean_ap": 100 * float(sk.average_precision_score(asked, logits)), "auroc": 100 * sk.roc_auc_score(asked, logits)}
    )
    found = measured(linear.main, ckpt, tmp_path / "linear.json", "--data", data / "parts", "--epochs", 2, "--mode", "cached")
    assert (
        found["metrics"].keys() >= {"mean_ap", "auroc", "macro_f1", "mean_ap_last", "best_lr"} and "top1" not in found["metrics"]
    )


def test_values_give_scikit_learns_numbers(ckpt: Path, data: Path, tmp_path: Path) -> None:
    every = features(ckpt, data)
    flags = ("--data", data / "parts", "--label-column", "age")

    def weights_of(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances**2 / 2) / 0.07)

    near = KNeighborsRegressor(5, weights=weights_of).fit(every[:40], VALUES[:40])
    said = near.predict(every[40:])
    expected = {"r2": sk.r2_score(VALUES[40:], said), "mae": sk.mean_absolute_error(VALUES[40:], said)}
    agrees(measured(knn.main, ckpt, tmp_path / "knn.json", *flags, "--k", 5), expected)
    said = Ridge(alpha=0.5).fit(every[:40].astype(np.float64), VALUES[:40]).predict(every[40:].astype(np.float64))
    expected = {"r2": sk.r2_score(VALUES[40:], said), "mae": sk.mean_absolute_error(VALUES[40:], said)}
    agrees(measured(logistic.main, ckpt, tmp_path / "logistic.json", *flags, "--strength", 0.5), expected)
    found = measured(linear.main, ckpt, tmp_path / "linear.json", *flags)
    assert found["metrics"].keys() == {"r2", "mae", "best_strength"}


def test_groups_stand_on_one_side_and_the_numbers_are_scikit_learns(
    ckpt: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--label-column", "kind", "--group", "patient")
    found = measured(knn.main, ckpt, tmp_path / "knn.json", "--data", data / "all.parquet", *flags, "--k", 5)
    every, numbers = features(ckpt, data), np.unique(CLASSES, return_inverse=True)[1]
    split = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(every, numbers, PATIENTS.astype(str))
    learnt, asked = next(split)
    assert not set(PATIENTS[learnt]) & set(PATIENTS[asked])
    order, weights = votes(every[asked] @ every[learnt].T, 5)
    shares = (weights[:, :, None] * np.eye(3)[numbers[learnt][order]]).sum(axis=1)
    said, truth = shares.argmax(axis=1), numbers[asked]
    agrees(
        found,
        {
            "top1": 100 * sk.accuracy_score(truth, said),
            "balanced_accuracy": 100 * sk.balanced_accuracy_score(truth, said),
            "macro_f1": 100 * sk.f1_score(truth, said, average="macro"),
            "auroc": 100 * sk.roc_auc_score(truth, shares, multi_class="ovr"),
            "mean_ap": 100 * float(sk.average_precision_score(np.eye(3)[truth], shares)),
        },
    )
    assert found["data"]["val_images"] == len(asked) and found["protocol"]["group"] == "patient"
    parts = ["--ckpt", str(ckpt), "--data", str(data / "parts"), *flags]
    capsys.readouterr()
    assert run_command(knn.main, parts) == WRONG_COMMAND
    assert "of its values are in both" in (said_ := capsys.readouterr().err) and said_.count("\n") == 1
    for main, more in ((knn.main, ["--leave-one-out"]), (cluster.main, []), (semi.main, [])):
        assert run_command(main, [*parts, *more]) == WRONG_COMMAND
    assert run_command(knn.main, ["--ckpt", str(ckpt), "--data", "sample", "--group", "patient"]) == WRONG_COMMAND


def test_several_seeds_give_mean_and_spread(ckpt: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--data", data / "parts", "--label-column", "kind", "--k", 3)
    each = [
        measured(knn.main, ckpt, tmp_path / f"{seed}.json", *flags, "--limit", 15, "--seed", seed)["metrics"]["top1"]
        for seed in (4, 5)
    ]
    both = measured(knn.main, ckpt, tmp_path / "both.json", *flags, "--limit", 15, "--seed", 4, "--seeds", 2)
    assert both["metrics"]["top1"] == pytest.approx(np.mean(each), abs=1e-3) and both["protocol"]["seeds"] == 2
    assert both["metrics"]["top1_std"] == pytest.approx(np.std(each, ddof=1), abs=1e-3)
    capsys.readouterr()
    once = measured(knn.main, ckpt, tmp_path / "once.json", *flags, "--seeds", 3)
    assert "nothing is drawn here" in capsys.readouterr().out and "top1_std" not in once["metrics"]
    trained = measured(linear.main, ckpt, tmp_path / "linear.json", *flags[:4], "--epochs", 1, "--seeds", 2, "--mode", "cached")
    assert trained["metrics"]["top1_std"] >= 0 and trained["protocol"]["seeds"] == 2
    few = ("--frozen", "--percent", 40, "--epochs", 1, "--mode", "cached", "--seeds", 2)
    found = measured(semi.main, ckpt, tmp_path / "semi.json", *flags[:4], *few)
    assert found["metrics"].keys() >= {"k-NN_40%", "k-NN_40%_std"} and not list(tmp_path.glob("*.state.pt"))
    assert found["intervals"].keys() == {"k-NN_40%", "linear_40%", "logistic_40%"}
    found = measured(cluster.main, ckpt, tmp_path / "cluster.json", *flags[:4], "--method", "kmeans", "--seeds", 2)
    assert found["metrics"].keys() >= {"kmeans_acc", "kmeans_acc_std"} and found["intervals"].keys() == {"kmeans_acc"}


def test_a_class_without_a_test_image_is_said(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 test images of one class alone could be 100 %, and an absent class was in no sentence."""
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": STRUCTS[:9], "label": ["a", "b", "c"] * 3}), tmp_path / "d" / "train.parquet")
    pq.write_table(pa.table({"image": STRUCTS[9:13], "label": ["a", "b"] * 2}), tmp_path / "d" / "val.parquet")
    pq.write_table(pa.table({"image": STRUCTS[9:13], "label": ["a"] * 4}), tmp_path / "one.parquet")
    found = measured(knn.main, ckpt, tmp_path / "knn.json", "--data", tmp_path / "d")
    assert "1 of 3 classes have no test image" in capsys.readouterr().out and "(c)" not in found["metrics"]
    one = ["--ckpt", str(ckpt), "--data", str(tmp_path / "d"), "--val", str(tmp_path / "one.parquet")]
    assert run_command(knn.main, one) == WRONG_COMMAND
    assert "has one class only (a)" in capsys.readouterr().err


def test_resampled_numbers_are_scikit_learns_with_weights() -> None:
    generator = np.random.default_rng(3)
    scores, truth = np.round(generator.random(200), 1), generator.random(200) < 0.3  # many equal scores
    weights = generator.integers(0, 4, (4, 200)).astype(np.float32)
    found = metrics.by_order(scores, truth, weights)
    for number, weight in enumerate(weights):
        assert found[0, number] == pytest.approx(sk.roc_auc_score(truth, scores, sample_weight=weight))
        assert found[1, number] == pytest.approx(sk.average_precision_score(truth, scores, sample_weight=weight))
    assert np.isnan(metrics.by_order(scores, truth, (~truth[None]).astype(np.float32))).all()
    labels = generator.integers(0, 4, 300)
    answers = np.where(generator.random(300) < 0.6, labels, generator.integers(0, 4, 300))
    rows = generator.integers(0, 300, (1000, 300))
    drawn = [100 * sk.balanced_accuracy_score(labels[row], answers[row]) for row in rows]
    one = metrics.of_classes(answers[:, None], labels, None)["balanced_accuracy"]
    assert [one.low, one.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=1.0)


def test_records_without_intervals_are_still_read(tmp_path: Path) -> None:
    record = {"schema": 1, "probe": "knn", "checkpoint": {"path": "a", "arch": "b"}, "metrics": {"top1": 1.0}}
    (tmp_path / "old.json").write_text(json.dumps(record))
    found = results.read(tmp_path / "old.json")
    assert found is not None and found["intervals"] == {}
