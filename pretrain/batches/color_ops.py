"""Colour operations on batches of crops, each crop with its own parameters, equal to Pillow's and torchvision's on one image.

x crops, c channels, h w pixels; values are levels from 0 to 255. Nothing waits for the device.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from checkpoints.architecture import MEAN, STD

SOLARIZE_FROM = 128
BLUR_PASSES = 3
LUMINANCE = (19595 / 65536, 38470 / 65536, 7471 / 65536)
Amounts = Float[np.ndarray, " x"]


def _column(x: Tensor, amounts: Amounts) -> Float[Tensor, "x 1 1 1"]:
    """One number a crop, beside the crops."""
    return torch.from_numpy(amounts).to(x.device, x.dtype, non_blocking=True)[:, None, None, None]


def luminance(x: Float[Tensor, "x c h w"]) -> Float[Tensor, "x 1 h w"]:
    """Grey level of each pixel: ITU-R 601 for three channels, whole as in Pillow, else the mean."""
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    weights = torch.tensor(LUMINANCE, dtype=x.dtype).to(x.device, non_blocking=True)
    return (x * weights[:, None, None]).sum(dim=1, keepdim=True).add_(0.5).floor_()


def grey(x: Tensor) -> Tensor:
    return luminance(x).expand_as(x).contiguous()  # memory of its own: what comes next writes into some of the crops


def brightness(x: Tensor, factors: Amounts) -> Tensor:
    return (x * _column(x, factors)).clamp_(0, 255)


def contrast(x: Tensor, factors: Amounts) -> Tensor:
    """Away from, or towards, the crop's mean grey."""
    mean, factor = luminance(x).mean(dim=(2, 3), keepdim=True), _column(x, factors)
    mean = mean.add_(0.5).floor_() if x.shape[1] == 3 else mean
    return (x * factor).add_(mean * (1 - factor)).clamp_(0, 255)


def saturation(x: Tensor, factors: Amounts) -> Tensor:
    """Away from, or towards, each pixel's grey."""
    factor = _column(x, factors)
    return (x * factor).add_(luminance(x) * (1 - factor)).clamp_(0, 255)


def hue(x: Tensor, turns: Amounts) -> Tensor:
    """Rotate the hue by so many turns, in 255ths as Pillow does, lightness and saturation (HSV) kept."""
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    value, least = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = value - least
    # Arithmetic on masks in place of argmax, where and %: ten times faster on a CPU.
    red = (r == value).float()
    green = (1 - red).mul_(g == value)
    blue = 1 - red - green
    angle = (red * (g - b)).add_(green * (b - r)).add_(blue * (r - g)) / spread.clamp(min=1e-12)
    sixths = angle.add_(green, alpha=2).add_(blue, alpha=4).add_(6 * _column(x, np.trunc(turns * 255) / 255))
    # Each channel is a trapezoid over the hue circle, the three a third of a turn apart.
    channels = []
    for offset in (5.0, 3.0, 1.0):
        place = sixths + offset
        place = place.sub_((place / 6).floor_(), alpha=6)
        channels.append(value - torch.minimum(place, 4 - place).clamp_(0, 1).mul_(spread))
    return torch.cat(channels, dim=1)


def box_radius(sigma: Float[np.ndarray, " x"]) -> tuple[np.ndarray, np.ndarray]:
    """Whole part and fraction of the radius of a box whose three-fold blur has this standard deviation, as Pillow takes it."""
    variance = sigma**2 / BLUR_PASSES
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole, fraction


def blur_kernel(sigma: Float[np.ndarray, " x"]) -> Float[np.ndarray, "x taps"]:
    """The taps of Pillow's Gaussian blur along one axis: three box blurs with a fractional radius, as one kernel."""
    whole, fraction = box_radius(sigma)
    reach = int(whole.max()) + 1
    place = np.abs(np.arange(-reach, reach + 1))
    box = np.where(place <= whole[:, None], 1.0, np.where(place == whole[:, None] + 1, fraction[:, None], 0.0))
    box = box / box.sum(axis=1, keepdims=True)
    kernel = box
    for _ in range(BLUR_PASSES - 1):
        kernel = np.stack([np.convolve(weights, line) for weights, line in zip(kernel, box, strict=True)])
    return kernel


def blur(x: Float[Tensor, "x c h w"], sigma: Amounts) -> Float[Tensor, "x c h w"]:
    """Gaussian blur as Pillow does it, each crop with its own standard deviation in pixels; edges are repeated."""
    taps = torch.from_numpy(blur_kernel(sigma)).to(x.device, x.dtype, non_blocking=True)
    radius = taps.shape[1] // 2
    for axis in (-1, -2):
        padding = (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius)
        padded, length = F.pad(x, padding, mode="replicate"), x.shape[axis]
        x = padded.narrow(axis, radius, length) * taps[:, radius, None, None, None]
        for tap in range(2 * radius + 1):
            if tap != radius:
                x.addcmul_(padded.narrow(axis, tap, length), taps[:, tap, None, None, None])
    return x


def solarize(x: Tensor) -> Tensor:
    """Invert what is 128 or brighter."""
    bright = (x >= SOLARIZE_FROM).to(x.dtype)
    return x + bright * (255 - 2 * x)


def normalise(
    x: Float[Tensor, "x c h w"],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    *,
    levels: float = 1.0,
    out: Tensor | None = None,
) -> Float[Tensor, "x c h w"]:
    """Values in 0..levels by each channel's mean and standard deviation (ImageNet's for three)."""
    spread = torch.tensor(tuple(std), dtype=torch.float64)
    factor, shift = 1 / (levels * spread), -torch.tensor(tuple(mean), dtype=torch.float64) / spread
    factor, shift = (values.float().to(x.device, non_blocking=True)[:, None, None] for values in (factor, shift))
    return torch.addcmul(shift, x, factor, out=out)
