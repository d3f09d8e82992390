"""Evaluators that keep what a mean hides: AP by class, and confusion of pixels. Importing this file registers them.

k classes.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.evaluation.metrics import CocoMetric
from mmengine.evaluator import BaseMetric
from mmengine.fileio import load
from mmengine.registry import METRICS
from pycocotools.cocoeval import COCOeval

from probes.shared.label_rule import NOTHING
from transfer.results.by_class import ClassAP

KINDS = {"bbox": "box", "segm": "mask"}
"""The toolbox's names of AP, and ours."""


@METRICS.register_module()
class IBOTDetections(CocoMetric):
    """COCO's AP, by class too: `rows`, on the main process after an evaluation; empty where nothing was found anywhere."""

    rows: Sequence[ClassAP] = ()

    def results2json(self, results: Sequence[dict[str, Any]], outfile_prefix: str) -> dict[str, str]:
        """As in MMDetection; what it writes is measured before MMDetection removes it."""
        files: dict[str, str] = super().results2json(results, outfile_prefix)
        found = {KINDS[kind]: load(files[kind]) for kind in self.metrics if kind in KINDS and kind in files}
        self.rows = by_class(self._coco_api, list(self.cat_ids), found) if any(found.values()) else ()
        return files


def by_class(truth: Any, ids: Sequence[int], found: dict[str, list[dict[str, Any]]]) -> list[ClassAP]:
    """AP of each category of COCO annotations for results by kind (`box`, `mask`), by COCO's own evaluation."""
    ap: dict[int, dict[str, float]] = {one: {} for one in ids}
    for kind, results in found.items():
        without = "bbox" if kind == "mask" else ""  # with a box, COCO's tools take its area for the object's
        own = [{name: value for name, value in one.items() if name != without} for one in results]
        measure = COCOeval(truth, truth.loadRes(own), {"box": "bbox", "mask": "segm"}[kind])
        measure.params.catIds, measure.params.areaRng, measure.params.areaRngLbl = list(ids), [[0, 1e10]], ["all"]
        measure.params.maxDets = [100]
        with contextlib.redirect_stdout(io.StringIO()):
            measure.evaluate()
            measure.accumulate()
        precision = measure.eval["precision"][:, :, :, 0, 0]  # thresholds, recalls, classes; -1 where there is no object
        for name, rows in (("ap", slice(None)), ("ap_50", slice(0, 1)), ("ap_75", slice(5, 6))):
            for place, one in enumerate(ids):
                values = precision[rows, :, place]
                if (values > -1).any():
                    ap[one][f"{kind}_{name}"] = 100 * float(values[values > -1].mean())
    return [_row(truth, one, ap[one]) for one in ids]


def _row(truth: Any, one: int, ap: dict[str, float]) -> ClassAP:
    objects = [thing for thing in truth.dataset["annotations"] if thing["category_id"] == one and not thing.get("iscrowd")]
    return ClassAP(str(truth.cats[one]["name"]), one, len({thing["image_id"] for thing in objects}), len(objects), ap)


@METRICS.register_module()
class IBOTConfusion(BaseMetric):
    """Pixels of each true class (row) by answer (column): `counts` [k, k], on the main process after an evaluation."""

    counts: np.ndarray | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps what occurs of an image's confusion: `[2, n]`, places in the flat matrix and how often."""
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            answer, truth = (
                sample[name]["data"].cpu().numpy().ravel().astype(np.int64) for name in ("pred_sem_seg", "gt_sem_seg")
            )
            known = truth != NOTHING
            self.results.append(np.stack(np.unique(truth[known] * classes + answer[known], return_counts=True)))

    def compute_metrics(self, results: Sequence[np.ndarray]) -> dict[str, float]:
        """Adds no number to the toolbox's."""
        classes = len(self.dataset_meta["classes"])
        counts = np.zeros(classes * classes, np.int64)
        for places, often in results:
            counts[places] += often  # each place once an image
        self.counts = counts.reshape(classes, classes)
        return {}


def keep_classes(config: Any) -> None:
    """Put them into the test of a config that has COCO's AP or MMSegmentation's IoU, in place; elsewhere nothing changes."""
    evaluator = config.test_evaluator
    if isinstance(evaluator, dict) and evaluator.get("type") == "CocoMetric":
        evaluator["type"] = "IBOTDetections"
    elif isinstance(evaluator, dict) and evaluator.get("type") == "IoUMetric":
        config.test_evaluator = [evaluator, {"type": "IBOTConfusion"}]


def kept(evaluators: Sequence[Any]) -> tuple[Sequence[ClassAP], np.ndarray | None]:
    """AP by class, and confusion, of a runner's evaluators after its test; nothing where there is none."""
    rows = next((one.rows for one in evaluators if isinstance(one, IBOTDetections)), ())
    return rows, next((one.counts for one in evaluators if isinstance(one, IBOTConfusion)), None)
