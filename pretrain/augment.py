"""Multi-crop: each image cut and resized with Pillow, then every crop of one size changed together as one batch.

Per kind of view (first global, second global, local) blur and solarisation have their own probabilities; the rest is
common: flip 0.5, colour jitter 0.8 of strength (0.4, 0.4, 0.2, 0.1) in random order, greyscale 0.2 (paper App. B, as DINO).

x crops, h w pixels. Values lie in 0..1 until they are normalised.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from pretrain.backbone import MEAN, STD

FLIP, JITTER, GREY = 0.5, 0.8, 0.2
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
SOLARIZE_FROM = 128 / 255
BLUR_SIGMA = (0.1, 2.0)
ASPECT = (3 / 4, 4 / 3)
LUMINANCE = (0.299, 0.587, 0.114)


class View(NamedTuple):
    """One kind of crop."""

    size: int
    scale: tuple[float, float]
    """Share of the image's area, least and most."""
    blur: float
    solarize: float


class MultiCrop(NamedTuple):
    """The views of an image: as many globals as listed, then `locals` times the local one."""

    global_views: tuple[View, ...]
    local_view: View
    locals: int


def crop_box(generator: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """A random box (left, upper, right, lower) with an area in `scale` and an aspect in 3/4..4/3 (torchvision's rule).

    After ten draws that do not fit, the largest centred box of allowed aspect.
    """
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            return left, upper, left + w, upper + h
    ratio = min(max(width / height, ASPECT[0]), ASPECT[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def cut(generator: np.random.Generator, image: Image.Image, view: View) -> UInt8[np.ndarray, "h w c"]:
    """A random crop of the image, resized to the view's size (bicubic, antialiased)."""
    box = crop_box(generator, image.width, image.height, view.scale)
    crop = image.crop(box).resize((view.size, view.size), Image.Resampling.BICUBIC)
    return np.asarray(crop)


def change(generator: np.random.Generator, crops: UInt8[np.ndarray, "x h w c"], view: View) -> Float[Tensor, "x c h w"]:
    """Flip, jitter, greyscale, blur and solarise each crop by its own draws, then normalise."""
    count = len(crops)
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    x = torch.where(chance(generator, count, FLIP), x.flip(-1), x)
    x = torch.where(chance(generator, count, JITTER), jitter(generator, x), x)
    x = torch.where(chance(generator, count, GREY), luminance(x).expand_as(x), x)
    blurred = chance(generator, count, view.blur).flatten()
    if blurred.any():
        sigma = torch.from_numpy(generator.uniform(*BLUR_SIGMA, size=int(blurred.sum()))).float()
        x[blurred] = blur(x[blurred], sigma)
    x = torch.where(chance(generator, count, view.solarize), solarize(x), x)
    return normalise(x)


def chance(generator: np.random.Generator, count: int, probability: float) -> Bool[Tensor, "x 1 1 1"]:
    """For each crop whether something happens to it."""
    return torch.from_numpy(generator.random(count) < probability)[:, None, None, None]


def jitter(generator: np.random.Generator, x: Float[Tensor, "x c h w"]) -> Float[Tensor, "x c h w"]:
    """Brightness, contrast, saturation and hue, each crop with its own factors and its own order."""
    factors = [1 + spread * generator.uniform(-1, 1, len(x)) for spread in (BRIGHTNESS, CONTRAST, SATURATION)]
    factors.append(HUE * generator.uniform(-1, 1, len(x)))
    amounts = [torch.from_numpy(factor).float()[:, None, None, None] for factor in factors]
    steps = (brightness, contrast, saturation, hue)
    order = torch.from_numpy(generator.permuted(np.tile(np.arange(4), (len(x), 1)), axis=1))
    x = x.clone()
    for turn in range(4):
        for kind, step in enumerate(steps):
            chosen = order[:, turn] == kind
            if chosen.any():
                x[chosen] = step(x[chosen], amounts[kind][chosen])
    return x


def luminance(x: Float[Tensor, "x c h w"]) -> Float[Tensor, "x 1 h w"]:
    """Grey value of each pixel (ITU-R 601)."""
    weights = torch.tensor(LUMINANCE, dtype=x.dtype, device=x.device)
    return (x * weights[:, None, None]).sum(dim=1, keepdim=True)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, the crop's mean grey."""
    return torch.lerp(luminance(x).mean(dim=(2, 3), keepdim=True).expand_as(x), x, factor).clamp(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, each pixel's grey."""
    return torch.lerp(luminance(x).expand_as(x), x, factor).clamp(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by `shift` turns, lightness and saturation (HSV) kept."""
    value, least = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    spread = value - least
    safe = torch.where(spread > 0, spread, 1.0)
    r, g, b = x.unbind(dim=1)
    angle = torch.where(
        x.argmax(dim=1) == 0, (g - b), torch.where(x.argmax(dim=1) == 1, 2 * safe[:, 0] + b - r, 4 * safe[:, 0] + r - g)
    )
    sixths = (angle[:, None] / safe + 6 * shift) % 6
    # Each channel is a trapezoid over the hue circle, the three a third of a turn apart.
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]
    place = (sixths + offsets) % 6
    return value - spread * torch.minimum(place, 4 - place).clamp(0, 1)


def blur(x: Float[Tensor, "x c h w"], sigma: Float[Tensor, " x"]) -> Float[Tensor, "x c h w"]:
    """Gaussian blur, each crop with its own standard deviation in pixels; edges are repeated."""
    radius = max(1, math.ceil(2.5 * float(sigma.max())))
    radius = min(radius, x.shape[-1] - 1, x.shape[-2] - 1)
    places = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (places / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(x.shape[1], dim=0)
    flat = x.flatten(0, 1)[None]
    flat = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel))
    return F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))[0].unflatten(0, x.shape[:2])


def solarize(x: Tensor) -> Tensor:
    """Invert what is 128/255 or brighter."""
    return torch.where(x >= SOLARIZE_FROM, 1 - x, x)


def normalise(x: Float[Tensor, "x c h w"]) -> Float[Tensor, "x c h w"]:
    """By ImageNet's mean and standard deviation."""
    mean, std = torch.tensor(MEAN, device=x.device), torch.tensor(STD, device=x.device)
    return (x - mean[:, None, None]) / std[:, None, None]


def evaluation_view(image: Image.Image, resize: int, crop: int) -> Float[Tensor, "c h w"]:
    """The probes' view: shorter side to `resize` (bicubic, antialiased), centre `crop`, normalised."""
    scale = resize / min(image.width, image.height)
    image = image.resize(
        (max(resize, int(image.width * scale)), max(resize, int(image.height * scale))), Image.Resampling.BICUBIC
    )
    left, upper = round((image.width - crop) / 2), round((image.height - crop) / 2)
    image = image.crop((left, upper, left + crop, upper + crop))
    return normalise(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255)[0]


def evaluation_resize(crop: int) -> int:
    """What to resize to before the centre crop: 256 for 224, in proportion from 160 up; smaller inputs are not cropped."""
    return round(crop * 256 / 224) if crop >= 160 else crop
