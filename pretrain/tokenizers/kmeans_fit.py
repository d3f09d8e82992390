"""Making the codes of `kmeans.py`: patches of many images, gathered within bounded memory, then k-means by faiss.

x crops, c channels, h w pixels, n patches of a crop, p patches gathered, d width, k codes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints.cli import UserError
from pretrain.evaluate import kmeans
from pretrain.evaluate.views import evaluation_resize, evaluation_view
from pretrain.images.decode import BadImage
from pretrain.images.source import Images

POINTS = 256
"""Patches for each code, at most: faiss itself would draw no more, and memory is then codes x 256 x width x 4 bytes whatever
the number of images (3 GB for 4096 codes of 768 values)."""
ROUNDS = 25
BATCH = 64


class Look(NamedTuple):
    """How patches are taken from images."""

    describe: Callable[[Tensor], Tensor]
    """Crops [x, c, h, w] -> patches [x, n, d]."""
    size: int
    """Pixels of the centre crop's side."""
    grid: int
    """Patches along it."""
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device


class Points(NamedTuple):
    """Patches, and the number of the image that each is from."""

    values: Float[np.ndarray, "p d"]
    image: Int[np.ndarray, " p"]


class Codes(NamedTuple):
    """Centroids, and which of them each patch is nearest to."""

    centroids: Float[np.ndarray, "k d"]
    nearest: Int[np.ndarray, " p"]


def enough(count: int, codes: int, what: str) -> None:
    """Raise UserError for fewer patches than codes."""
    if count < codes:
        raise UserError(f"--codes {codes} needs at least as many patches, {what} has {count}: give more images or fewer codes")


def gather(images: Images, look: Look, codes: int, seed: int) -> Points:
    """Equally many patches of every image, drawn from the seed and the image's number: all patches, or POINTS for each code.

    Images that cannot be read are passed over. Raises UserError for fewer patches than codes, before anything is read.
    """
    patches = look.grid**2
    enough(len(images) * patches, codes, images.name)
    each = max(1, min(patches, POINTS * codes // len(images)))
    values = np.empty((len(images) * each, look.width), dtype=np.float32)
    image: list[int] = []
    for numbers, crops in _batches(images, look):
        with torch.inference_mode():
            described = look.describe(crops.to(look.device)).cpu()
        for number, points in zip(numbers, described, strict=True):
            chosen = np.sort(np.random.default_rng([seed, number]).permutation(patches)[:each])
            values[len(image) : len(image) + each] = points[torch.from_numpy(chosen)].numpy()
            image += [number] * each
    enough(len(image), codes, f"what can be read of {images.name}")
    return Points(values[: len(image)], np.array(image))


def _batches(images: Images, look: Look) -> Iterator[tuple[list[int], Float[Tensor, "x c h w"]]]:
    """Numbers and centre crops of the images that can be read."""
    resize = evaluation_resize(look.size)
    for start in range(0, len(images), BATCH):
        views: dict[int, Tensor] = {}
        for number in range(start, min(start + BATCH, len(images))):
            try:
                views[number] = evaluation_view(images[number], resize, look.size, mean=look.mean, std=look.std)
            except BadImage:
                continue
        if views:
            yield list(views), torch.stack(list(views.values()))


def cluster(points: Points, codes: int, seed: int, device: torch.device) -> Codes:
    """Lloyd's algorithm, begun with patches drawn from the seed."""
    settings = {"niter": ROUNDS, "seed": seed, "min_points_per_centroid": 1, "max_points_per_centroid": len(points.values)}
    found = kmeans.fit(points.values, codes, device, **settings)
    return Codes(found.centroids, found.nearest)


def summary(points: Points, found: Codes) -> str:
    """A sentence on how the patches are distributed over the codes."""
    pairs = np.unique(np.stack([found.nearest, points.image]), axis=1).shape[1]
    codes, used, images = len(found.centroids), len(np.unique(found.nearest)), len(np.unique(points.image))
    return (
        f"{codes} codes from {len(points.image):,} patches of {images:,} images: {used} codes used, "
        f"each by patches of {pairs / used:.1f} images in the mean"
    )
