"""The patches, or images, with the highest scores for each prototype (paper, Fig. 3, 14 to 17).

`python -m probes.visualize patterns`

b images, n patches, k prototypes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from checkpoints.cli import UserError
from pretrain.evaluate import knn
from pretrain.evaluate.views import evaluation_box, evaluation_resize, evaluation_view
from pretrain.images.source import Images
from pretrain.method.heads import Head, of_weights
from probes.shared.console import steps
from probes.shared.subject import Subject
from probes.visualize import gallery, inputs
from probes.visualize.gallery import Shown
from probes.visualize.inputs import Drawing

COUNT = 500
AROUND = 2
"""Patches to each side that are shown around the one that is meant."""


@dataclass(frozen=True)
class Patterns(Drawing):
    """The strongest members of the prototypes with most members; needs a checkpoint with heads (a run's last.pt)."""

    level: Literal["patch", "cls"] = "patch"
    """Prototypes of patches, or of whole images."""
    prototypes: int = 24
    """Rows: those with most members."""
    members: int = 12
    """Columns: the strongest, one an image."""


class Assigned(NamedTuple):
    """Each token's prototype, and how strongly it belongs to it (its logit)."""

    prototype: Int[np.ndarray, "b n"]
    strength: Float[np.ndarray, "b n"]


def head_of(subject: Subject, key: str) -> Head:
    """The checkpoint's projection head. Raises UserError where it has none."""
    path, contents = subject.loaded.path, subject.loaded.contents
    weights = {name.removeprefix("head."): w for name, w in contents.network(key, path).items() if name.startswith("head.")}
    if not weights:
        raise UserError(f"{path} holds no heads, so there are no prototypes to show: give a run's folder or a full checkpoint")
    return of_weights(weights, path).to(subject.device)


def assign(options: Patterns, subject: Subject, images: Images, crop: int) -> Assigned:
    """The strongest prototype of every patch, or of every image (n is then 1)."""
    head, shape = head_of(subject, options.key), subject.backbone.shape
    prototypes, strengths = [], []
    starts = range(0, len(images), options.batch_size)
    for start in steps("prototypes", starts, len(starts)):
        numbers = range(start, min(start + options.batch_size, len(images)))
        views = [
            evaluation_view(knn.read(images, n), evaluation_resize(crop), crop, mean=shape.mean, std=shape.std) for n in numbers
        ]
        with torch.inference_mode():
            bottleneck = head.bottleneck(subject.backbone(torch.stack(views).to(subject.device)))
            logits: Tensor = head.patches(bottleneck[:, 1:]) if options.level == "patch" else head.cls(bottleneck[:, :1])
        strength, prototype = logits.max(dim=-1)
        prototypes.append(prototype.cpu().numpy())
        strengths.append(strength.cpu().numpy())
    return Assigned(np.concatenate(prototypes), np.concatenate(strengths))


class Row(NamedTuple):
    """One prototype: how many tokens belong to it, and its strongest (image, token), one an image."""

    prototype: int
    size: int
    members: list[tuple[int, int]]


def rows(assigned: Assigned, prototypes: int, members: int) -> list[Row]:
    """The prototypes with most members, the largest first."""
    counts = np.bincount(assigned.prototype.ravel())
    found = []
    for prototype in np.argsort(-counts, kind="stable")[:prototypes].tolist():
        strength = np.where(assigned.prototype == prototype, assigned.strength, -np.inf)
        best = strength.max(axis=1)
        images = [int(image) for image in np.argsort(-best, kind="stable")[:members] if np.isfinite(best[image])]
        if images:
            found.append(Row(prototype, int(counts[prototype]), [(image, int(strength[image].argmax())) for image in images]))
    return found


def draw(options: Patterns, subject: Subject) -> Iterator[Shown]:
    """One contact sheet."""
    crop, stride = options.size or subject.backbone.shape.image_size, subject.backbone.shape.stride
    if crop % stride:
        raise UserError(f"--size {crop} is not divisible by {stride}, the pixels of a token's side")
    head_of(subject, options.key)
    images = inputs.pictures_of(options, COUNT)
    found = rows(assign(options, subject, images, crop), options.prototypes, options.members)
    source = inputs.whose(subject, options.key)
    figure, axes = gallery.panels(
        len(found) * options.members, f"{options.level} prototypes, {images.name}\n{source}", columns=options.members, side=0.9
    )
    for number, row in enumerate(found):
        for column, (image, token) in enumerate(row.members):
            pixels = whole_view(images, image, crop)
            panel = axes[number * options.members + column]
            gallery.picture(panel, around(pixels, token, stride) if options.level == "patch" else pixels)
        axes[number * options.members].set_title(f"{row.prototype}: {row.size}", fontsize=7, loc="left")
    what = f"the strongest {'patches (framed), one an image,' if options.level == 'patch' else 'images'} of each prototype"
    words = f"Each row: {what}, with its number and its members among {len(images)} images of {images.name}. {source}"
    yield Shown(f"patterns_{options.level}", figure, words)


def whole_view(images: Images, number: int, crop: int) -> UInt8[np.ndarray, "s s 3"]:
    """The network's view of an image as pixels for display."""
    pixels, resize = knn.read(images, number), evaluation_resize(crop)
    size, left, upper = evaluation_box(pixels.shape[1], pixels.shape[0], resize, crop)
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return resized[upper : upper + crop, left : left + crop].copy()


def around(image: UInt8[np.ndarray, "s s 3"], token: int, stride: int) -> UInt8[np.ndarray, "w w 3"]:
    """A patch with its surroundings, framed; outside the picture it is grey."""
    columns, side = image.shape[1] // stride, (2 * AROUND + 1) * stride
    top, left = token // columns * stride, token % columns * stride
    margin = AROUND * stride
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=200)
    window = wide[top : top + side, left : left + side].copy()
    first, last, line = margin - 1, margin + stride, np.array(gallery.COLOURS[1], dtype=np.uint8)
    window[[first, last], first : last + 1] = line
    window[first : last + 1, [first, last]] = line
    return window
