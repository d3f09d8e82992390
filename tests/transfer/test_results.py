"""What a dense run leaves for a person: numbers by class, confusion, a page, records that the tables know."""

import csv
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.commands import ROOT, command
from tests.support.networks import VIT, write_moved

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

from checkpoints.cli import run_command
from pretrain.sample import dense
from probes import tables
from probes.paper import published
from probes.report import __main__ as report_page
from transfer.config import toolboxes

toolboxes()

from transfer.results import by_class, evaluators  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things

IDS = {1: 3, 2: 9, 3: 50}
NAMES = {3: "=1+1", 9: "<b>細胞</b>", 50: "none", 70: "never"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moved(tmp_path_factory.mktemp("ckpt") / "b.safetensors", VIT._replace(depth=4, image_size=32))


def transfer(task: str, *flags: object) -> None:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # the other package family is tested through it
    done = subprocess.run(
        **command("-m", "transfer.train", "--task", task, *map(str, flags), PYTHONPATH=paths), check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def detector(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on classes with gaps between their ids, one without an object, and names that are HTML and a formula."""
    root, out = tmp_path_factory.mktemp("coco"), tmp_path_factory.mktemp("run") / "detector"
    dense.write_coco(root, {"train": 24, "val": 8}, size=64)
    for part in ("train", "val"):
        file = root / "annotations" / f"instances_{part}2017.json"
        content = json.loads(file.read_text())
        content["categories"] = [{"id": one, "name": name} for one, name in NAMES.items()]
        for thing in content["annotations"]:
            thing["category_id"] = IDS[1 + thing["category_id"] % 3]
        file.write_text(json.dumps(content))
    options = ["train_cfg.max_epochs=6", "train_dataloader.batch_size=4"]
    transfer("coco", "--ckpt", tiny, "--data", root, "--config", "sample", "--out", out, "--cfg-options", *options)
    return out


@pytest.fixture(scope="module")
def segmenter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, out = tmp_path_factory.mktemp("ade20k"), tmp_path_factory.mktemp("run") / "segmenter"
    dense.write_ade20k(root, {"train": 16, "val": 8}, size=64)
    options = ["train_cfg.max_iters=12", "default_hooks.checkpoint.interval=6"]
    config = ["--config", "sample_linear", "--cfg-options", *options]
    transfer("ade20k", "--ckpt", tiny, "--data", root, "--out", out, *config)
    return out


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def record_of(run: Path) -> dict[str, Any]:
    (file,) = (run / "results").glob("transfer_*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_ap_of_each_class_is_written_by_the_users_own_ids(detector: Path) -> None:
    rows = rows_of(detector / "results" / "transfer_coco_classes.csv")
    assert [(row["class"], row["id"]) for row in rows] == [("'=1+1", "3"), ("<b>細胞</b>", "9"), ("none", "50"), ("never", "70")]
    assert (rows[3]["objects"], rows[3]["box_ap"], rows[3]["mask_ap_50"]) == ("0", "", "")
    found = record_of(detector)["metrics"]
    assert found["box_ap"] > 0
    for name in ("box_ap", "box_ap_50", "mask_ap", "mask_ap_75"):
        mean = np.mean([float(row[name]) for row in rows if row[name]])
        assert mean == pytest.approx(found[name], abs=0.06), name  # MMDetection rounds to 0.1


def test_ap_by_class_is_what_a_hand_computes() -> None:
    """One thing of class 7 found exactly, after a wrong answer: precision 1/2 at every recall. Class 8 has a crowd alone."""
    from pycocotools.coco import COCO  # noqa: PLC0415

    truth = COCO()
    thing = {"id": 1, "image_id": 0, "category_id": 7, "iscrowd": 0, "bbox": [4, 4, 10, 10], "area": 100}
    truth.dataset = {
        "images": [{"id": 0, "height": 32, "width": 32}],
        "annotations": [thing, thing | {"id": 2, "category_id": 8, "iscrowd": 1}],
        "categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "b"}],
        "info": {},
    }
    truth.createIndex()
    answers = [
        {"image_id": 0, "category_id": 7, "bbox": box, "score": score}
        for box, score in (([20, 20, 5, 5], 0.9), ([4, 4, 10, 10], 0.8))
    ]
    first, second = evaluators.by_class(truth, [7, 8], {"box": answers})
    assert first.ap == pytest.approx({"box_ap": 50.0, "box_ap_50": 50.0, "box_ap_75": 50.0}) and first.objects == 1
    assert second.ap == {} and second.objects == 0
    assert by_class.detection([first, second])[2] == ["b", "8", "0", "0", "", "", ""]


def test_iou_of_each_class_and_confusion_are_those_of_the_mean(segmenter: Path) -> None:
    rows, found = rows_of(segmenter / "results" / "transfer_ade20k_classes.csv"), record_of(segmenter)["metrics"]
    assert [row["label"] for row in rows] == [str(label) for label in range(1, 12)]  # label 0 is void
    assert np.mean([float(row["iou"]) for row in rows if row["iou"]]) == pytest.approx(found["miou"], abs=0.006)
    assert np.mean([float(row["acc"]) for row in rows if row["acc"]]) == pytest.approx(found["macc"], abs=0.006)
    table = rows_of(segmenter / "results" / "transfer_ade20k_confusion.csv")
    counts = np.array([[int(row[name]) for name in (one["class"] for one in rows)] for row in table])
    assert [row["truth"] for row in table] == [row["class"] for row in rows]
    assert 100 * counts.trace() / counts.sum() == pytest.approx(found["aacc"], abs=0.006)
    assert counts.sum(axis=1).tolist() == [int(row["pixels"]) for row in rows]
    assert Image.open(segmenter / "results" / "transfer_ade20k_confusion.png").width > 500


def test_confusion_leaves_void_out_and_classes_that_do_not_occur_are_empty() -> None:
    truth, answer = torch.tensor([[[0, 0, 1, 255]]]), torch.tensor([[[0, 1, 1, 0]]])
    metric = evaluators.IBOTConfusion()
    metric.dataset_meta = {"classes": ("a", "b", "c")}
    sample = {"pred_sem_seg": {"data": answer}, "gt_sem_seg": {"data": truth}}
    metric.process({}, [sample, sample])
    assert metric.compute_metrics(metric.results) == {}
    assert metric.counts is not None and metric.counts.tolist() == [[2, 2, 0], [0, 2, 0], [0, 0, 0]]
    table = by_class.segmentation(metric.counts, ["a", "b", "c"], [1, 2, 3])
    assert table[1:] == [
        ["a", "1", "4", "2", "50.00", "50.00"],
        ["b", "2", "2", "4", "50.00", "100.00"],
        ["c", "3", "0", "0", "", ""],
    ]


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_the_page_stands_alone_and_names_are_no_html(task: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue("detector" if task == "coco" else "segmenter")
    text = (run / "results" / f"transfer_{task}.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "<b>細胞" not in text and ("&lt;b&gt;細胞" in text) == (task == "coco")
    assert text.count('src="data:image/webp;base64,') == 8 and text.count("src=") == 8
    assert ("Percent of the pixels of each class" in text) == (task == "ade20k")
    headline = record_of(run)["metrics"]["box_ap" if task == "coco" else "miou"]
    assert f"<b>{headline:.1f}</b>" in text


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_a_record_arrives_in_the_tables_and_the_report(task: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """And with the paper's protocol beside its number: the record as a run of the paper's would write it."""
    run = request.getfixturevalue("detector" if task == "coco" else "segmenter")
    record, names = record_of(run), {"coco": ("box_ap", "mask_ap"), "ade20k": ("miou",)}[task]
    values = [f"{record['metrics'][name]:.1f}" for name in names]
    assert run_command(report_page.main, [str(run), "--out", str(tmp_path / "r.html"), "--pictures", "false"]) == 0
    page = (tmp_path / "r.html").read_text()
    assert all(f"<b>{value}</b>" in page for value in values)
    config, column = {"coco": ("cascade_vits16_1x", "APb"), "ade20k": ("upernet_vits16", "mIoU_upernet")}[task]
    position = "by size on loading to " + ("50 x 63" if task == "coco" else "32 x 32")
    counts = {"coco": (118_287, 5_000), "ade20k": (20_210, 2_000)}[task]
    record["checkpoint"] |= {"arch": "vit_small", "patch_size": 16}
    record["data"] |= dict(zip(("train_images", "val_images"), counts, strict=True))
    record["protocol"] |= {"config": config, "cfg_options": [], "lr_ratio": 1.0, "position": position}
    (tmp_path / "theirs.json").write_text(json.dumps(record))
    (row,) = (one for one in published.tables()["T6a_dense_small"].rows if one.method == "iBOT" and one.arch.startswith("ViT-S"))
    lines = tables.measured(tables.read_records([tmp_path / "theirs.json"]))["T6a_dense_small"]
    assert [line.kind for line in lines] == ["measured", "difference"]
    assert lines[0].cells[column] == pytest.approx(record["metrics"][names[0]])
    assert lines[1].cells[column].startswith(f"{record['metrics'][names[0]] - row.cells[column]:+.1f}")


def test_evaluators_of_another_kind_stay_as_they_are() -> None:
    config = SimpleNamespace(test_evaluator={"type": "LVISMetric"})
    evaluators.keep_classes(config)
    assert config.test_evaluator == {"type": "LVISMetric"} and evaluators.kept([object()]) == ((), None)
