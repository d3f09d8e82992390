"""Multi-crop: parameters drawn for every crop by themselves, then applied to a batch on its device.

Per kind of view (first global, other globals, locals) blur and solarisation have their own probabilities; the rest is
common: flip 0.5, colour jitter 0.8 of strength (0.4, 0.4, 0.2, 0.1) in random order, greyscale 0.2 (paper App. B, as DINO).

v views of one kind, b images, x = v * b crops, c channels, h w pixels. Until they are normalised, values are levels from
0 to 255, and whole ones for 8-bit images: each operation rounds as Pillow's does.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from checkpoints.architecture import MEAN, STD
from pretrain.batches import color_ops, resample

FLIP, JITTER, GREY = 0.5, 0.8, 0.2
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
JITTERS = (color_ops.brightness, color_ops.contrast, color_ops.saturation, color_ops.hue)
BLUR_SIGMA = (0.1, 2.0)
ASPECT = (3 / 4, 4 / 3)
BOX_TRIES = 10
REDUCTION_MARGIN = 2
CHUNK = 1 << 18
"""Values that a CPU changes at a time: they stay in its cache."""


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


class Draws(NamedTuple):
    """Random draws for the crops of one kind, independent of the images' sizes."""

    area: Float[np.ndarray, "v b tries"]
    aspect: Float[np.ndarray, "v b tries"]
    place: Float[np.ndarray, "v b 2"]
    """Left and upper edge as a share of the room that the box leaves."""
    flip: Bool[np.ndarray, "v b"]
    jittered: Bool[np.ndarray, "v b"]
    factors: Float[np.ndarray, "v b 4"]
    """Factors of brightness, contrast and saturation; then the shift of the hue."""
    order: Int[np.ndarray, "v b 4"]
    """Order in which the four are applied."""
    grey: Bool[np.ndarray, "v b"]
    sigma: Float[np.ndarray, "v b"]
    """Standard deviation of the blur in pixels; 0 for no blur."""
    solarize: Bool[np.ndarray, "v b"]


def draw(generator: np.random.Generator, view: View, views: int, images: int) -> Draws:
    """Parameters for `views` crops of every image."""
    shape = (views, images)
    spread = np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
    return Draws(
        area=generator.uniform(*view.scale, (*shape, BOX_TRIES)),
        aspect=np.exp(generator.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), (*shape, BOX_TRIES))),
        place=generator.random((*shape, 2)),
        flip=generator.random(shape) < FLIP,
        jittered=generator.random(shape) < JITTER,
        factors=np.array([1.0, 1.0, 1.0, 0.0]) + spread * generator.uniform(-1, 1, (*shape, 4)),
        order=generator.permuted(np.broadcast_to(np.arange(4), (*shape, 4)), axis=-1),
        grey=generator.random(shape) < GREY,
        sigma=generator.uniform(*BLUR_SIGMA, shape) * (generator.random(shape) < view.blur),
        solarize=generator.random(shape) < view.solarize,
    )


def boxes(draws: Draws, width: Int[np.ndarray, " b"], height: Int[np.ndarray, " b"]) -> Int[np.ndarray, "v b 4"]:
    """Boxes (left, upper, width, height) in images of these sizes: torchvision's rule for a random resized crop.

    The first of ten tries that fits; where none does, the largest centred box of allowed aspect.
    """
    wide, high = width[:, None], height[:, None]
    area = draws.area * wide * high
    w, h = np.rint(np.sqrt(area * draws.aspect)), np.rint(np.sqrt(area / draws.aspect))
    fits = (w > 0) & (w <= wide) & (h > 0) & (h <= high)
    first = fits.argmax(axis=-1)[..., None]
    w, h = np.take_along_axis(w, first, -1)[..., 0], np.take_along_axis(h, first, -1)[..., 0]
    none = ~fits.any(axis=-1)
    ratio = np.clip(width / height, *ASPECT)
    w = np.where(none, np.minimum(width, np.rint(height * ratio)), w)
    h = np.where(none, np.minimum(height, np.rint(width / ratio)), h)
    left, upper = (
        np.where(none, (room // 2), np.floor(draws.place[..., axis] * (room + 1)))
        for axis, room in ((0, width - w), (1, height - h))
    )
    return np.stack([left, upper, w, h], axis=-1).astype(np.int64)


def reduction(boxes_of_image: Int[np.ndarray, "x 4"], sizes: Int[np.ndarray, " x"]) -> int:
    """By how much (1, 2, 4, 8) an image may be shrunk while it is decoded: every crop must still be half its box or less.

    What this changes in a crop is then about one level of 255 in the mean (docs/decisions.md).
    """
    least = (boxes_of_image[:, 2:].min(axis=1) / sizes).min() / REDUCTION_MARGIN
    return int(2 ** np.clip(np.floor(np.log2(least)), 0, 3)) if least >= 1 else 1


def shrink(box: Int[np.ndarray, "x 4"], factor: int, width: int, height: int) -> Int[np.ndarray, "x 4"]:
    """Boxes in an image that is 1/factor as large, width x height by now, to the nearest pixel, inside it."""
    corners = np.rint(np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1) / factor).astype(np.int64)
    corners = np.clip(corners, 0, [width, height, width, height])
    return np.concatenate([corners[:, :2], np.maximum(corners[:, 2:] - corners[:, :2], 1)], axis=1)


class Crops(NamedTuple):
    """Augmentations of the crops of one kind: `draws` with boxes that fit the decoded images."""

    draws: Draws
    box: Int[np.ndarray, "v b 4"]
    size: int


def make(
    images: Sequence[np.ndarray], crops: Crops, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Float[Tensor, "v b c h w"]:
    """The finished crops of images [h, w, c]."""
    held = Held(len(crops.box), len(images), crops.size)
    for number, pixels in enumerate(images):
        held.put(number, pixels, crops.box[:, number], crops.draws.flip[:, number])
    return finish(held.crops, crops.draws, mean, std)


class Held:
    """Crops of one size, cut out of one image after the other: 8 bit as long as all images are, else float32 in 0..1."""

    def __init__(self, views: int, images: int, size: int) -> None:
        self._shape, self._size = (views, images), size
        self.crops = torch.empty(0)
        """[v, b, c, s, s]"""

    def put(self, number: int, pixels: np.ndarray, box: Int[np.ndarray, "v 4"], flip: Bool[np.ndarray, " v"]) -> None:
        """Cut the crops of image `number` out of its pixels [h, w, c]."""
        cut = resample.cut(pixels, box, flip, self._size)
        if not self.crops.dim() > 1:
            dtype = torch.uint8 if pixels.dtype == np.uint8 else torch.float32
            self.crops = torch.empty(*self._shape, pixels.shape[2], self._size, self._size, dtype=dtype)
        for view, crop in enumerate(cut):
            if crop.dtype != self.crops.dtype:  # 8 bit beside deeper ones
                self.crops = _unit(self.crops)
            self.crops[view, number] = crop if crop.dtype == self.crops.dtype else _unit(crop)


def _unit(values: Tensor) -> Tensor:
    return values.float() / 255 if values.dtype == torch.uint8 else values


def flat(draws: Draws) -> Draws:
    """Draws [v, b, ...] as [v * b, ...]."""
    return Draws(*(values.reshape(-1, *values.shape[2:]) for values in draws))


def finish(
    crops: Tensor, draws: Draws, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, out: Tensor | None = None
) -> Float[Tensor, "v b c h w"]:
    """Crops [v, b, c, h, w] as they were cut out, changed by their draws [v, b, ...] and normalised, where they lie."""
    made = torch.empty(crops.shape, device=crops.device) if out is None else out
    before, into = crops.flatten(0, 1), made.flatten(0, 1)
    drawn = flat(draws)
    length = max(1, CHUNK // crops.shape[2:].numel()) if crops.device.type == "cpu" else CHUNK
    for start in range(0, len(before), length):
        part = slice(start, start + length)
        change(before[part], Draws(*(values[part] for values in drawn)), mean, std, out=into[part])
    return made


def change(
    crops: Tensor, draws: Draws, mean: Sequence[float] = MEAN, std: Sequence[float] = STD, out: Tensor | None = None
) -> Float[Tensor, "x c h w"]:
    """Jitter, greyscale, blur and solarise crops [x, c, h, w] by their draws [x, ...], then normalise, into `out` if given.

    Hue, saturation and greyscale are for three channels; others are left as they are there.
    """
    eight_bit, coloured = crops.dtype == torch.uint8, crops.shape[1] == 3
    x = crops.float() if eight_bit else crops * 255
    down, near = (torch.Tensor.floor_, torch.Tensor.round_) if eight_bit else (None, None)
    for turn in range(4):
        for kind, step in enumerate(JITTERS if coloured else JITTERS[:2]):
            chosen = np.flatnonzero(draws.jittered & (draws.order[:, turn] == kind))
            x = _change_some(x, chosen, step, draws.factors[chosen, kind], finish=near if step is color_ops.hue else down)
    if coloured:
        x = _change_some(x, np.flatnonzero(draws.grey), color_ops.grey)
    chosen = np.flatnonzero(draws.sigma)
    x = _change_some(x, chosen, color_ops.blur, draws.sigma[chosen], finish=near)
    x = _change_some(x, np.flatnonzero(draws.solarize), color_ops.solarize)
    return color_ops.normalise(x, mean, std, levels=255.0, out=out)


def _change_some(
    x: Tensor,
    chosen: np.ndarray,
    step: Callable[..., Tensor],
    *amounts: np.ndarray,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The crops with some of them changed, those in place; nothing is asked of the device."""
    if len(chosen) == 0:
        return x
    index = torch.from_numpy(chosen).to(x.device, non_blocking=True) if len(chosen) < len(x) else None
    changed = step(x if index is None else x.index_select(0, index), *amounts)
    if finish is not None:
        changed = finish(changed)
    return changed if index is None else x.index_copy_(0, index, changed)
