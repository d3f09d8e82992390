"""Cut a box out of an image and resize it as Pillow does: bicubic (a = -0.5), antialiased, the box's edges being the image's.

On a CPU each crop goes through torch's own 8-bit kernel; on a GPU many crops of many sizes go together as two matrix products
with weights of their own. Both equal Pillow to one level of 255 (docs/decisions.md says why there are two).

x crops, s pixels of a crop's side, h w pixels of an image, c channels.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

SUPPORT = 2.0
"""Half width of the bicubic kernel, in pixels of the coarser grid."""
MOST_VALUES = 1 << 26
"""Largest number of values in padded boxes that are resized together (256 MB as float32)."""


class Packed(NamedTuple):
    """Images of different sizes, one after the other."""

    data: Tensor
    """uint8 (or float32) values of all images, each [h, w, c], flattened."""
    start: Int[np.ndarray, " b"]
    """Offset of each image in `data`."""
    width: Int[np.ndarray, " b"]
    channels: int
    jpegs: Sequence[UInt8[Tensor, " n"]] = ()
    """Files that are decoded on the device, whose pixels come after those in `data`."""

    def to(self, device: torch.device) -> "Packed":
        """Copies on the device, JPEGs decoded there. Raises RuntimeError where one cannot be decoded."""
        data = self.data.to(device, non_blocking=True)
        if self.jpegs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision 0.29 announces torchcodec in its place
                decoded = decode_jpeg([jpeg.cpu() for jpeg in self.jpegs], mode=ImageReadMode.RGB, device=device)
            data = torch.cat([data, *(pixels.permute(1, 2, 0).reshape(-1) for pixels in decoded)])
        return self._replace(data=data, jpegs=())


class Jpeg(NamedTuple):
    """A file that is left to the device, and what its header says of its size."""

    content: bytes
    width: int
    height: int


def pack(images: Sequence[np.ndarray | Jpeg]) -> Packed:
    """Images [h, w, c] -> one block of memory; the pixels of JPEGs that are left to the device get their places behind."""
    ready = [image for image in images if isinstance(image, np.ndarray)]
    channels = ready[0].shape[2] if ready else 3
    waits = np.array([isinstance(image, Jpeg) for image in images])
    sizes = np.array([i.width * i.height * channels if isinstance(i, Jpeg) else i.size for i in images])
    widths = np.array([image.width if isinstance(image, Jpeg) else image.shape[1] for image in images])
    order = np.argsort(waits, kind="stable")
    start = np.empty_like(sizes)
    start[order] = np.cumsum(sizes[order]) - sizes[order]
    data = np.concatenate([image.reshape(-1) for image in ready]) if ready else np.empty(0, dtype=np.uint8)
    jpegs = [torch.from_numpy(np.frombuffer(i.content, dtype=np.uint8).copy()) for i in images if isinstance(i, Jpeg)]
    return Packed(torch.from_numpy(data), start, widths, channels, jpegs)


def cut_each(
    images: Sequence[np.ndarray],
    image: Int[np.ndarray, " x"],
    box: Int[np.ndarray, "x 4"],
    flip: Bool[np.ndarray, " x"],
    size: int,
) -> Tensor:
    """Crops [x, c, s, s] of uint8 (or float32) images [h, w, c]: box (left, upper, width, height) of image number `image`."""
    crops = []
    for number, (left, upper, width, height), flipped in zip(image, box, flip, strict=True):
        region = torch.from_numpy(images[number][upper : upper + height, left : left + width]).permute(2, 0, 1)
        crop = F.interpolate(region[None], (size, size), mode="bicubic", antialias=True)[0]
        crops.append(crop.flip(-1) if flipped else crop)
    return torch.stack(crops)


def cut_together(
    packed: Packed,
    image: Int[np.ndarray, " x"],
    box: Int[np.ndarray, "x 4"],
    flip: Bool[np.ndarray, " x"],
    size: int,
) -> Tensor:
    """As `cut` from packed images, on their device, without waiting for it."""
    left, upper, width, height = box.T
    start = packed.start[image] + (upper * packed.width[image] + left) * packed.channels
    stride = packed.width[image] * packed.channels
    most = max(1, MOST_VALUES // int(width.max() * height.max() * packed.channels))
    parts = [
        _resize(packed, start[part], stride[part], width[part], height[part], flip[part], size)
        for part in np.split(np.arange(len(box)), range(most, len(box), most))
    ]
    return torch.cat(parts)


def _resize(
    packed: Packed, start: np.ndarray, stride: np.ndarray, width: np.ndarray, height: np.ndarray, flip: np.ndarray, size: int
) -> Tensor:
    """Gather the boxes padded to the largest of them, then along x, then along y, rounded to 8 bit after each as Pillow does."""
    device, channels = packed.data.device, packed.channels
    columns = np.minimum(np.arange(width.max()), width[:, None] - 1) * channels  # beyond the box any value: its weight is 0
    rows = start[:, None] + np.minimum(np.arange(height.max()), height[:, None] - 1) * stride[:, None]
    at_column = torch.from_numpy(columns).to(device, non_blocking=True)[:, None, :, None]
    at_row = torch.from_numpy(rows).to(device, non_blocking=True)[:, :, None, None]
    values = packed.data[at_row + at_column + torch.arange(channels, device=device)].float()
    lengths = torch.from_numpy(np.stack([width, height]).astype(np.float32)).to(device, non_blocking=True)
    flipped = torch.from_numpy(flip).to(device, non_blocking=True)
    along_x = weights(lengths[0], size, values.shape[2])
    along_x = torch.where(flipped[:, None, None], along_x.flip(1), along_x)
    along_y = weights(lengths[1], size, values.shape[1])
    eight_bit = packed.data.dtype == torch.uint8
    values = _rounded(torch.einsum("xhwc,xsw->xchs", values, along_x), eight_bit)
    values = _rounded(along_y[:, None] @ values, eight_bit)
    return values.to(packed.data.dtype)


def _rounded(values: Tensor, eight_bit: bool) -> Tensor:
    return values.round().clamp(0, 255) if eight_bit else values


def weights(length: Float[Tensor, " x"], size: int, padded: int) -> Float[Tensor, "x s padded"]:
    """Resampling weights of a line of `length` pixels for each of `size` new pixels; rows sum to one."""
    scale = (length / size)[:, None, None]
    reach = scale.clamp(min=1.0)
    new = torch.arange(size, device=length.device, dtype=torch.float32)[None, :, None]
    old = torch.arange(padded, device=length.device, dtype=torch.float32)[None, None, :]
    distance = ((old + 0.5 - (new + 0.5) * scale) / reach).abs()
    weight = torch.where(old < length[:, None, None], bicubic(distance), 0.0)
    return weight / weight.sum(dim=2, keepdim=True)


def bicubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, for distances from 0."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return torch.where(distance < 1.0, near, torch.where(distance < SUPPORT, far, 0.0))
