"""One vector an image, for retrieval: [CLS] at several scales, or [CLS] with pooled patches; whitening.

b images, s side, w d width of a vector.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pretrain.batches.color_ops import normalise
from pretrain.evaluate import finite, knn
from pretrain.images.source import Images
from pretrain.models.backbone import Backbone
from pretrain.models.measured import pooled, pooled_and_patches
from probes.shared.console import steps

SCALES = (1.0, 2**-0.5, 0.5)
POWER = 4
"""Exponent of the generalised mean of patch tokens (GeM)."""
LEAST = 1e-6
KEPT = 1e-5
"""Directions with less than this share of the largest variance are not stretched any further."""

Describe = Callable[[Backbone, np.ndarray], Float[Tensor, " d"]]


def seen(pixels: np.ndarray, size: tuple[int, int], resample: Image.Resampling, backbone: Backbone) -> Float[Tensor, "1 3 a b"]:
    """An image resized to (width, height) and normalised."""
    resized = np.array(Image.fromarray(pixels).resize(size, resample))
    crop = torch.from_numpy(resized).permute(2, 0, 1)[None].float() / 255
    return normalise(crop, backbone.shape.mean, backbone.shape.std)


def landmark(backbone: Backbone, pixels: np.ndarray, size: int, scales: tuple[float, ...]) -> Float[Tensor, " d"]:
    """[CLS] of the image with its longer side at most `size`, mean over the scales (paper Table 16), length one."""
    height, width = pixels.shape[:2]
    shrink = min(1.0, size / max(height, width))
    box = max(round(width * shrink), 1), max(round(height * shrink), 1)
    whole = seen(pixels, box, Image.Resampling.LANCZOS, backbone).to(next(backbone.parameters()).device)
    found = [pooled(backbone, _whole_patches(_scaled(whole, scale), backbone.shape.stride))[0].float() for scale in scales]
    return F.normalize(torch.stack(found).mean(dim=0), dim=0)


def _scaled(whole: Float[Tensor, "1 c h w"], scale: float) -> Float[Tensor, "1 c a b"]:
    return whole if scale == 1 else F.interpolate(whole, scale_factor=scale, mode="bilinear", align_corners=False)


def _whole_patches(image: Float[Tensor, "1 c h w"], stride: int) -> Float[Tensor, "1 c a b"]:
    """The image without the remainder at the right and lower edge that fills no patch, but of one patch at least."""
    height, width = (max(side // stride, 1) * stride for side in image.shape[2:])
    image = F.pad(image, (0, max(width - image.shape[3], 0), 0, max(height - image.shape[2], 0)))
    return image[:, :, :height, :width]


def copy(backbone: Backbone, pixels: np.ndarray, size: int) -> Float[Tensor, " d"]:
    """[CLS] beside the generalised mean of the patch tokens, of the image squeezed into a square."""
    square = seen(pixels, (size, size), Image.Resampling.BICUBIC, backbone).to(next(backbone.parameters()).device)
    first, patches = (part[0].float() for part in pooled_and_patches(backbone, square))
    gem = patches.clamp(min=LEAST).pow(POWER).mean(dim=0).pow(1 / POWER)
    return torch.cat([first, gem])


def describe(backbone: Backbone, images: Images, how: Describe) -> Float[Tensor, "b d"]:
    """Vectors of all images on the CPU. Raises UserError naming one that cannot be read, WorkError one that is not finite."""
    found = []
    with torch.inference_mode():
        for number in steps(images.name, range(len(images)), len(images)):
            vector = how(backbone, knn.read(images, number)).cpu()
            finite.checked(vector[None], backbone, lambda _, number=number: images.where(number))  # type: ignore[misc]
            found.append(vector)
    return torch.stack(found)


class Whitening(NamedTuple):
    """Whitening learned from vectors: makes them uncorrelated."""

    mean: Float[Tensor, " d"]
    turn: Float[Tensor, "d d"]

    def __call__(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return (vectors - self.mean) @ self.turn


def learn_whitening(vectors: Float[Tensor, "b d"]) -> Whitening:
    """Principal directions, each divided by its standard deviation."""
    mean = vectors.mean(dim=0)
    variance, directions = torch.linalg.eigh((vectors - mean).T.double() @ (vectors - mean).double() / len(vectors))
    variance = variance.clamp(min=max(variance.max().item() * KEPT, torch.finfo(torch.float64).tiny))
    return Whitening(mean, (directions / variance.sqrt()).float())
