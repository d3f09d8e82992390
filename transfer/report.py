"""The numbers of a detector or segmenter, by our names, and their record."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from checkpoints import escape, store, terminal
from checkpoints.cli import WorkError
from probes.shared import record
from probes.shared.confusion import shares_of
from probes.shared.confusion_picture import picture
from transfer.config import changes_of, images_a_step
from transfer.options import TransferOptions
from transfer.results import by_class, page
from transfer.results.by_class import ClassAP
from transfer.trained import Trained

METRICS = {
    "coco": {"box_ap": "coco/bbox_mAP", "mask_ap": "coco/segm_mAP"}
    | {
        f"{kind}_ap_{size}": f"coco/{name}_mAP_{size}"
        for kind, name in (("box", "bbox"), ("mask", "segm"))
        for size in ("50", "75", "s", "m", "l")
    },
    "ade20k": {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc", "miou_ms": "ms_mIoU", "macc_ms": "ms_mAcc"},
}
"""Our names for the toolboxes' numbers."""
HEADLINES = {"coco": ("box_ap", "mask_ap"), "ade20k": ("miou",)}
"""The numbers without which there is no record."""
PAGE = ".html"
"""Ending of the page's name in place of the record's."""
TABLES = {"coco": "T6a_dense_small", "ade20k": "T6a_dense_small"}


class Tested(NamedTuple):
    """What a test has found."""

    numbers: Mapping[str, Any]
    """By the toolboxes' names."""
    model: Trained
    rows: Sequence[ClassAP]
    """AP by class, where it was measured."""
    counts: np.ndarray | None
    """Confusion of pixels, where it was counted: `[k, k]`, a row for each true class."""
    drawn: Sequence[tuple[str, Path]]
    """Names of test images, and files of the truth beside the predictions."""


def report(
    options: TransferOptions,
    config: Any,
    loaded: Any,
    tested: Tested,
    ratio: float,
    seconds: float,
    counts: Mapping[str, int],
) -> None:
    """Print the numbers and write the record."""
    numbers = tested.numbers
    found = {ours: float(numbers[theirs]) for ours, theirs in METRICS[options.task].items() if theirs in numbers}
    if options.task == "coco":  # -1 where there is nothing of that size
        found = {name: 100 * value for name, value in found.items() if value >= 0}
    found = {name: round(value, 4) for name, value in found.items()}  # as in the record, so that the page says the same
    out = Path(config.work_dir)
    refuse_without(found, [name for name in HEADLINES[options.task] if name != "mask_ap" or "heads" not in config.of_data])
    protocol = {
        "config": Path(config.filename).stem,
        "from_scratch": options.from_scratch,
        "key": options.key,
        "lr": config.optim_wrapper.optimizer.lr * ratio,
        "lr_ratio": ratio,
        "images_a_step": images_a_step(config),
        "cfg_options": [*changes_of(options), *resized(options)],
        "position": position(loaded.backbone.shape.kind, config.model.backbone.get("grid")),
        **config.of_backbone,
        **config.of_data,
        "max_epochs": config.train_cfg.get("max_epochs"),
        "max_iters": config.train_cfg.get("max_iters"),
    }
    data = {"root": str(options.data or options.train_json or "sample"), **counts}
    written = record.write(
        record_path(config, options),
        probe=f"transfer_{options.task}",
        table=TABLES[options.task],
        loaded=loaded,
        data=data,
        protocol=protocol,
        metrics=found,
        seconds=seconds,
        device="cuda" if torch.cuda.is_available() else "cpu",
        beside=_beside(tested, found, data | protocol, out.resolve().name),
    )
    terminal.say(json.dumps({name: round(value, 2) for name, value in found.items()}))
    terminal.say(f"predictions drawn in {out}/predictions, results in {written}, report in {written.with_suffix(PAGE)}")


def _beside(tested: Tested, found: Mapping[str, float], about: Mapping[str, Any], name: str) -> dict[str, Callable[[Path], None]]:
    """What is written beside the record, by the ending of its name: classes, confusion, the page."""
    counts, classes, model = tested.counts, tested.model.classes, tested.model
    files: dict[str, Callable[[], bytes]] = {}
    table = by_class.detection(tested.rows) if counts is None else by_class.segmentation(counts, classes, model.ids)
    if len(table) > 1:
        files["_classes.csv"] = lambda: _text(escape.csv_text(table))
    if counts is not None:
        files["_confusion.csv"] = lambda: _text(by_class.confusion(counts, classes))
        files["_confusion.png"] = lambda: picture(shares_of(counts), classes, "pixels")
    shown = page.Results(model.task, name, found, about, tested.drawn, table, counts)
    files[PAGE] = lambda: _text(page.written(shown))

    def writer(content: Callable[[], bytes]) -> Callable[[Path], None]:
        return lambda path: store.write_bytes(path, content())

    return {ending: writer(content) for ending, content in files.items()}


def _text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def resized(options: TransferOptions) -> list[str]:
    """--epochs, --iters and --size as values of the config; they move others too."""
    flags = {"train_cfg.max_epochs": options.epochs, "train_cfg.max_iters": options.iters, "size": options.size}
    return [f"{name}={value}" for name, value in flags.items() if value is not None]


def refuse_without(found: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise WorkError where one of the numbers that a record is for is not there, or is not finite."""
    missing = [name for name in names if not math.isfinite(found.get(name, math.nan))]
    if missing:
        what = "nothing was found in any test image, or there is nothing to find"
        raise WorkError(
            f"the test has no {' and no '.join(missing)} ({what}): no results are written; train longer, or look at the data"
        )


def record_path(config: Any, options: TransferOptions) -> Path:
    """Path of the record, in the folder of the run."""
    return Path(config.work_dir) / "results" / f"transfer_{options.task}.json"


def position(kind: str, grid: Sequence[int] | None) -> str:
    """The rule for position embeddings, as in a record."""
    if kind == "swin":
        return "none"
    if kind == "timm":
        return "as the backbone's library does it"
    return "of the checkpoint's grid" if grid is None else f"by size on loading to {grid[0]} x {grid[1]}"
