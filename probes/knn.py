"""k-NN classification on frozen features, the paper's first number: `python -m probes.knn --ckpt runs/sample`.

Protocol of Table 1: last [CLS] of the teacher, length one; the k nearest of the training images by dot product vote with
exp(similarity / 0.07); k is 10, 20, 100 and 200, the best of them is the one reported; resize 256, centre crop 224,
bicubic, float32.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError, at_least, parse, run_command
from pretrain.evaluate import knn
from pretrain.images import values
from pretrain.images.source import Images
from probes.features import search
from probes.features.cache import array_of, extract, needed
from probes.shared import console, record, stored
from probes.shared import metrics as metrics_of
from probes.shared.labelled import EVERY, of_tasks
from probes.shared.metrics import Scores
from probes.shared.subject import (
    Parts,
    Repeated,
    Viewed,
    about_data,
    about_seeds,
    about_view,
    class_count,
    drawn_parts,
    draws_parts,
    in_words,
    labels_of,
    limited,
    open_labelled,
    open_subject,
    opened_parts,
    record_path,
    reseeded,
    seeds_of,
    task_of,
    untrained,
)


@dataclass(frozen=True)
class KnnOptions(Repeated):
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
    """By k what decides (top-1 percent, mean AP, or R2); all numbers of the best k; how the neighbours were found."""

    by_k: dict[int, float]
    top5: dict[int, float]
    scores: Scores
    way: str
    task: str = "classes"

    @property
    def top1(self) -> dict[int, float]:
        """Percent by k, of classes."""
        return self.by_k

    def best(self) -> tuple[int, float]:
        """The k with the highest top-1 (mean AP, R2), and that."""
        k = max(self.by_k, key=self.by_k.__getitem__)
        return k, self.by_k[k]


def measure(bank: np.ndarray, queries: np.ndarray, parts: Parts, options: KnnOptions, device: torch.device) -> Measured:
    """Numbers of features [t, d] and [q, d] of any length; with `leave_one_out` both are the same."""
    asked = F.normalize(torch.tensor(queries, device=device), dim=1)
    way = search.quickest(asked, bank, max(options.k))
    found = knn.nearest(asked, bank, max(options.k), within=search.WAYS[way], others=options.leave_one_out, unit=True)
    if task_of(parts) != "classes":
        return _of_means(found, parts, options, way)
    learnt, classes, labels = labels_of(parts.train), class_count(parts), labels_of(parts.val)
    answers = knn.votes(found, learnt, classes, options.k, options.temperature)
    top1, top5 = ({k: knn.accuracy(a, labels, top) for k, a in answers.items()} for top in (1, 5))
    measured = Measured(top1, top5, {}, way)
    best = measured.best()[0]
    few = len(labels) * classes <= metrics_of.MOST_SCORES
    shares = knn.shares(found, learnt, classes, best, options.temperature).numpy() if few else None
    return measured._replace(scores=metrics_of.of_classes(answers[best].cpu().numpy(), labels.numpy(), shares))


def _of_means(found: knn.Found, parts: Parts, options: KnnOptions, way: str) -> Measured:
    """Several labels an image, or values: what the neighbours have, weighted as their votes."""
    task, (train, val) = task_of(parts), parts
    learnt = train.several if train.targets is None else train.targets[:, None]
    own = torch.from_numpy(np.asarray(learnt, np.float32))
    numbers: dict[int, float] = {}
    for k in options.k:
        said = knn.means(found, own, k, options.temperature).double().numpy()
        numbers[k] = _decides(said, val)
        if k == max(numbers, key=numbers.__getitem__):
            answers = said
    if val.targets is not None:
        return Measured(numbers, {}, metrics_of.of_values(answers[:, 0], val.targets), way, task)
    assert val.several is not None
    return Measured(numbers, {}, metrics_of.of_several(answers, val.several, 0.5), way, task)


def _decides(said: np.ndarray, val: Images) -> float:
    """Mean AP, or R2."""
    if val.targets is not None:
        return metrics_of.r2(said[:, 0], val.targets)
    assert val.several is not None
    return metrics_of.mean_ap(said, val.several)


def open_parts(options: KnnOptions, shape: Architecture) -> Parts:
    """Training and test images before anything is drawn of them; the same ones for `--leave-one-out`."""
    if not options.leave_one_out:
        return opened_parts(options, shape, EVERY)
    file = options.embeddings
    every = open_labelled(options, options.data, "train", shape) if file is None else stored.StoredImages(file, None)
    every = of_tasks(every, EVERY)
    values.refuse_others(every)
    return Parts(every, every)


def check(options: KnnOptions) -> None:
    """Raise UserError for values without meaning."""
    at_least(1, options, "k")
    if options.temperature <= 0:
        raise UserError("--temperature must be greater than 0")
    if options.leave_one_out and options.group:
        raise UserError("--leave-one-out lets an image be classified by others of its group: leave --group out")
    if options.leave_one_out and options.val:
        raise UserError("--leave-one-out tests on the training images: leave --val out")


def main(arguments: Sequence[str]) -> None:
    options = parse(KnnOptions, arguments, prog="python -m probes.knn")
    check(options)
    began = time.perf_counter()
    with open_subject(options) as subject:
        out = record_path(options, subject, "knn")
        every = open_parts(options, subject.loaded.backbone.shape)
        several: list[dict[str, Measured]] = []
        for seed in seeds_of(options, drawn=draws_parts(options)):
            parts = drawn(every, replace(options, seed=seed))
            own = reseeded(subject, options, seed) if several else subject
            several.append(measured_rows(own, parts, options, seed))
        seconds = time.perf_counter() - began
        others = len(parts.train) - options.leave_one_out
        if max(options.k) > others:
            beyond = ", ".join(str(k) for k in options.k if k > others)
            console.say(f"k = {beyond}: the bank has {others} images, and all of them vote")
        rows = several[0]
        show_rows(rows, parts, subject, seconds)
        repeats = metrics_of.over_seeds([one["this checkpoint"].scores for one in several])
        if len(several) > 1:
            console.say(f"mean of {len(several)} seeds: {repeats.line()}")
        record.write(
            out,
            probe="knn",
            table="T1_knn_linear_in1k",
            loaded=subject.loaded,
            data=about_data(parts),
            protocol=about_view(options, subject.view) | about(options) | about_seeds(several),
            metrics=metrics(rows) | (repeats.record() if len(several) > 1 else {}),
            intervals=metrics_of.intervals(repeats.scores),
            seconds=seconds,
            device=subject.device.type,
        )


def drawn(every: Parts, options: KnnOptions) -> Parts:
    """The images of one seed. Raises UserError where they are too few."""
    if not options.leave_one_out:
        return drawn_parts(every, options, EVERY)
    one = of_tasks(limited(every.train, options), EVERY)
    if len(one) < 2:
        raise UserError(f"--leave-one-out needs two images or more: {one.name} has {len(one)}")
    return Parts(one, one)


def measured_rows(subject: Viewed, parts: Parts, options: KnnOptions, seed: int) -> dict[str, Measured]:
    """The checkpoint and, with --baselines, what has learnt nothing."""
    rows = {"this checkpoint": of_backbone(subject, parts, options)}
    if options.baselines:
        rows["the same, untrained"] = of_backbone(untrained(subject, seed), parts, options)
        rows["raw pixels"] = of_pixels(subject, parts, options)
    return rows


def about(options: KnnOptions) -> dict[str, Any]:
    """Fields of a record's protocol."""
    said = {"k": list(options.k), "temperature": options.temperature, "leave_one_out": options.leave_one_out}
    return said | {"features": array_of(options.features)}


def of_backbone(subject: Viewed, parts: Parts, options: KnnOptions) -> Measured:
    """Accuracies with features of the subject's backbone."""
    kind = array_of(options.features)
    found = (
        extract(subject.loaded.backbone, images, subject.view, options, needed(kind, subject.loaded.backbone)) for images in parts
    )
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
    """The record's numbers: all of the best k, what decides of each k, and the baselines' best."""
    mine = rows["this checkpoint"]
    k, best = mine.best()
    name = metrics_of.MAIN[mine.task]
    numbers = metrics_of.values(mine.scores) | {name: best, "best_k": float(k)}
    numbers |= {"top5": mine.top5[k]} if mine.top5 else {}
    numbers |= {f"{name}_k{k}": value for k, value in mine.by_k.items()} | {f"top5_k{k}": v for k, v in mine.top5.items()}
    names = {"the same, untrained": "untrained", "raw pixels": "pixels"}
    return numbers | {f"{names[who]}_{name}": row.best()[1] for who, row in rows.items() if who in names}


def show_rows(rows: dict[str, Measured], parts: Parts, subject: Viewed, seconds: float) -> None:
    """A table: what decides by k, and the best with its interval; below it all numbers of the best."""
    mine = rows["this checkpoint"]
    name = metrics_of.MAIN[mine.task]
    digits, unit = metrics_of.digits(name), "" if mine.task == "regression" else " %"
    who = f"{subject.loaded.path}{in_words(subject.view)}"
    title = f"k-NN {metrics_of.NAMES[name]}{unit} on {parts.val.name}, {len(parts.train):,} training images: {who}"
    lines = []
    for who, row in rows.items():
        k = row.best()[0]
        lines.append([who, *(f"{value:.{digits}f}" for value in row.by_k.values()), f"{row.scores[name].shown(digits)} (k={k})"])
    console.table(title, ["features", *(f"k={k}" for k in mine.by_k), "best"], lines)
    console.say(f"{metrics_of.line(mine.scores, (name,))}   search by {mine.way}   {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(run_command(main))
