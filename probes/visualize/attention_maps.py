"""Attention maps of [CLS]: each head's, and the patches that hold most of each head's mass (paper, Fig. 6 and App. G).

`python -m probes.visualize attention`
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from checkpoints.cli import UserError
from pretrain.images.open import open_images
from pretrain.images.source import Images, Subset
from probes.features.attention import cls_attention, most_of_the_mass, require_attention
from probes.shared.console import steps
from probes.shared.subject import Subject
from probes.visualize import gallery, inputs
from probes.visualize.gallery import Shown
from probes.visualize.inputs import Drawing, Seen

COUNT = 8


@dataclass(frozen=True)
class Attention(Drawing):
    """Each head's attention of [CLS]; --data may be one image, images, or with --video the frames of a video."""

    mass: float = 0.6
    """Share of each head's attention that the coloured patches hold."""
    video: bool = False
    """The images are frames of a video in the order of their names: also one animated picture."""


def draw(options: Attention, subject: Subject) -> Iterator[Shown]:
    """A picture an image: itself, all heads' masks in colour, each head's map."""
    if not 0 < options.mass < 1:
        raise UserError("--mass must lie between 0 and 1")
    backbone, source = require_attention(subject.backbone), inputs.whose(subject, options.key)
    images = frames(options) if options.video else inputs.pictures_of(options, COUNT)
    size = inputs.side(backbone, options.size)
    films: list[Image.Image] = []
    for number in steps("attention", range(len(images)), len(images)):
        seen = inputs.see(images, number, backbone, size)
        maps = cls_attention(backbone, seen.crop.to(subject.device))[0].cpu()
        masks = most_of_the_mass(maps, options.mass).numpy()
        heads = maps.unflatten(1, seen.grid).numpy()
        masks = masks.reshape(heads.shape)
        figure = sheet(seen, heads, masks, f"{seen.name}\n{source}")
        masked = f"{len(heads)} heads, masks hold {options.mass:.0%} of each head's mass"
        caption = f"{seen.name}: attention of [CLS] in the last block, {masked}. {source}"
        yield Shown(f"attention_{number:03d}", figure, caption)
        if options.video:
            films.append(frame(seen, heads, masks))
            if films[-1].size != films[0].size:
                raise UserError(f"{seen.name} has another shape than the first frame: a video's frames are alike")
    if films:
        yield Shown("attention_video", films, f"{options.data}: the heads' masks in {len(films)} frames. {source}")


def frames(options: Attention) -> Images:
    """All images in the order of their names. Raises UserError for what is not a plain sequence."""
    if options.data == "sample":
        raise UserError("--video needs --data: a folder of frames (python -m pretrain.sample --davis DIR writes some)")
    images = open_images(options.data, None)
    return Subset(images, np.arange(len(images))[: options.limit])


def sheet(
    seen: Seen, heads: Float[np.ndarray, "heads gh gw"], masks: Bool[np.ndarray, "heads gh gw"], title: str
) -> gallery.Figure:
    """The image, the masks together, then each head's map above its mask."""
    figure, axes = gallery.panels(2 * (len(heads) + 1), title, columns=len(heads) + 1)
    above, below = axes[: len(heads) + 1], axes[len(heads) + 1 :]
    height, width = seen.image.shape[:2]
    gallery.picture(above[0], seen.image, "image")
    gallery.picture(below[0], painted(seen, heads, masks), "masks of all heads")
    colours = gallery.unit_colours(len(heads))
    for number, (one, mask) in enumerate(zip(heads, masks, strict=True)):
        gallery.picture(above[number + 1], gallery.blown_up(one, height, width), f"head {number}")
        own = gallery.blown_up(mask, height, width)[..., None]
        gallery.picture(below[number + 1], np.where(own, seen.image, seen.image // 4), "its mask")
        below[number + 1].title.set_color(tuple(colours[number] * 0.75))
    return figure


def painted(seen: Seen, heads: Float[np.ndarray, "heads gh gw"], masks: Bool[np.ndarray, "heads gh gw"]) -> np.ndarray:
    """The image in grey, each patch in the colour of the head that looks at it most, if it is in that head's mask."""
    strength = heads * masks
    strength = np.sqrt(strength / np.maximum(strength.max(axis=(1, 2), keepdims=True), 1e-12)) * 0.8
    height, width = seen.image.shape[:2]
    return gallery.paint(seen.image, np.stack([gallery.blown_up(one, height, width) for one in strength]))


def frame(seen: Seen, heads: Float[np.ndarray, "heads gh gw"], masks: Bool[np.ndarray, "heads gh gw"]) -> Image.Image:
    """One frame of the animated picture: the image beside the masks."""
    return Image.fromarray(np.concatenate([seen.image, painted(seen, heads, masks)], axis=1))
