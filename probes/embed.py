"""Features of images as a file: `python -m probes.embed --ckpt runs/NAME --data DIR --out features.parquet`.

One row an image: the pooled feature (the last [CLS], or what the backbone has in its place), name, part, label; on request the
patch tokens. They are computed once into the cache that all probes share, so that an interrupted pass goes on and any number of
images fits, and copied from there piece by piece. `--embeddings FILE` of `probes.knn`, `linear`, `logistic` and `cluster` reads
them.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from checkpoints import places, terminal
from checkpoints.cli import UserError, parse, run_command
from checkpoints.store import first_line
from pretrain.engine import distributed
from pretrain.images import values
from pretrain.images.open import has_part
from pretrain.images.source import Images
from pretrain.models.measured import require
from probes.features.cache import extract, standard
from probes.shared import feature_files as files
from probes.shared import record_name
from probes.shared.feature_files import Part
from probes.shared.record import versions
from probes.shared.subject import Common, Viewed, about_view, limited, open_labelled, open_subject


@dataclass(frozen=True)
class EmbedOptions(Common):
    """Write the features of images, with names, labels and what they are of, to a file."""

    out: Path | None = None
    """The file: .parquet, or .npy or .zarr (names and labels go to a .json beside it) (default: features.parquet)."""
    part: Literal["train", "val", "all"] | None = None
    """Part of the data (default: all that there are)."""
    patches: bool = False
    """Also every patch token; held beside --out while they are computed."""


def open_parts(options: EmbedOptions, subject: Viewed) -> dict[str, Images]:
    """The images by the names of their parts. Raises UserError where there are none."""
    if options.group:
        raise UserError("--group divides images to learn from and to test on: give it to the probe, and leave it out here")
    shape = subject.backbone.shape
    if options.part == "all" or not (has_part(options.data, "val") or options.val or options.part):
        found = {"train": open_labelled(options, options.data, None, shape)}
    else:
        names = [options.part] if options.part else ["train", "val"]
        found = {name: open_labelled(options, options.data, name, shape) for name in names if name == "train" or not options.val}
        if options.val and options.part != "train":
            found["val"] = open_labelled(options, options.val, None, shape)
    for images in found.values():
        values.refuse_others(images)
    if len(found) == 2 and list(found["train"].classes) != list(found["val"].classes):
        raise UserError(f"{found['val'].name} has other classes than {found['train'].name}: write them to two files (--part)")
    return {name: limited(images, options) for name, images in found.items()}


def about(subject: Viewed, options: EmbedOptions, parts: Sequence[Part]) -> dict[str, Any]:
    """What the features are of."""
    loaded, first = subject.loaded, parts[0]
    return {
        "checkpoint": {
            "path": str(loaded.path),
            "sha256": record_name.identity(loaded),
            "arch": loaded.backbone.shape.arch,
            "patch_size": loaded.backbone.shape.patch_size,
            "epoch": loaded.epoch,
        },
        "view": about_view(options, subject.view) | {"untrained": options.untrained},
        "data": {part.name: {"images": part.images.name, "count": len(part.images)} for part in parts},
        "classes": [str(name) for name in first.images.classes] if first.images.labels is not None else [],
        "width": int(first.features.shape[1]),
        "patches": None if first.patches is None else [int(side) for side in first.patches.shape[1:]],
        "versions": versions(),
    }


def main(arguments: Sequence[str]) -> None:
    options = parse(EmbedOptions, arguments, prog="python -m probes.embed")
    out, began = options.out or Path("features.parquet"), time.perf_counter()
    files.refuse_other_suffix(out)
    with open_subject(options) as subject:
        if options.patches:
            require(subject.backbone, "patches")
        places.tried(out)
        work = places.below(out.parent, f".{out.name}.work") if options.patches else None
        asked = replace(options, cache=work or options.cache)
        parts = [_part(name, images, subject, asked) for name, images in open_parts(options, subject).items()]
        if distributed.is_main():
            try:
                written = files.write(out, parts, about(subject, options, parts))
            except OSError as error:
                raise UserError(f"cannot write to {out} ({error.strerror or first_line(error)}): give another --out") from error
            if work is not None:
                shutil.rmtree(work)
            count = sum(len(part.images) for part in parts)
            rate = f"{count} images, {parts[0].features.shape[1]} numbers each, {time.perf_counter() - began:.0f} s"
            terminal.say(f"features written to {', '.join(str(path) for path in written)} ({rate})")


def _part(name: str, images: Images, subject: Viewed, options: EmbedOptions) -> Part:
    arrays = standard(subject.backbone)
    found = extract(subject.backbone, images, subject.view, options, (*arrays, "patches") if options.patches else arrays)
    return Part(name, images, found.cls, found.arrays["patches"] if options.patches else None)


if __name__ == "__main__":
    sys.exit(run_command(main))
