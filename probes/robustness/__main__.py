"""Robustness of a frozen backbone with a linear head (paper, Table 8, Fig. 9 and 10).

`python -m probes.robustness --suite in9|ina|inr|sketch|inc|occlusion|shuffle --ckpt runs/sample`

The head is the one that --head names, the one that `probes.linear` kept beside the checkpoint, or is trained on the spot on the
training images of --train (`probes/linear/head.py`).
"""

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from checkpoints import terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.evaluate.views import evaluation_resize
from probes.linear.head import ON_THE_SPOT, Classifier, Head, View, linear_head, read_head
from probes.robustness import class_maps, suites
from probes.robustness.suites import RobustnessOptions
from probes.shared import record
from probes.shared.console import table
from probes.shared.subject import Subject, made_ready, open_frozen, paper_crop
from probes.visualize import gallery

TABLES = {"shuffle": "F10_shuffle", "inr": "", "sketch": ""}
"""The paper's table of a suite where it is not Table 8; it has none of ImageNet-R and -Sketch."""
READ_BY = {
    "corrupt": ("inc",),
    "class_map": ("in9",),
    "same_for_batch": ("occlusion", "shuffle"),
    "saliency": ("occlusion",),
    "saliency_head": ("occlusion",),
}
"""Options that only some suites read."""


def check(options: RobustnessOptions) -> None:
    """Raise UserError for flags that do not go together."""
    for name, suites_of in READ_BY.items():
        if getattr(options, name) != getattr(RobustnessOptions, name) and options.suite not in suites_of:
            raise UserError(f"--{name.replace('_', '-')} is for --suite {' and '.join(suites_of)}: leave it out")
    if options.class_map is not None and (options.suite != "in9" or options.data == "sample"):
        raise UserError("--class-map is for --suite in9 with ImageNet-9's folders as --data: leave it out")
    for flag, path in (("head", options.head), ("class-map", options.class_map)):
        if path is not None and not path.is_file():
            raise UserError(f"--{flag}: there is no file {path}")


class Found(NamedTuple):
    """A head and, in words, where it is from."""

    head: Head
    source: str


def head_for(options: RobustnessOptions, subject: Subject, crop: int) -> Found:
    """The head that --head names, the one that `probes.linear` kept of this very backbone, or one trained now."""
    if options.head is not None:
        return Found(read_head(options.head, subject.backbone, class_maps.imagenet()), str(options.head))
    own_classes = options.data == "sample" and options.suite == "in9"
    kept = [] if options.train is not None or own_classes else record.left(subject.loaded, "linear", "_head.safetensors")
    reasons = []
    for path in kept:
        try:
            return Found(read_head(path, subject.backbone, class_maps.imagenet()), str(path))
        except UserError as error:
            reasons.append(f"note: {error}")
    if reasons:
        terminal.say(reasons[0])
    images = suites.training_images(options)
    head = linear_head(subject.backbone, images, View(evaluation_resize(crop), crop), options.batch_size, options.seed)
    return Found(head, ON_THE_SPOT)


def main(arguments: Sequence[str]) -> None:
    options = parse(RobustnessOptions, arguments, prog="python -m probes.robustness")
    check(options)
    began = time.perf_counter()
    subject = open_frozen(options)
    path = record.place(options.out, subject.loaded, f"robustness_{options.suite}", options)
    crop, stride = options.crop or paper_crop(subject.backbone), subject.backbone.shape.stride
    if crop % stride:
        raise UserError(f"--crop {crop} is not divisible by {stride}, the pixels of a token's side")
    made_ready(subject.backbone, crop)
    task = suites.prepare(options, subject)
    found = head_for(options, subject, crop)
    terminal.say(f"linear head: {found.source}, {len(found.head.classes)} classes")
    view = View(evaluation_resize(crop) if task.resized else crop, crop, Image.Resampling.BILINEAR)
    metrics, pictures = task.measure(Classifier(subject.backbone, found.head), view)
    seconds = time.perf_counter() - began
    table(
        f"{options.suite}, %: {subject.loaded.path}",
        ("", "value"),
        ([name, f"{value:.1f}"] for name, value in metrics.items() if not name.endswith("_loss")),
    )
    drawn = {f"_{picture.name}.png": partial(_draw, picture) for picture in pictures}
    data = {"root": options.data, "train": options.train, "val_images": task.images}
    terminal.say(f"{seconds:.0f} s")
    for where, (place, numbers) in records(options, path, metrics).items():
        record.write(
            where,
            probe="robustness",
            table=place,
            loaded=subject.loaded,
            data=data,
            protocol=protocol(options, found, view, task.about),
            metrics=numbers,
            seconds=seconds,
            device=subject.device.type,
            beside=drawn if where == path else None,
        )


def _draw(picture: gallery.Shown, path: Path) -> None:
    gallery.hang_one(path, picture)
    terminal.say(f"drawn to {path}")


def protocol(options: RobustnessOptions, found: Found, view: View, about: Mapping[str, Any]) -> dict[str, Any]:
    """Protocol of a measurement for its record; `about` is the suite's own part."""
    head = found.head
    said: dict[str, Any] = {"suite": options.suite, "features": head.features, "head": found.source}
    said |= {"linear_head": dict(head.protocol), "classes": len(head.classes), "resize": view.resize, "crop": view.crop}
    return said | {"key": options.key, "untrained": False, "batch_size": options.batch_size, "seed": options.seed} | dict(about)


def records(options: RobustnessOptions, path: Path, metrics: Mapping[str, float]) -> dict[Path, tuple[str, dict[str, float]]]:
    """Table and numbers by file; dropped patches are two records, as the paper has a table and a figure of them."""
    table = TABLES.get(options.suite, "T8_robustness")
    if options.suite != "occlusion":
        return {path: (table, dict(metrics))}
    by_chance = {name: value for name, value in metrics.items() if name.startswith("random_")}
    rest = {name: value for name, value in metrics.items() if name not in by_chance}
    return {path: (table, rest), path.with_name(f"{path.stem}_random{path.suffix}"): ("F9_random_drop", by_chance)}


if __name__ == "__main__":
    sys.exit(run_command(main))
