"""Learning from few labels: `python -m probes.semi --ckpt runs/sample`.

Protocols of Table 12, of the share of the training images that keeps its labels: on frozen features k-NN with these as the bank,
linear probing, logistic regression; then end-to-end fine-tuning (`probes.finetune`), without and with the first layer of the
projection head, which needs a full checkpoint. `--frozen` leaves fine-tuning out. The linear probe is that of Table 1
(`--mode paper`), or on centre crops (`cached`). `--names` takes files of image names as SimCLRv2 has published them
(1percent.txt); `--percent` draws the same share of every class.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from checkpoints.cli import UserError, WorkError, parse, run_command
from probes import knn, logistic
from probes.finetune import subsets
from probes.finetune import train as finetune_train
from probes.finetune.dataset import epoch_of
from probes.finetune.options import with_recipe
from probes.finetune.recipes import RECIPES
from probes.linear import head as linear_head
from probes.linear import protocol as linear_protocol
from probes.linear import train as linear_train
from probes.shared import console, metrics, record
from probes.shared.subject import (
    Common,
    Parts,
    Viewed,
    about_data,
    about_seeds,
    about_view,
    drawn_parts,
    of_several_classes,
    open_subject,
    opened_parts,
    record_path,
    reseeded,
)

TUNED = {"fine-tuned": False, "fine-tuned, head layer kept": True}
SAMPLE_EPOCHS = 40


@dataclass(frozen=True)
class SemiOptions(Common):
    """Classify with 1 % and 10 % of the labels (paper, Tables 4 and 12)."""

    percent: tuple[float, ...] = (1.0, 10.0)
    """Shares of the training images that keep their labels, drawn from --seed."""
    names: tuple[Path, ...] = ()
    """Files with the names of the images that keep their labels, in place of --percent."""
    mode: Literal["paper", "cached"] | None = None
    """Mode of the linear probe. `paper`: augmented crops, the backbone runs every epoch, in bfloat16. `cached`: centre crops
    once (default for the sample)."""
    epochs: int = linear_protocol.EPOCHS
    """Epochs of the linear probe."""
    frozen: bool = False
    """Leave the fine-tuned rows out."""
    seeds: int = 1
    """Measure with so many seeds, from --seed on: mean and standard deviation over shares, heads and fine-tunings that differ."""
    tuned_epochs: int | None = None
    """Epochs of fine-tuning (default: the recipe's, `semi`; for the sample `small` with 40)."""


class Few(NamedTuple):
    """Some labelled images, what to call them, what a record says of them, and the flag that chooses them."""

    name: str
    parts: Parts
    about: dict[str, Any]
    flag: dict[str, Any]


class Measured(NamedTuple):
    """Top-1 percent of the frozen protocols by name, and what a record says of each."""

    top1: dict[str, float]
    about: dict[str, dict[str, Any]]


def few_labels(parts: Parts, options: SemiOptions) -> list[Few]:
    """The training images that keep their labels, for each share or list. Raises UserError for two of one name."""
    asked: list[tuple[float | None, Path | None]] = [(None, path) for path in options.names]
    some: dict[str, Few] = {}
    for percent, names in asked or [(percent, None) for percent in options.percent]:
        images = subsets.part_of(parts.train, percent, names, options.seed)
        share = subsets.share_of(len(parts.train), len(images), percent, names)
        name = share.name or "100%"
        if name in some:
            raise UserError(f"two of the shares are called {name}: give each once, or another file name to one")
        some[name] = Few(
            name, parts._replace(train=of_several_classes(images)), share.about, {"percent": percent, "names": names}
        )
    return list(some.values())


def state_path(out: Path, few: Few) -> Path:
    """Path of the linear probe's state for this share, beside the record `out`."""
    return out.with_suffix(f".{few.name}.state.pt")


def beside(out: Path, options: SemiOptions, seed: int) -> Path:
    """A path beside the record that a seed's own files are named after: the record's for the first seed."""
    return out if seed == options.seed else out.with_name(f"{out.stem}_seed{seed}{out.suffix}")


def frozen(subject: Viewed, few: Few, options: SemiOptions, out: Path) -> Measured:
    """Each frozen protocol. The state of the linear probe remains until all are measured."""
    common_values = {field.name: getattr(options, field.name) for field in fields(Common)}
    neighbours = knn.KnnOptions(**common_values)
    near = knn.of_backbone(subject, few.parts, neighbours).best()[1]
    grid = linear_protocol.LinearOptions(**common_values | {"batch_size": linear_protocol.BATCH}, epochs=options.epochs)
    kind = linear_head.default_features(subject.backbone)
    lrs = tuple(rate * grid.batch_size / 256 for rate in grid.lr)
    settings = linear_train.Settings(lrs, grid.epochs, options.mode or linear_protocol.default_mode(options.data), kind, "test")
    division = linear_train.Division(few.parts.train, few.parts.val, few.parts.val)
    trained = linear_train.train(subject, division, settings, grid, state_path(out, few), keep=True)
    linear_protocol.say_excluded(trained, grid.lr, f"{few.name}, ")
    strengths = logistic.LogisticOptions(**common_values)
    regressed = logistic.measure(subject, few.parts, strengths)
    best = regressed.scores["top1"].value
    about = {
        "k-NN": knn.about(neighbours),
        "linear": linear_protocol.about(settings, grid.lr, grid.batch_size, trained),
        "logistic": logistic.about(strengths),
    }
    return Measured({"k-NN": near, "linear": linear_protocol.chosen(trained, grid.lr).top1, "logistic": best}, about)


def images_a_step(recipe: str, few: Few) -> int:
    """Images of a step: the recipe's, or the largest even number (for mixup's pairs) in an epoch of few images, with a note."""
    usual, images = RECIPES[recipe].values["batch_size"], len(few.parts.train)
    most = epoch_of(images, RECIPES[recipe].values.get("repeats", 1)) // 2 * 2
    if most < usual:
        console.say(f"{few.name}: {images} images, fewer than a step of {usual}: steps have {most}, rates stay")
    return min(usual, most)


def tuned(subject: Viewed, few: Few, options: SemiOptions, out: Path) -> dict[str, metrics.Score]:
    """Top-1 percent of end-to-end fine-tuning, without and with the head's first layer where the checkpoint has it."""
    recipe = "small" if options.data == "sample" else "semi"
    epochs = options.tuned_epochs or (SAMPLE_EPOCHS if recipe == "small" else None)
    given = {name: getattr(options, name) for name in ("ckpt", "data", "val", "key", "limit", "seed")}
    given["batch_size"] = images_a_step(recipe, few)
    given |= few.flag | ({"epochs": epochs} if epochs else {}) | {"from_scratch": options.untrained}
    head = any(name.startswith("head.mlp.0.") for name in subject.loaded.contents.network(options.key, subject.loaded.path))
    found = {}
    for name, keep in TUNED.items():
        if keep and not head:
            console.say(f"{subject.loaded.path} has no projection head: the row that keeps its first layer stays empty")
            continue
        place = out.with_name(f"{out.stem}_{few.name.rstrip('%')}{'_kept' if keep else ''}.json")
        asked = with_recipe(recipe, **given, keep_head_layer=keep, out=place, folder=place.with_suffix(""))
        summary = finetune_train.measure(asked, subject.device)
        if summary is None:
            raise WorkError("stopped and saved: the same command goes on")
        found[name] = metrics.of_share(summary.metrics["top1"], summary.images)
    return found


def protocol(some: Sequence[Few], measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Protocol for the record: labels by share; each frozen protocol; excluded learning rates by share."""
    excluded = {name: one.about["linear"]["excluded_lr"] for name, one in measured.items()}
    about = {name: dict(one) for name, one in next(iter(measured.values())).about.items()}
    about["linear"] |= {"excluded_lr": excluded}
    return about | {"labels": {few.name: few.about for few in some}}


def check(options: SemiOptions) -> None:
    """Raise UserError for values without meaning."""
    if not options.frozen and (options.group or options.label_column or options.task):
        raise UserError("fine-tuning takes no --group, --label-column or --task: add --frozen")
    if not options.percent and not options.names:
        raise UserError("give --percent or --names")


def main(arguments: Sequence[str]) -> None:
    options = parse(SemiOptions, arguments, prog="python -m probes.semi")
    check(options)
    began = time.perf_counter()
    with open_subject(options, full=not options.frozen) as subject:
        out = record_path(options, subject, "semi")
        every = opened_parts(options, subject.loaded.backbone.shape)
        runs: list[Run] = []
        for number in range(options.seeds):
            own = replace(options, seed=options.seed + number)
            place = beside(out, options, own.seed)
            runs.append(one_seed(reseeded(subject, own, own.seed) if runs else subject, every, own, place))
        first = runs[0]
        repeats = metrics.over_seeds([run.scores for run in runs])
        protocols = list(next(iter(first.found.values())))
        rows = [[one, *(_cell(repeats, f"{one}_{name}") for name in first.found)] for one in protocols]
        of_seeds = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
        title = f"few labels, top-1 %{of_seeds} on {first.parts.val.name}: {subject.loaded.path}"
        console.table(title, ["protocol", *(f"{few.name} ({len(few.parts.train)})" for few in first.some)], rows)
        record.write(
            out,
            probe="semi",
            table="T12_semi_protocols",
            loaded=subject.loaded,
            data=about_data(first.parts) | {few.name: len(few.parts.train) for few in first.some},
            protocol=about_view(options, subject.view) | protocol(first.some, first.measured) | about_seeds(runs),
            metrics=repeats.record(),
            intervals=metrics.intervals(repeats.scores),
            seconds=time.perf_counter() - began,
            device=subject.device.type,
        )
        places = [beside(out, options, options.seed + number) for number in range(options.seeds)]
        linear_train.forget([state_path(place, few) for place, run in zip(places, runs, strict=True) for few in run.some])


class Run(NamedTuple):
    """One seed's shares and what was measured of each."""

    parts: Parts
    some: list[Few]
    measured: dict[str, Measured]
    found: dict[str, dict[str, metrics.Score]]

    @property
    def scores(self) -> dict[str, metrics.Score]:
        """Top-1 percent by protocol and share."""
        return {f"{protocol}_{name}": one for name, numbers in self.found.items() for protocol, one in numbers.items()}


def one_seed(subject: Viewed, every: Parts, options: SemiOptions, out: Path) -> Run:
    """Draw the shares and measure each."""
    parts = drawn_parts(every, options)
    some = few_labels(parts, options)
    measured = {few.name: frozen(subject, few, options, out) for few in some}
    found = {
        name: {protocol: metrics.of_share(value, len(parts.val)) for protocol, value in one.top1.items()}
        for name, one in measured.items()
    }
    if not options.frozen:
        found = {few.name: found[few.name] | tuned(subject, few, options, out) for few in some}
    return Run(parts, some, measured, found)


def _cell(repeats: metrics.Repeats, name: str) -> str:
    spread = f" \N{PLUS-MINUS SIGN} {repeats.spread[name]:.1f}" if name in repeats.spread else ""
    return repeats.scores[name].shown() + spread


if __name__ == "__main__":
    sys.exit(run_command(main))
