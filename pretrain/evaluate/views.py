"""The view of an image that evaluation sees: resized, centre crop, normalised."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from checkpoints.architecture import MEAN, STD
from pretrain.batches import color_ops
from pretrain.images.decode import Pixels


def evaluation_box(width: int, height: int, resize: int, crop: int) -> tuple[tuple[int, int], int, int]:
    """Size (width, height) after resizing the shorter side to `resize`, and left and upper offset of the centre crop."""
    scale = resize / min(width, height)
    size = max(resize, int(width * scale)), max(resize, int(height * scale))
    return size, round((size[0] - crop) / 2), round((size[1] - crop) / 2)


def evaluation_view(
    pixels: Pixels,
    resize: int,
    crop: int,
    interpolation: str = "bicubic",
    squash: bool = False,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Float[Tensor, "c crop crop"]:
    """The probes' view of an image: shorter side to `resize` (antialiased), centre `crop`, normalised.

    `squash`: both sides to `resize`, whatever the image's proportions.
    """
    height, width, channels = pixels.shape
    size, left, upper = evaluation_box(resize if squash else width, resize if squash else height, resize, crop)
    planes = [pixels] if channels == 3 and pixels.dtype == np.uint8 else [pixels[:, :, channel] for channel in range(channels)]
    filter_ = Image.Resampling[interpolation.upper()]
    resized = [np.asarray(Image.fromarray(plane).resize(size, filter_)) for plane in planes]
    whole = resized[0] if resized[0].ndim == 3 else np.stack(resized, axis=-1)
    cut = torch.from_numpy(whole[upper : upper + crop, left : left + crop].copy()).permute(2, 0, 1)[None]
    return color_ops.normalise(cut.float() / 255 if cut.dtype == torch.uint8 else cut, mean, std)[0]


def evaluation_resize(crop: int) -> int:
    """Shorter side before the centre crop: 256 for 224, in proportion from 160 up; smaller inputs are not cropped."""
    return round(crop * 256 / 224) if crop >= 160 else crop
