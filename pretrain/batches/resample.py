"""Cut a box out of an image and resize it as Pillow does: bicubic (a = -0.5), antialiased, the box's edges being the image's.

torch's own 8-bit kernel, equal to Pillow's to one level of 255. It runs in the workers whatever trains: a GPU receives finished
crops of 8 bit, so that neither its memory nor the queue of batches depends on how large photographs are (docs/decisions.md).

x crops, s pixels of a crop's side, h w pixels of an image, c channels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor


def cut(pixels: np.ndarray, box: Int[np.ndarray, "x 4"], flip: Bool[np.ndarray, " x"], size: int) -> list[Tensor]:
    """Crops [c, s, s] of a uint8 (or float32) image [h, w, c], one for each box (left, upper, width, height)."""
    crops = []
    for (left, upper, width, height), flipped in zip(box, flip, strict=True):
        region = torch.from_numpy(pixels[upper : upper + height, left : left + width]).permute(2, 0, 1)
        crop = F.interpolate(region[None], (size, size), mode="bicubic", antialias=True)[0]
        crops.append(crop.flip(-1) if flipped else crop)
    return crops
