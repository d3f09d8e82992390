"""Results of a fine-tuning: the record, per-class accuracy as a text table, the confusion matrix as a picture.

n test images, a predictions, k classes.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from rich.table import Table
from torch import Tensor

from checkpoints import escape, store, terminal
from checkpoints.architecture import Architecture
from pretrain.engine import distributed
from pretrain.engine.options import as_values
from pretrain.models.backbone import Loaded
from probes.finetune.checkpoint import Tested
from probes.finetune.data import Data
from probes.finetune.dataset import COLOUR_JITTER, TRAINING_INTERPOLATION
from probes.finetune.evaluate import resized_side
from probes.finetune.options import FinetuneOptions
from probes.finetune.recipes import RECIPES, table_of
from probes.shared import record as results
from probes.shared.confusion import counts_of, shares_of
from probes.shared.confusion_picture import picture
from probes.shared.metrics import intervals, line, of_classes, values


class Measured(NamedTuple):
    """A run with one learning rate."""

    lr: float
    tests: list[Tested]
    answers: dict[str, Int[Tensor, "n a"]]
    """Predictions of the `best` and of the `last` epoch."""
    skipped: int = 0
    """Steps that were not taken: their gradients were not finite."""

    def best(self) -> Tested:
        """The test with the highest top-1, the first of equals."""
        return max(self.tests, key=lambda test: test.top1)


class Summary(NamedTuple):
    """Results in percent, the path of their record, and the number of test images."""

    metrics: dict[str, float]
    record: Path
    images: int


def name_of(options: FinetuneOptions) -> str:
    """Name of this fine-tuning among others of the same checkpoint."""
    parts: list[str] = [options.recipe, options.data_set or ""]
    parts += [f"{options.percent:g}percent" if options.percent else "", options.names.stem if options.names else ""]
    parts += ["kept" if options.keep_head_layer else "", "scratch" if options.from_scratch else ""]
    return "-".join(part for part in parts if part)


def protocol(options: FinetuneOptions, shape: Architecture, diverged: list[float]) -> dict[str, Any]:
    """All that decides the numbers: every option, what follows from them, and what is the same in every fine-tuning.

    `diverged`: the learning rates that have no result.
    """
    size = options.input_size or shape.image_size
    resized = "as trained" if size == shape.image_size else options.positions or "in the forward"
    return {
        **as_values(options),
        "source": RECIPES[options.recipe].source,
        "reported": "best epoch, best learning rate",
        "diverged": diverged,
        "pretrained_size": shape.image_size,
        "position_embeddings": "none" if shape.kind == "swin" else resized,
        "test_resize": resized_side(options, shape),
        "test_crop": size,
        "train_interpolation": TRAINING_INTERPOLATION,
        "colour_jitter": 0.0 if options.randaugment else COLOUR_JITTER,
        "optimizer": "AdamW, betas 0.9 0.999, eps 1e-8",
    }


def write(
    options: FinetuneOptions, loaded: Loaded, data: Data, runs: list[Measured], diverged: list[float], seconds: float, device: str
) -> Summary:
    """Print a table, write the record and what goes beside it. Raises UserError where that cannot be."""
    best = max(runs, key=lambda run: run.best().top1)
    out = place(options, loaded)
    summary = Summary(metrics(runs, best), out, len(data.test))
    if not distributed.is_main():
        return summary
    scores = of_classes(best.answers["best"].numpy(), np.asarray(data.test.labels), None)
    summary = summary._replace(metrics=values(scores) | summary.metrics)
    show(runs, data, seconds)
    terminal.say(line(scores))
    labels, classes = np.asarray(data.test.labels), [str(name) for name in data.classes]
    first, last = (best.answers[which][:, 0].numpy() for which in ("best", "last"))

    def classes_as_csv(path: Path) -> None:
        store.write_bytes(path, by_class(labels, first, last, classes).encode("utf-8", "backslashreplace"))

    def confusion_as_png(path: Path) -> None:
        store.write_bytes(path, picture(confusion(labels, first, len(classes)), classes, "images"))

    written = results.write(
        out,
        probe="finetune",
        table=table_of(options.recipe, loaded.backbone.shape.embed_dim),
        loaded=loaded,
        data={"train": data.train.name, "val": data.test.name, "train_images": len(data.train), "val_images": len(data.test)},
        protocol=protocol(options, loaded.backbone.shape, diverged) | {"share": data.share.name, "labels": data.share.about},
        metrics=summary.metrics,
        intervals=intervals(scores),
        seconds=seconds,
        device=device,
        beside={".csv": classes_as_csv, ".png": confusion_as_png},
    )
    terminal.say(f"classes in {written.with_suffix('.csv').name} and {written.with_suffix('.png').name} beside it")
    return summary._replace(record=written)


def place(options: FinetuneOptions, loaded: Loaded) -> Path:
    """Path of the record, tested before the work. Raises UserError if it cannot be written."""
    return results.place(options.out, loaded, f"finetune-{name_of(options)}", options)


def metrics(runs: list[Measured], best: Measured) -> dict[str, float]:
    """The record's numbers: best and last epoch of the best learning rate, and every rate's own."""
    top, last = best.best(), best.tests[-1]
    numbers = {"top1": top.top1, "top5": top.top5, "best_epoch": float(top.epoch), "best_lr": best.lr}
    numbers |= {"last_top1": last.top1, "last_top5": last.top5, "last_epoch": float(last.epoch)}
    numbers |= {"skipped_steps": float(best.skipped)} if best.skipped else {}
    averaged = [test.ema_top1 for test in best.tests if test.ema_top1 is not None]
    numbers |= {"ema_top1": max(averaged), "ema_last_top1": averaged[-1]} if averaged else {}
    for run in runs if len(runs) > 1 else []:
        numbers |= {f"top1_lr{run.lr:g}": run.best().top1, f"last_top1_lr{run.lr:g}": run.tests[-1].top1}
    return numbers


def show(runs: list[Measured], data: Data, seconds: float) -> None:
    """A table: best and last epoch for every learning rate."""
    table = Table(title=f"fine-tuned on {len(data.train)} images, top-1 % on {data.test.name}", title_justify="left")
    for column in ("learning rate", "best", "in epoch", "top-5", "last", "last, averaged weights"):
        table.add_column(column, justify="right")
    for run in runs:
        top, last = run.best(), run.tests[-1]
        averaged = "" if last.ema_top1 is None else f"{last.ema_top1:.1f}"
        table.add_row(f"{run.lr:g}", f"{top.top1:.1f}", str(top.epoch), f"{top.top5:.1f}", f"{last.top1:.1f}", averaged)
    console = terminal.Console()
    console.print(table)
    console.print(f"{seconds:.0f} s")


def confusion(labels: Int[np.ndarray, " n"], answers: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, "k k"]:
    """Percent of a class's images (row) that were taken for each class (column); NaN where it has none."""
    return shares_of(counts_of(labels, answers, classes))


def by_class(labels: Int[np.ndarray, " n"], best: Int[np.ndarray, " n"], last: Int[np.ndarray, " n"], classes: list[str]) -> str:
    """A line a class: its test images, top-1 percent in the best and the last epoch, what it is mistaken for most."""
    rows: list[list[object]] = [["class", "images", "top1_best_epoch", "top1_last_epoch", "mistaken_for", "mistaken_percent"]]
    first, final = (confusion(labels, answers, len(classes)) for answers in (best, last))
    for number, name in enumerate(classes):
        count = int((labels == number).sum())
        if not count:
            rows.append([name, 0, "", "", "", ""])
            continue
        others = first[number].copy()
        others[number] = 0
        most = int(others.argmax())
        mistaken = [classes[most], f"{others[most]:.2f}"] if others[most] else ["", "0.00"]
        rows.append([name, count, f"{first[number, number]:.2f}", f"{final[number, number]:.2f}", *mistaken])
    return escape.csv_text(rows)
