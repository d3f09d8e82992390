"""Images as the picture commands see them: which ones, at which size, and how they are called.

h w pixels, n patches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from checkpoints.cli import UserError
from pretrain.batches.color_ops import normalise
from pretrain.evaluate import finite, knn
from pretrain.images import tally
from pretrain.images.formats import SUFFIXES
from pretrain.images.open import open_images, part_or_all
from pretrain.images.source import Files, Images, Subset, subset
from pretrain.models.backbone import Backbone
from pretrain.models.measured import Measured, patch_tokens
from probes.shared.subject import Frozen, Subject, paper_crop

LARGE, TIMES = 480, 3
"""Pixels of the shorter side for networks of full size; small ones see this many times what they were trained on."""


@dataclass(frozen=True)
class Drawing(Frozen):
    """Options of every picture command."""

    part: Literal["val", "train"] | None = None
    """Images to draw (default: val where the data has parts, else all)."""
    size: int | None = None
    """Pixels of the shorter side (default: 480; three times what a small checkpoint was trained on)."""
    images: tuple[int, ...] = ()
    """Numbers of the images to show (default: drawn from --seed)."""


class Seen(NamedTuple):
    """One image as it goes into the network, and for the eye."""

    name: str
    crop: Float[Tensor, "1 3 h w"]
    image: UInt8[np.ndarray, "h w 3"]
    grid: tuple[int, int]


def pictures_of(options: Drawing, count: int) -> Images:
    """`--images`, or `--limit`, or `count` of them drawn by chance. `--data` may be one file.

    Raises UserError for a part or numbers that are not there.
    """
    path = Path(options.data)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        if options.part or any(options.images):
            raise UserError(f"{options.data} is one image: leave --part and --images out")
        one = Files(path.name, [path], None)
        tally.say(one)
        return one
    images = open_images(options.data, part_or_all(options.data, options.part))
    if options.images:
        if not 0 <= min(options.images) <= max(options.images) < len(images):
            raise UserError(f"--images: {images.name} has numbers 0 to {len(images) - 1}")
        return Subset(images, np.array(options.images))
    return subset(images, options.limit or count, options.seed)


def side(backbone: Backbone, wanted: int | None) -> int:
    """Pixels of the shorter side. Raises UserError where no patch fits."""
    trained = paper_crop(backbone) if isinstance(backbone, Measured) else backbone.shape.image_size
    size = wanted or (LARGE if trained >= LARGE // TIMES else TIMES * trained)
    if size < backbone.shape.stride:
        raise UserError(f"--size {size} is less than one patch of {backbone.shape.stride} pixels")
    return size


def see(images: Images, number: int, backbone: Backbone, size: int) -> Seen:
    """An image resized, its sides cut to whole patches."""
    pixels, stride = knn.read(images, number), backbone.shape.stride
    scale = size / min(pixels.shape[:2])
    box = max(round(pixels.shape[1] * scale), size), max(round(pixels.shape[0] * scale), size)
    resized = np.array(Image.fromarray(pixels).resize(box, Image.Resampling.BICUBIC))
    height, width = (length // stride * stride for length in resized.shape[:2])
    image = resized[:height, :width]
    crop = normalise(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255, backbone.shape.mean, backbone.shape.std)
    return Seen(called(images, number), crop, image, (height // stride, width // stride))


def called(images: Images, number: int) -> str:
    """A short name: the file's, or the source's and the number; the class where it is known."""
    where = images.where(number)
    name = Path(where).name if Path(where).suffix else where
    known = images.labels is not None and images.labels[number] >= 0
    return f"{name} ({images.classes[int(images.labels[number])]})" if known else name  # type: ignore[index]  # known


def tokens(backbone: Backbone, crop: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "n d"]:
    """Patch tokens after the final norm, on the CPU. Raises WorkError where they are not finite."""
    with torch.inference_mode():
        found = patch_tokens(backbone, crop.to(next(backbone.parameters()).device))[0].float().cpu()
    return finite.checked(found, backbone, lambda _: "a picture")


def whose(subject: Subject, key: str) -> str:
    """The checkpoint for a caption."""
    shape = subject.backbone.shape
    return f"{key} of {subject.loaded.path} ({shape.arch}/{shape.patch_size}, epoch {subject.loaded.epoch})"
