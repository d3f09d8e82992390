"""Images with label maps: found, looked through, and as the backbone sees them.

h, w height and width of an image or a map.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from checkpoints import terminal
from checkpoints.cli import UserError
from pretrain.batches import color_ops
from pretrain.evaluate import views
from pretrain.models.backbone import Backbone
from pretrain.sample import dense as sample_dense
from probes.segment.options import SegmentOptions
from probes.shared import label_files, label_maps, label_rule
from probes.shared.label_maps import Survey, stored
from probes.shared.label_rule import AS_ADE20K, Rule

FOLDERS = {"train": ("images/training", "annotations/training"), "val": ("images/validation", "annotations/validation")}


class Labelled(NamedTuple):
    """Images with label maps."""

    pixels: list[Path | np.ndarray]
    labels: list[Path | np.ndarray]

    def name(self, number: int) -> str:
        """An image's name in an error."""
        pixels = self.pixels[number]
        return str(pixels) if isinstance(pixels, Path) else f"image {number}"


class Set(NamedTuple):
    """Both parts, the side of windows, how labels are read, and the classes' names where the data has some."""

    train: Labelled
    val: Labelled
    size: int
    rule: Rule = Rule()
    names: tuple[str, ...] | None = None


def open_data(options: SegmentOptions) -> Set:
    """Raises UserError where something of the layout is missing."""
    if options.data == "sample":
        rule = label_rule.chosen(options.background, options.ignore, 0, None)
        return Set(_drawn("train", options), _drawn("val", options), options.size or sample_dense.SIZE, rule)
    root = Path(options.data)
    train, val = (_listed(root, part, options) for part in ("train", "val"))
    listed = label_rule.class_list(root)
    rule = label_rule.chosen(options.background, options.ignore, 0, listed)
    return Set(train, val, options.size or 512, rule, listed and listed.of_classes(rule))


def _drawn(part: str, options: SegmentOptions) -> Labelled:
    count = sample_dense.COUNTS[part]
    dense = [
        sample_dense.draw(part, number) for number in range(min(count, options.images or count) if part == "train" else count)
    ]
    return Labelled([one.picture.image for one in dense], [sample_dense.label_map(one) for one in dense])


def _listed(root: Path, part: str, options: SegmentOptions) -> Labelled:
    images, labels = (root / folder for folder in FOLDERS[part])
    found = label_files.pairs(images, labels)
    if not found.images and not found.missing:
        raise UserError(f"there are no images in {images}: give --data a folder in ADE20K's layout{found.unused}")
    if found.unused:
        terminal.say(f"{images}: {len(found.images)} images{found.unused}")
    if found.missing:
        raise UserError(f"{len(found.missing)} label maps are missing, the first is {labels / found.missing[0]}.png")
    most = options.images if part == "train" else None
    return Labelled([*found.images[:most]], [*found.labels[:most]])


def look_through(data: Set, root: str) -> dict[str, Survey]:
    """Read every label map once. Raises UserError and WorkError naming what cannot be used, or is no label map of its image."""

    def check(path: Path, highest: int) -> None:
        if data.names is not None:
            label_maps.refuse_higher(path, highest, len(data.names), data.rule, "name them in the list of classes")

    parts = {"training": data.train, "validation": data.val}
    found = {name: label_maps.survey(part.pixels, part.labels, data.rule, check) for name, part in parts.items()}
    label_maps.require(found, data.rule, root)
    return found


def num_classes(data: Set, found: dict[str, Survey]) -> int:
    """Number of classes: those that are listed, else the largest label plus one."""
    return len(data.names) if data.names else label_maps.count(found, data.rule)


def with_labels(part: Labelled, found: Survey) -> Labelled:
    """A part without the images whose maps have no label."""
    empty = set(found.empty)
    kept = [number for number in range(len(part.labels)) if number not in empty]
    return Labelled([part.pixels[number] for number in kept], [part.labels[number] for number in kept])


def resized(part: Labelled, number: int, size: int) -> tuple[int, int]:
    """Height and width in which an image is seen. Raises UserError where it cannot be used."""
    pixels = part.pixels[number]
    width, height = label_maps.side_lengths(pixels) if isinstance(pixels, Path) else pixels.shape[1::-1]
    return views.evaluation_box(width, height, size, size)[0][::-1]


def view(pixels: Path | np.ndarray, backbone: Backbone, size: int) -> Float[Tensor, "c h w"]:
    """A whole image, its shorter side resized to `size`, turned by its EXIF orientation as its label map is."""
    array = np.asarray(_turned(pixels).convert("RGB")) if isinstance(pixels, Path) else pixels
    wide, _, _ = views.evaluation_box(array.shape[1], array.shape[0], size, size)
    smaller = np.asarray(Image.fromarray(array).resize(wide, Image.Resampling.BICUBIC))
    planes = torch.from_numpy(smaller.copy()).permute(2, 0, 1)[None].float() / 255
    return color_ops.normalise(planes, backbone.shape.mean, backbone.shape.std)[0]


def _turned(path: Path) -> Image.Image:
    try:
        return ImageOps.exif_transpose(stored(path))
    except UserError:
        raise
    except Exception as error:  # broken EXIF makes Pillow raise almost anything
        raise UserError(f"{path} cannot be used (its EXIF: {type(error).__name__}): fetch it again") from error


def label_view(labels: Path | np.ndarray, size: int | None, rule: Rule = AS_ADE20K) -> Int[Tensor, "h w"]:
    """The label map in the image's view, by nearest neighbour, or as it is; classes from 0, NOTHING for void."""
    image = Image.fromarray(label_maps.read(labels, rule.colours) if isinstance(labels, Path) else labels)
    if size is not None:
        image = image.resize(views.evaluation_box(*image.size, size, size)[0], Image.Resampling.NEAREST)
    return torch.from_numpy(label_maps.numbered(np.asarray(image), rule).astype(np.int64))
