"""k-NN classification on frozen features, the paper's first number: `python -m probes.knn --ckpt runs/sample`.

Protocol of Table 1: last [CLS] of the teacher, length one; the k nearest of the training images by dot product vote with
exp(similarity / 0.07); k is 10, 20, 100 and 200, the best of them is the one reported; resize 256, centre crop 224,
bicubic, float32.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError, at_least, parse, run_command
from pretrain.evaluate import knn
from pretrain.images import values
from pretrain.images.open import open_images
from pretrain.images.source import Images
from probes.features import search
from probes.features.cache import array_of, extract, needed
from probes.shared import console, record, stored
from probes.shared.subject import (
    Parts,
    Probed,
    Viewed,
    about_data,
    about_view,
    class_count,
    labelled_parts,
    labels_of,
    limited,
    of_several_classes,
    open_subject,
    record_path,
    untrained,
)


@dataclass(frozen=True)
class KnnOptions(Probed):
    """Classify images by their nearest neighbours among training images (paper, Tables 1, 10, 12, 15)."""

    k: tuple[int, ...] = knn.KS
    """Numbers of neighbours."""
    temperature: float = knn.TEMPERATURE
    """Temperature of the votes."""
    features: Literal["cls", "patches", "patches_norm"] = "cls"
    """The last [CLS], or the mean of the last patch tokens: before the final norm (the paper's view of methods without a [CLS]
    loss, Tables 9 and 20), or after it (`patches_norm`)."""
    leave_one_out: bool = False
    """For data without test images: each image is classified by all others."""
    baselines: bool = False
    """Also measure raw pixels and the same backbone untrained."""


class Measured(NamedTuple):
    """Percent by k, and how the neighbours were found."""

    top1: dict[int, float]
    top5: dict[int, float]
    way: str

    def best(self) -> tuple[int, float]:
        """The k with the highest top-1, and that."""
        k = max(self.top1, key=self.top1.__getitem__)
        return k, self.top1[k]


def measure(bank: np.ndarray, queries: np.ndarray, parts: Parts, options: KnnOptions, device: torch.device) -> Measured:
    """Accuracies of features [t, d] and [q, d] of any length; with `leave_one_out` both are the same."""
    classes = class_count(parts)
    asked = F.normalize(torch.tensor(queries, device=device), dim=1)
    way = search.quickest(asked, bank, max(options.k))
    found = knn.nearest(asked, bank, max(options.k), within=search.WAYS[way], others=options.leave_one_out, unit=True)
    answers = knn.votes(found, labels_of(parts.train), classes, options.k, options.temperature)
    labels = labels_of(parts.val)
    top1, top5 = ({k: knn.accuracy(a, labels, top) for k, a in answers.items()} for top in (1, 5))
    return Measured(top1, top5, way)


def open_parts(options: KnnOptions, shape: Architecture) -> Parts:
    """Training and test images; the same ones for `--leave-one-out`."""
    if not options.leave_one_out:
        return labelled_parts(options, shape)
    seen = shape.channels, shape.value_range
    file = options.embeddings
    every = open_images(options.data, "train", *seen) if file is None else stored.StoredImages(file, None)
    every = of_several_classes(limited(of_several_classes(every), options))
    values.refuse_others(every)
    if len(every) < 2:
        raise UserError(f"--leave-one-out needs two images or more: {every.name} has {len(every)}")
    return Parts(every, every)


def check(options: KnnOptions) -> None:
    """Raise UserError for values without meaning."""
    at_least(1, options, "k")
    if options.temperature <= 0:
        raise UserError("--temperature must be greater than 0")
    if options.leave_one_out and options.val:
        raise UserError("--leave-one-out tests on the training images: leave --val out")


def main(arguments: Sequence[str]) -> None:
    options = parse(KnnOptions, arguments, prog="python -m probes.knn")
    check(options)
    began = time.perf_counter()
    with open_subject(options) as subject:
        out = record_path(options, subject, "knn")
        parts = open_parts(options, subject.loaded.backbone.shape)
        rows = {"this checkpoint": of_backbone(subject, parts, options)}
        if options.baselines:
            rows["the same, untrained"] = of_backbone(untrained(subject, options.seed), parts, options)
            rows["raw pixels"] = of_pixels(subject, parts, options)
        seconds = time.perf_counter() - began
        others = len(parts.train) - options.leave_one_out
        if max(options.k) > others:
            beyond = ", ".join(str(k) for k in options.k if k > others)
            console.say(f"k = {beyond}: the bank has {others} images, and all of them vote")
        show_rows(rows, parts, subject, seconds)
        record.write(
            out,
            probe="knn",
            table="T1_knn_linear_in1k",
            loaded=subject.loaded,
            data=about_data(parts),
            protocol=about_view(options, subject.view) | about(options),
            metrics=metrics(rows),
            seconds=seconds,
            device=subject.device.type,
        )


def about(options: KnnOptions) -> dict[str, Any]:
    """Fields of a record's protocol."""
    said = {"k": list(options.k), "temperature": options.temperature, "leave_one_out": options.leave_one_out}
    return said | {"features": array_of(options.features)}


def of_backbone(subject: Viewed, parts: Parts, options: KnnOptions) -> Measured:
    """Accuracies with features of the subject's backbone."""
    kind = array_of(options.features)
    found = (extract(subject.loaded.backbone, images, subject.view, options, needed(kind, subject.backbone)) for images in parts)
    bank, queries = (one.cls if kind == "cls" else one.arrays[kind] for one in found)
    return measure(bank, queries, parts, options, subject.device)


def of_pixels(subject: Viewed, parts: Parts, options: KnnOptions) -> Measured:
    """Accuracies with each image's normalised pixels."""
    shape = subject.loaded.backbone.shape
    train, val = (pixels(images, shape.mean, shape.std, subject) for images in parts)
    return measure(train.numpy(), val.numpy(), parts, options, subject.device)


def pixels(images: Images, mean: Sequence[float], std: Sequence[float], subject: Viewed) -> Tensor:
    """The baseline that has learnt nothing."""
    return knn.pixels(images, mean, std, resize=subject.view.resize, crop=subject.view.crop)


def metrics(rows: dict[str, Measured]) -> dict[str, float]:
    """The record's numbers: `top1`, `top5` of the best k, each k's own, and the baselines' best."""
    mine = rows["this checkpoint"]
    k, best = mine.best()
    numbers = {"top1": best, "top5": mine.top5[k], "best_k": float(k)}
    numbers |= {f"top1_k{k}": value for k, value in mine.top1.items()} | {f"top5_k{k}": v for k, v in mine.top5.items()}
    names = {"the same, untrained": "untrained_top1", "raw pixels": "pixels_top1"}
    return numbers | {names[name]: row.best()[1] for name, row in rows.items() if name in names}


def show_rows(rows: dict[str, Measured], parts: Parts, subject: Viewed, seconds: float) -> None:
    """A table: top-1 by k, and the best."""
    mine = rows["this checkpoint"]
    title = f"k-NN top-1 % on {parts.val.name}, bank of {len(parts.train)}: {subject.loaded.path}"
    lines = []
    for name, row in rows.items():
        k, best = row.best()
        lines.append([name, *(f"{value:.1f}" for value in row.top1.values()), f"{best:.1f} (k={k})"])
    console.table(title, ["features", *(f"k={k}" for k in mine.top1), "best"], lines)
    console.say(f"top-5 % of this checkpoint: {mine.top5[mine.best()[0]]:.1f}   search by {mine.way}   {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(run_command(main))
