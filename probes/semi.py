"""Learning from few labels: `python -m probes.semi --ckpt runs/sample`.

Protocols of Table 12 on frozen features, of the share of the training images that keeps its labels: k-NN with these as the bank,
linear probing, logistic regression. `--names` takes files of image names as SimCLRv2 has published them (1percent.txt);
`--percent` draws the same share of every class.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from checkpoints.command import UserError, parse, run_command
from probes import common, knn, linear, linear_run, logistic, results, show, subsets
from probes.common import Common, Parts, Subject


@dataclass(frozen=True)
class Options(Common):
    """Classify with 1 % and 10 % of the labels (paper, Tables 4 and 12)."""

    percent: tuple[float, ...] = (1.0, 10.0)
    """Shares of the training images that keep their labels, drawn from --seed."""
    names: tuple[Path, ...] = ()
    """Files with the names of the images that keep their labels, in place of --percent."""
    epochs: int = linear.EPOCHS
    """Of the linear probe."""


class Few(NamedTuple):
    """Some labelled images, and what to call them."""

    name: str
    parts: Parts


def few_labels(parts: Parts, options: Options) -> list[Few]:
    """The training images that keep their labels, for each share or list."""
    if options.names:
        return [Few(path.stem, parts._replace(train=subsets.part_of(parts.train, None, path))) for path in options.names]
    shares = (subsets.part_of(parts.train, percent, None, options.seed) for percent in options.percent)
    named = zip(options.percent, shares, strict=True)
    return [Few(f"{percent:g}%", parts._replace(train=images)) for percent, images in named]


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


def check(options: Options) -> None:
    """Raise UserError for values without meaning."""
    if not options.percent and not options.names:
        raise UserError("give --percent or --names")
    if options.epochs < 1:
        raise UserError("--epochs must be 1 or more")


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, prog="python -m probes.semi")
    check(options)
    began = time.perf_counter()
    with common.subject(options) as subject:
        parts = common.labelled_parts(options, subject.loaded.backbone.shape.channels)
        some = few_labels(parts, options)
        found = {few.name: frozen(subject, few, options) for few in some}
        title = f"few labels, top-1 % on {parts.val.name}: {subject.loaded.path}"
        protocols = list(next(iter(found.values())))
        rows = [[protocol, *(f"{numbers[protocol]:.1f}" for numbers in found.values())] for protocol in protocols]
        show.table(title, ["frozen features", *(f"{few.name} ({len(few.parts.train)})" for few in some)], rows)
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
