"""Random resized crops for the linear probe: torchvision's default box, bilinear, perhaps mirrored.

b images of a batch, c channels, s pixels of a crop's side.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from checkpoints.architecture import Architecture
from pretrain.batches import augment, color_ops
from pretrain.batches.feeding import fed
from pretrain.evaluate import knn
from pretrain.images.source import Images
from probes.features.cache import worker_count
from probes.shared.subject import Common

SCALE = (0.08, 1.0)
"""Share of the area that a crop has: torchvision's default, as in the original."""


StepsOfEpoch = Callable[[int], list[np.ndarray]]
"""The numbers of the images of every step of an epoch."""


class _Plan:
    """Epoch and number of every crop, step by step, as a loader asks for them."""

    def __init__(self, epochs: range, steps: StepsOfEpoch) -> None:
        self._epochs, self._steps = epochs, steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in self._epochs:
            for numbers in self._steps(epoch):
                yield [(epoch, number) for number in numbers.tolist()]


def random_crops(
    images: Images, epochs: range, steps: StepsOfEpoch, size: int, shape: Architecture, options: Common
) -> Iterator[Float[Tensor, "b c s s"]]:
    """A crop of each image of each step of all epochs, one step after the other; the processes that decode live through them all.

    Raises UserError naming an image that cannot be read.
    """
    return fed(
        _Crops(images, size, shape, options.seed),
        _Plan(epochs, steps),
        worker_count(options, len(images)),
        collate=torch.stack,
        ahead=2,
        pin_memory=torch.cuda.is_available(),
    )


class _Crops(Dataset[Any]):
    """Random crops that depend only on the seed, the epoch and the image's number."""

    def __init__(self, images: Images, size: int, shape: Architecture, seed: int) -> None:
        self._images, self._size, self._shape, self._seed = images, size, shape, seed

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        epoch, index = place
        pixels = knn.read(self._images, index)
        generator = np.random.default_rng([self._seed, 2, epoch, index])
        draws = augment.draw(generator, augment.View(self._size, SCALE, 0.0, 0.0), 1, 1)
        height, width, _ = pixels.shape
        left, upper, w, h = augment.boxes(draws, np.array([width]), np.array([height]))[0, 0].tolist()
        cut = torch.from_numpy(pixels[upper : upper + h, left : left + w].copy()).permute(2, 0, 1)[None]
        cut = cut.float() / 255 if cut.dtype == torch.uint8 else cut
        crop = F.interpolate(cut, size=(self._size, self._size), mode="bilinear", antialias=True, align_corners=False)
        return color_ops.normalise(crop.flip(3) if draws.flip[0, 0] else crop, self._shape.mean, self._shape.std)[0]
