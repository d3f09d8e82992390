"""The embedded data set: textured objects on unrelated textured backgrounds, drawn from a seed.

A scene is a plain description (objects, background, light); `render` returns its pixels and the object of each pixel.
The class of an object is its shape with its texture, and loosely its hue; position, size, rotation, tone, background
and light are independent of it. Every layout that the project reads can be drawn from the same scenes.

`python -m pretrain.sample --show` draws a contact sheet, `--out DIR` writes class folders of PNG files.

h w pixels; coordinates run from -1 to 1, x to the right, y down.
"""

import functools
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from checkpoints import store, terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.sample import picture_files
from pretrain.sample.classification import COUNTS, classification, contact_sheet
from pretrain.sample.scene import CATEGORIES, CLASSES, SEED, SIZE


@dataclass(frozen=True)
class SampleOptions:
    """Draw the embedded sample: as class folders of PNG files, in the layouts of dense tasks, as one contact sheet."""

    out: Path | None = None
    """Folder to write train/CLASS/*.png and val/CLASS/*.png to."""
    show: Path | None = None
    """PNG file for a contact sheet, one row a class. Without a file name: sample.png."""
    coco: Path | None = None
    """Folder to write COCO's layout to: one or two things an image, with boxes and masks."""
    ids: tuple[int, ...] = ()
    """coco: ids of the categories, 1 5 9 say, which are then so many (default: 1 to 10)."""
    masks: bool = True
    """coco: write masks too, or boxes alone."""
    ade20k: Path | None = None
    """Folder to write ADE20K's layout to: the same with label maps."""
    davis: Path | None = None
    """Folder to write DAVIS-2017's layout to: short clips with masks."""
    roxford: Path | None = None
    """Folder to write revisited Oxford's layout to: landmarks in many views."""
    copydays: Path | None = None
    """Folder to write Copydays' layout to: originals and edited copies."""
    in9: Path | None = None
    """Folder to write ImageNet-9's layout to: foregrounds and backgrounds apart and mixed, and images to learn from."""
    ina: Path | None = None
    """Folder to write ImageNet-A's layout to: small, dim, half hidden things."""
    inr: Path | None = None
    """Folder to write ImageNet-R's layout to: things in any colours."""
    sketch: Path | None = None
    """Folder to write ImageNet-Sketch's layout to: black lines on white."""
    inc: Path | None = None
    """Folder to write ImageNet-C's layout to: nineteen corruptions in five strengths."""
    size: int | None = None
    """Pixels of an image's side (default: 48; dense tasks and clips 128, retrieval 64)."""
    count: int | None = None
    """Images in each part (default: 6000 to train, 1000 to validate; dense tasks 800 and 200), or
    clips (12), landmarks (16), originals of copies (40),
    variants (450 and 200)."""
    seed: int = SEED
    """Another seed is another draw of the same world."""


TARGETS = ("out", "coco", "ade20k", "davis", "roxford", "copydays", "in9", "ina", "inr", "sketch", "inc", "show")
"""Options that say what to write."""


def write_folders(options: SampleOptions, out: Path) -> int:
    """Write both parts as class folders; the number of files."""
    total = 0
    for part in COUNTS:
        drawn = classification(part, options.count, options.size or SIZE, options.seed)
        for index, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
            picture_files.save(image, out, part, drawn.classes[label], f"{index:05d}.png")
        total += len(drawn.images)
    return total


def _name_the_sheet(arguments: Sequence[str]) -> list[str]:
    """`--show` alone means `--show sample.png`."""
    words = list(arguments)
    for at, word in reversed(list(enumerate(words))):
        if word == "--show" and (at + 1 == len(words) or words[at + 1].startswith("--")):
            words.insert(at + 1, "sample.png")
    return words


def main(arguments: Sequence[str]) -> None:
    options = parse(SampleOptions, _name_the_sheet(arguments), prog="python -m pretrain.sample")
    if not any(getattr(options, name) for name in TARGETS):
        raise UserError(f"nothing to do: give --{' DIR, --'.join(TARGETS[:-1])} DIR, --show FILE.png, or several")
    if (options.size or SIZE) < 8 or (options.count is not None and options.count < len(CATEGORIES)):
        raise UserError(f"--size must be 8 or more and --count {len(CATEGORIES)} or more")
    if options.out is not None:
        terminal.say(f"{write_folders(options, options.out)} images written to {options.out}")
    if len(set(options.ids)) < len(options.ids) or len(options.ids) > len(CATEGORIES):
        raise UserError(f"--ids {' '.join(map(str, options.ids))}: give 1 to {len(CATEGORIES)} different ids")
    write_dense(options)
    write_variants(options)
    if options.show is not None:
        columns = 12
        drawn = classification("train", columns * len(CATEGORIES), options.size or SIZE, options.seed)
        by_class = np.argsort(drawn.labels, kind="stable")
        stream, kind = io.BytesIO(), Image.registered_extensions().get(options.show.suffix.lower())
        if kind is None:
            raise UserError(f"--show {options.show}: give a file that ends in .png, .jpg or .webp")
        contact_sheet(drawn.images[by_class], columns).save(stream, kind)
        store.write_bytes(options.show, stream.getvalue())
        terminal.say(f"contact sheet written to {options.show}: rows are {', '.join(CLASSES)}")


def write_dense(options: SampleOptions) -> None:
    """Write the layouts of dense tasks that are asked for."""
    from pretrain.sample import dense  # noqa: PLC0415 (it draws with this file)

    counts = dense.COUNTS if options.count is None else dict.fromkeys(COUNTS, options.count)
    coco = functools.partial(dense.write_coco, ids=options.ids or dense.IDS, masks=options.masks)
    for folder, write in ((options.coco, coco), (options.ade20k, dense.write_ade20k)):
        if folder is not None:
            write(folder, counts, options.size or dense.SIZE, options.seed)
            terminal.say(f"{sum(counts.values())} images written to {folder}")


def write_variants(options: SampleOptions) -> None:
    """Write the layouts of the frozen tests that are asked for."""
    from pretrain.sample import clips, retrieval, shifts  # noqa: PLC0415 (they draw with this file)

    usual = shifts.COUNTS
    writers: list[tuple[Path | None, Callable[[Path, int, int, int], int], int, int]] = [
        (options.davis, clips.write_davis, clips.COUNT, clips.SIZE),
        (options.roxford, retrieval.write_roxford, retrieval.LANDMARKS, retrieval.SIZE),
        (options.copydays, retrieval.write_copydays, retrieval.ORIGINALS, retrieval.SIZE),
        (options.in9, shifts.write_in9, usual["in9"], SIZE),
        (options.ina, functools.partial(shifts.write_shifted, "ina"), usual["ina"], SIZE),
        (options.inr, functools.partial(shifts.write_shifted, "inr"), usual["inr"], SIZE),
        (options.sketch, functools.partial(shifts.write_shifted, "sketch"), usual["sketch"], SIZE),
        (options.inc, shifts.write_inc, usual["inc"], SIZE),
    ]
    for folder, write, count, size in writers:
        if folder is not None:
            terminal.say(
                f"{write(folder, options.count or count, options.size or size, options.seed)} images written to {folder}"
            )


if __name__ == "__main__":
    sys.exit(run_command(main))
