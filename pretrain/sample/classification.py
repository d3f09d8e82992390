"""The sample for classification: labelled pictures of a part, and a sheet that shows some."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from pretrain.sample.scene import CATEGORIES, CLASSES, SEED, SIZE, draw_scene, render

COUNTS = {"train": 6000, "val": 1000}


class Drawn(NamedTuple):
    """The classification part: one thing an image."""

    images: UInt8[np.ndarray, "count h w 3"]
    labels: Int[np.ndarray, " count"]
    classes: tuple[str, ...]


@functools.cache
def classification(part: str, count: int | None = None, size: int = SIZE, seed: int = SEED) -> Drawn:
    """Images of one thing each, classes in equal numbers. `part` is `train` or `val`."""
    number = COUNTS[part] if count is None else count
    labels = np.arange(number) % len(CATEGORIES)
    images = np.empty((number, size, size, 3), dtype=np.uint8)
    for index, label in enumerate(labels):
        generator = np.random.default_rng([seed, list(COUNTS).index(part), index])
        images[index] = render(draw_scene(generator, [int(label)]), size).image
    return Drawn(images, labels, CLASSES)


def contact_sheet(images: UInt8[np.ndarray, "count h w 3"], columns: int, gap: int = 2) -> Image.Image:
    """Images row by row on white."""
    size = images.shape[1] + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * size + gap, columns * size + gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * size + gap, (index % columns) * size + gap
        sheet[top : top + len(image), left : left + len(image)] = image
    return Image.fromarray(sheet)
