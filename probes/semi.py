"""Learning from few labels: `python -m probes.semi --ckpt runs/sample`.

Protocols of Table 12, of the share of the training images that keeps its labels: on frozen features k-NN with these as the bank,
linear probing, logistic regression; then end-to-end fine-tuning (`probes.finetune`), without and with the first layer of the
projection head, which needs a full checkpoint. `--frozen` leaves fine-tuning out. `--names` takes files of image names as
SimCLRv2 has published them (1percent.txt); `--percent` draws the same share of every class.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.command import UserError, WorkError, at_least, parse, run_command
from probes import common, finetune, knn, linear, linear_run, logistic, results, show, subsets
from probes.common import Common, Parts, Subject
from probes.finetune_options import with_recipe
from probes.finetune_recipes import RECIPES

TUNED = {"fine-tuned": False, "fine-tuned, head layer kept": True}
SAMPLE_EPOCHS = 40


@dataclass(frozen=True)
class Options(Common):
    """Classify with 1 % and 10 % of the labels (paper, Tables 4 and 12)."""

    percent: tuple[float, ...] = (1.0, 10.0)
    """Shares of the training images that keep their labels, drawn from --seed."""
    names: tuple[Path, ...] = ()
    """Files with the names of the images that keep their labels, in place of --percent."""
    epochs: int = linear.EPOCHS
    """Of the linear probe."""
    frozen: bool = False
    """Leave the fine-tuned rows out."""
    tuned_epochs: int | None = None
    """Of fine-tuning (default: the recipe's, `semi`; for the sample `small` with 40)."""


class Few(NamedTuple):
    """Some labelled images, what to call them, and the flag that chooses them."""

    name: str
    parts: Parts
    flag: dict[str, Any]


def few_labels(parts: Parts, options: Options) -> list[Few]:
    """The training images that keep their labels, for each share or list."""
    if options.names:
        lists = ((path, subsets.part_of(parts.train, None, path)) for path in options.names)
        return [Few(path.stem, parts._replace(train=images), {"names": path, "percent": None}) for path, images in lists]
    shares = (subsets.part_of(parts.train, percent, None, options.seed) for percent in options.percent)
    named = zip(options.percent, shares, strict=True)
    return [Few(f"{percent:g}%", parts._replace(train=images), {"percent": percent}) for percent, images in named]


def frozen(subject: Subject, few: Few, options: Options) -> dict[str, float]:
    """Top-1 percent of each frozen protocol."""
    common_values = {field.name: getattr(options, field.name) for field in fields(Common)}
    near = knn.of_backbone(subject, few.parts, knn.Options(**common_values)).best()[1]
    grid = linear.Options(**common_values | {"batch_size": linear.BATCH}, epochs=options.epochs)
    kind = linear.default_features(subject.loaded.backbone.shape)
    lrs = tuple(rate * grid.batch_size / 256 for rate in grid.lr)
    settings = linear_run.Settings(lrs, grid.epochs, "cached", kind, "test")
    division = linear_run.Division(few.parts.train, few.parts.val, few.parts.val)
    state = common.record_path(options, subject, "semi").with_suffix(f".{few.name}.state.pt")
    line = linear.chosen(linear_run.train(subject, division, settings, grid, state), grid.lr).top1
    regressed = logistic.measure(subject, few.parts, logistic.Options(**common_values))
    return {"k-NN": near, "linear": line, "logistic": max(top1 for top1, _ in regressed.values())}


def tuned(subject: Subject, few: Few, options: Options) -> dict[str, float]:
    """Top-1 percent of end-to-end fine-tuning, without and with the head's first layer where the checkpoint has it."""
    recipe = "small" if options.data == "sample" else "semi"
    epochs = options.tuned_epochs or (SAMPLE_EPOCHS if recipe == "small" else None)
    given = {name: getattr(options, name) for name in ("ckpt", "data", "val", "key", "limit", "seed")}
    given["batch_size"] = min(RECIPES[recipe].values["batch_size"], len(few.parts.train) // 2 * 2)  # mixup wants pairs
    given |= few.flag | ({"epochs": epochs} if epochs else {}) | {"from_scratch": options.untrained}
    head = any(name.startswith("head.mlp.0.") for name in subject.loaded.contents.network(options.key, subject.loaded.path))
    out, found = common.record_path(options, subject, "semi"), {}
    for name, keep in TUNED.items():
        if keep and not head:
            show.say(f"{subject.loaded.path} has no projection head: the row that keeps its first layer stays empty")
            continue
        place = out.with_name(f"{out.stem}_{few.name.rstrip('%')}{'_kept' if keep else ''}.json")
        asked = with_recipe(recipe, **given, keep_head_layer=keep, out=place, folder=place.with_suffix(""))
        summary = finetune.measure(asked, subject.device)
        if summary is None:
            raise WorkError("stopped and saved: the same command goes on")
        found[name] = summary.metrics["top1"]
    return found


def check(options: Options) -> None:
    """Raise UserError for values without meaning."""
    if not options.percent and not options.names:
        raise UserError("give --percent or --names")
    at_least(1, options, "epochs", "tuned_epochs")


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, prog="python -m probes.semi")
    check(options)
    began = time.perf_counter()
    with common.subject(options, full=not options.frozen) as subject:
        parts = common.labelled_parts(options, subject.loaded.backbone.shape.channels)
        some = few_labels(parts, options)
        found = {few.name: frozen(subject, few, options) for few in some}
        if not options.frozen:
            found = {few.name: found[few.name] | tuned(subject, few, options) for few in some}
        title = f"few labels, top-1 % on {parts.val.name}: {subject.loaded.path}"
        protocols = list(next(iter(found.values())))
        rows = [[protocol, *(f"{numbers[protocol]:.1f}" for numbers in found.values())] for protocol in protocols]
        show.table(title, ["protocol", *(f"{few.name} ({len(few.parts.train)})" for few in some)], rows)
        results.write(
            common.record_path(options, subject, "semi"),
            probe="semi",
            table="T12_semi_protocols",
            loaded=subject.loaded,
            data=common.about_data(parts) | {few.name: len(few.parts.train) for few in some},
            protocol=common.about_view(options, subject.view) | {"epochs": options.epochs},
            metrics={f"{protocol}_{name}": value for name, numbers in found.items() for protocol, value in numbers.items()},
            seconds=time.perf_counter() - began,
            device=subject.device.type,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
