"""Linear probing, 45 learning rates at once: `python -m probes.linear --ckpt runs/sample`.

Protocol of Table 1: SGD with momentum 0.9 and no weight decay, batches of 1024, 100 epochs, learning rates 1 to 9 times
1e-4 to 1, times batch / 256, by the cosine of the epoch to zero; random resized crops and flips (`--mode paper`: the backbone
runs in every epoch) or centre crops (`--mode cached`: it runs once, minutes instead of days). The published number is the
best of the grid and of all epochs **on the test images**; here that number (`top1`), the last epoch's best (`top1_last`)
and, with `--select val-split`, an honest one, chosen on training images that were kept apart, are told from each other.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from checkpoints.cli import parse, run_command
from probes.features.cache import array_of
from probes.linear import train as linear_train
from probes.linear.head import default_features
from probes.linear.protocol import Chosen, LinearOptions, about, check, chosen, default_mode, say_excluded, split
from probes.linear.train import Trained
from probes.shared import console, metrics, record, ridge
from probes.shared.answers import from_logits
from probes.shared.labelled import EVERY
from probes.shared.metrics import Scores
from probes.shared.subject import (
    Parts,
    Viewed,
    about_data,
    about_seeds,
    about_view,
    drawn_parts,
    draws_parts,
    in_words,
    open_subject,
    opened_parts,
    record_path,
    reseeded,
    seeds_of,
    task_of,
)

SHOWN = 8
"""Learning rates in the printed table."""


RIDGE = tuple(10.0**power for power in range(-3, 4))
"""Strengths of the penalty where values are predicted: the best on the choosing images is reported."""


class Run(NamedTuple):
    """One seed's training and all numbers of its best head."""

    trained: Trained
    best: Chosen
    last: Chosen
    scores: Scores
    images: linear_train.Division
    settings: linear_train.Settings


def main(arguments: Sequence[str]) -> None:
    options = parse(LinearOptions, arguments, prog="python -m probes.linear")
    with open_subject(options) as subject:
        check(options)
        out = record_path(options, subject, "linear")
        every = opened_parts(options, subject.loaded.backbone.shape, EVERY)
        (predict if task_of(every) == "regression" else measure)(subject, every, options, out)


def settings_of(subject: Viewed, options: LinearOptions) -> linear_train.Settings:
    """How features come about, and the learning rates as they are used."""
    pooled = options.embeddings is not None
    kind = "cls" if pooled else array_of(options.features or default_features(subject.backbone))
    rates = tuple(rate * options.batch_size / 256 for rate in options.lr)
    return linear_train.Settings(rates, options.epochs, options.mode or default_mode(options.data), kind, options.select)


def division_of(every: Parts, options: LinearOptions) -> linear_train.Division:
    """The images of one seed to learn from, to choose by, to test on."""
    parts = drawn_parts(every, options, EVERY)
    train, chooser = parts if options.select == "test" else split(parts.train, options)
    return linear_train.Division(train, chooser, parts.val)


def one_seed(subject: Viewed, every: Parts, options: LinearOptions, state: Path) -> Run:
    """Train with the options' seed; what an earlier call has left in `state` is continued."""
    images, settings = division_of(every, options), settings_of(subject, options)
    if settings.mode == "cached" and options.limit is None:
        for part in every:  # once for all seeds, and all ways to keep a tenth apart
            linear_train.centre_features(subject, part, settings, options)
    trained = linear_train.train(subject, images, settings, options, state)
    best, last = chosen(trained, options.lr), chosen(trained, options.lr, last=True)
    testing = linear_train.labelled_features(subject, images.test, settings, options)
    scores = dict(from_logits(linear_train.logits_of(trained, testing), Parts(images.train, images.test)))
    if images.test.labels is not None:
        scores |= {"top1": metrics.of_share(best.top1, len(images.test)), "top5": metrics.of_share(best.top5, len(images.test))}
    return Run(trained, best, last, scores, images, settings)


def measure(subject: Viewed, every: Parts, options: LinearOptions, out: Path) -> None:
    """Train, say what came of it, keep the best head of the first seed, write the record."""
    began = time.perf_counter()
    runs: list[Run] = []
    for seed in seeds_of(options):
        state = out.with_suffix(".state.pt" if seed == options.seed else f".{seed}.state.pt")
        own = reseeded(subject, options, seed) if runs else subject
        runs.append(one_seed(own, every, replace(options, seed=seed), state))
    first = runs[0]
    parts = Parts(first.images.train, first.images.test)
    name = metrics.MAIN[task_of(every)]
    seconds = time.perf_counter() - began
    tell(first, options, parts, subject, seconds)
    repeats = metrics.over_seeds([run.scores for run in runs])
    if len(runs) > 1:
        console.say(f"mean of {len(runs)} seeds: {repeats.line()}")
    protocol = about_view(options, subject.view) | about(first.settings, options.lr, options.batch_size, first.trained)
    protocol |= about_seeds(runs)
    counts = {"train_images": len(parts.train), "val_images": len(parts.val)}

    def keep_head(path: Path) -> None:
        linear_train.keep(path, first.trained, subject, first.settings, parts.train, protocol | counts)

    record.write(
        out,
        probe="linear",
        table="T1_knn_linear_in1k",
        loaded=subject.loaded,
        data=about_data(parts),
        protocol=protocol,
        metrics=repeats.record()
        | {
            "best_lr": first.best.lr,
            "best_epoch": float(first.best.epoch),
            f"{name}_last": first.last.top1,
            "lr_last": first.last.lr,
        },
        intervals=metrics.intervals(repeats.scores),
        seconds=seconds,
        device=subject.device.type,
        beside={"_head.safetensors": keep_head},
    )


def predict(subject: Viewed, every: Parts, options: LinearOptions, out: Path) -> None:
    """Values from centre crops by ridge regression on the probe's features, the best strength by the choosing images."""
    began = time.perf_counter()
    several: list[Scores] = []
    for seed in seeds_of(options, drawn=draws_parts(options) or options.select == "val-split"):
        images, settings = division_of(every, replace(options, seed=seed)), settings_of(subject, options)
        found = [linear_train.centre_features(subject, one, settings, options) for one in images]
        rows = [one.rows(settings.kind, slice(None)).numpy() for one in found]
        by_choice = ridge.measure(rows[0], rows[1], Parts(images.train, images.chooser), RIDGE)
        strength = max(by_choice, key=lambda one: by_choice[one]["r2"].value)
        several.append(ridge.measure(rows[0], rows[2], Parts(images.train, images.test), [strength])[strength])
    seconds, parts, repeats = time.perf_counter() - began, Parts(images.train, images.test), metrics.over_seeds(several)
    title = f"ridge regression on {parts.val.name}: {subject.loaded.path}"
    shown = [one.shown(metrics.digits(name)) for name, one in several[0].items()]
    console.table(title, ["strength", *(metrics.NAMES[name] for name in several[0])], [[f"{strength:g}", *shown]])
    if len(several) > 1:
        console.say(f"mean of {len(several)} seeds: {repeats.line()}")
    selected = "test images" if options.select == "test" else "a tenth of the training images"
    what = {"mode": "cached", "features": settings.kind, "strength": list(RIDGE), "selected_on": selected}
    record.write(
        out,
        probe="linear",
        table="T1_knn_linear_in1k",
        loaded=subject.loaded,
        data=about_data(parts),
        protocol=about_view(options, subject.view) | what | about_seeds(several),
        metrics=repeats.record() | {"best_strength": strength},
        intervals=metrics.intervals(repeats.scores),
        seconds=seconds,
        device=subject.device.type,
    )


def tell(run: Run, options: LinearOptions, parts: Parts, subject: Viewed, seconds: float) -> None:
    """A table of the best learning rates, and the numbers of the best head."""
    trained, best, last = run.trained, run.best, run.last
    name = metrics.MAIN[task_of(parts)]
    finite = [head for head in range(len(options.lr)) if head not in trained.excluded]
    order = sorted(finite, key=lambda head: -trained.test[:, 0, head].max())[:SHOWN]
    rows = [
        [f"{options.lr[head]:g}", f"{trained.test[-1, 0, head]:.1f}", f"{trained.test[:, 0, head].max():.1f}"]
        for head in sorted(order)
    ]
    title = f"linear {metrics.NAMES[name]} % on {parts.val.name}: {subject.loaded.path}{in_words(subject.view)}"
    console.table(title, ["learning rate", "last epoch", "best epoch"], rows)
    say_excluded(trained, options.lr)
    on = "the test images themselves" if options.select == "test" else "training images kept apart"
    console.say(
        f"best: {run.scores[name].shown()} (lr {best.lr:g}, epoch {best.epoch}; chosen on {on})   "
        f"last epoch: {last.top1:.1f} (lr {last.lr:g})   {seconds:.0f} s"
    )
    console.say(metrics.line(run.scores, (name,)))


if __name__ == "__main__":
    sys.exit(run_command(main))
