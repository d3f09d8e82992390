"""The colours of 8-bit crops of three channels on a GPU, in three kernels (Triton); `augment.change` is their slow definition.

`jitter` does all that looks at single pixels and at a crop's mean: brightness, contrast, saturation and hue in each crop's own
order, then greyscale. `blur_x` and `blur_y` blur; the latter solarises and normalises too. Between them levels stay 8 bit, but
for what is to be blurred along y. Each crop reads its row of `color_table`; nothing waits for the device.

x crops, h w pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

from pretrain.batches import augment, color_table
from pretrain.batches.color_table import AMOUNTS, COLUMNS, CONTRAST_TURN, GREY, KINDS, RADIUS, SOLARIZE, TAPS

BLOCK = 1024
TO_WHOLE = tl.constexpr(12582912.0)
"""1.5 * 2^23: what is added to a float32 and taken away again rounds it to a whole number, halves to even as `round` does."""
RED, GREEN, BLUE = tl.constexpr(19595 / 65536), tl.constexpr(38470 / 65536), tl.constexpr(7471 / 65536)
_COLUMNS, _KINDS, _AMOUNTS = tl.constexpr(COLUMNS), tl.constexpr(KINDS), tl.constexpr(AMOUNTS)
_CONTRAST_TURN, _GREY, _SOLARIZE = tl.constexpr(CONTRAST_TURN), tl.constexpr(GREY), tl.constexpr(SOLARIZE)
_RADIUS, _TAPS = tl.constexpr(RADIUS), tl.constexpr(TAPS)
OPTIONS: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}
"""Without fused multiply-adds, which would round otherwise than the definition."""


@triton.jit
@no_type_check
def _level(value):
    """Cut off and rounded down, as Pillow does after a blend."""
    return tl.floor(tl.minimum(tl.maximum(value, 0.0), 255.0))


@triton.jit
@no_type_check
def _luminance(r, g, b):
    return tl.floor(r * RED + g * GREEN + b * BLUE + 0.5)


@triton.jit
@no_type_check
def _channel(sixths, offset, value, spread):
    """A trapezoid over the hue circle."""
    place = sixths + offset
    place = place - 6.0 * tl.floor(place / 6.0)
    height = tl.minimum(tl.maximum(tl.minimum(place, 4.0 - place), 0.0), 1.0)
    return (value - height * spread + TO_WHOLE) - TO_WHOLE


@triton.jit
@no_type_check
def _turn(r, g, b, row, turn, mean):
    """The operation of one of the four turns, if there is one."""
    kind, amount = tl.load(row + _KINDS + turn).to(tl.int32), tl.load(row + _AMOUNTS + turn)
    if kind == 0:  # brightness
        r, g, b = _level(r * amount), _level(g * amount), _level(b * amount)
    elif kind == 1:  # contrast
        flat = mean * (1.0 - amount)
        r, g, b = _level(r * amount + flat), _level(g * amount + flat), _level(b * amount + flat)
    elif kind == 2:  # saturation
        own = _luminance(r, g, b) * (1.0 - amount)
        r, g, b = _level(r * amount + own), _level(g * amount + own), _level(b * amount + own)
    elif kind == 3:  # hue
        value, least = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
        spread = value - least
        red = r == value
        green = (g == value) & (r != value)
        angle = tl.where(red, g - b, tl.where(green, b - r, r - g)) / tl.maximum(spread, 1e-12)
        sixths = angle + tl.where(red, 0.0, tl.where(green, 2.0, 4.0)) + amount
        r = _channel(sixths, 5.0, value, spread)
        g = _channel(sixths, 3.0, value, spread)
        b = _channel(sixths, 1.0, value, spread)
    return r, g, b


@triton.jit
@no_type_check
def jitter_kernel(crops, table, made, pixels, BLOCK: tl.constexpr):
    """One program a crop: [3, pixels] of uint8 to the same, read twice where the contrast changes."""
    crop = tl.program_id(0)
    row = table + crop * _COLUMNS
    at = crop.to(tl.int64) * 3 * pixels
    contrast_turn = tl.load(row + _CONTRAST_TURN).to(tl.int32)
    mean = tl.full((), 0.0, tl.float32)
    if contrast_turn < 4:
        # the mean grey of the crop as the operations before the contrast leave it: whole numbers, added exactly
        total = tl.zeros([BLOCK], dtype=tl.int32)
        for start in range(0, pixels, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < pixels
            r = tl.load(crops + at + place, mask=inside, other=0).to(tl.float32)
            g = tl.load(crops + at + pixels + place, mask=inside, other=0).to(tl.float32)
            b = tl.load(crops + at + 2 * pixels + place, mask=inside, other=0).to(tl.float32)
            for turn in range(0, contrast_turn):
                r, g, b = _turn(r, g, b, row, turn, 0.0)
            total += tl.where(inside, _luminance(r, g, b), 0.0).to(tl.int32)
        mean = tl.floor(tl.sum(total, axis=0).to(tl.float32) / pixels + 0.5)
    grey = tl.load(row + _GREY)
    for start in range(0, pixels, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < pixels
        r = tl.load(crops + at + place, mask=inside, other=0).to(tl.float32)
        g = tl.load(crops + at + pixels + place, mask=inside, other=0).to(tl.float32)
        b = tl.load(crops + at + 2 * pixels + place, mask=inside, other=0).to(tl.float32)
        for turn in range(0, 4):
            r, g, b = _turn(r, g, b, row, turn, mean)
        if grey > 0.0:
            r = _luminance(r, g, b)
            g = r
            b = r
        tl.store(made + at + place, r.to(tl.uint8), mask=inside)
        tl.store(made + at + pixels + place, g.to(tl.uint8), mask=inside)
        tl.store(made + at + 2 * pixels + place, b.to(tl.uint8), mask=inside)


@triton.jit
@no_type_check
def blur_x_kernel(crops, table, made, values, width, BLOCK: tl.constexpr):
    """One program a block of a crop's values [3, h, w]: uint8 to float32 blurred along x. Crops without blur are left out."""
    crop = tl.program_id(0)
    row = table + crop * _COLUMNS
    radius = tl.load(row + _RADIUS).to(tl.int32)
    if radius > 0:
        at = crop.to(tl.int64) * values
        place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = place < values
        column = place % width
        line = at + place - column
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for tap in range(0, 2 * radius + 1):
            beside = tl.minimum(tl.maximum(column + tap - radius, 0), width - 1)
            total += tl.load(crops + line + beside, mask=inside, other=0).to(tl.float32) * tl.load(row + _TAPS + tap)
        tl.store(made + at + place, total, mask=inside)


@triton.jit
@no_type_check
def blur_y_kernel(crops, blurred, table, made, values, width, height, f0, f1, f2, s0, s1, s2, BLOCK: tl.constexpr):
    """The same along y, of `blurred`, or of `crops` where there is no blur; then solarised and normalised: float32."""
    crop = tl.program_id(0)
    row = table + crop * _COLUMNS
    radius = tl.load(row + _RADIUS).to(tl.int32)
    at = crop.to(tl.int64) * values
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < values
    pixels = width * height
    channel = place // pixels
    value = tl.zeros([BLOCK], dtype=tl.float32)
    if radius > 0:
        column = place % width
        line = (place // width) % height
        plane = at + channel * pixels + column
        for tap in range(0, 2 * radius + 1):
            beside = tl.minimum(tl.maximum(line + tap - radius, 0), height - 1)
            value += tl.load(blurred + plane + beside * width, mask=inside, other=0.0) * tl.load(row + _TAPS + tap)
        value = (value + TO_WHOLE) - TO_WHOLE
    else:
        value = tl.load(crops + at + place, mask=inside, other=0).to(tl.float32)
    if tl.load(row + _SOLARIZE) > 0.0:
        value = tl.where(value >= 128.0, 255.0 - value, value)
    factor = tl.where(channel == 0, f0, tl.where(channel == 1, f1, f2))
    shift = tl.where(channel == 0, s0, tl.where(channel == 1, s1, s2))
    tl.store(made + at + place, shift + value * factor, mask=inside)


def launch_jitter(crops: UInt8[Tensor, "x 3 h w"], table: Float[Tensor, "x columns"]) -> UInt8[Tensor, "x 3 h w"]:
    made = torch.empty_like(crops)
    jitter_kernel[(len(crops),)](crops, table, made, crops[0, 0].numel(), BLOCK=BLOCK, **OPTIONS)
    return made


def launch_blur_x(crops: UInt8[Tensor, "x 3 h w"], table: Float[Tensor, "x columns"]) -> Float[Tensor, "x 3 h w"]:
    made = torch.empty_like(crops, dtype=torch.float32)
    values = crops[0].numel()
    blur_x_kernel[(len(crops), triton.cdiv(values, BLOCK))](crops, table, made, values, crops.shape[3], BLOCK=BLOCK, **OPTIONS)
    return made


def launch_blur_y(
    crops: UInt8[Tensor, "x 3 h w"],
    blurred: Float[Tensor, "x 3 h w"],
    table: Float[Tensor, "x columns"],
    factor: Sequence[float],
    shift: Sequence[float],
) -> Float[Tensor, "x 3 h w"]:
    made = torch.empty_like(blurred)
    values, (height, width) = crops[0].numel(), crops.shape[2:]
    blur_y_kernel[(len(crops), triton.cdiv(values, BLOCK))](
        crops, blurred, table, made, values, width, height, *factor, *shift, BLOCK=BLOCK, **OPTIONS
    )
    return made


def _operator(launch: Callable[..., Tensor], made_as: Callable[..., Tensor], name: str, schema: str) -> Any:
    """The launch as an operator of torch, which tools that watch or pretend a device can see; on a GPU only."""
    operator = torch.library.custom_op(f"ibot::{name}", launch, mutates_args=(), device_types="cuda", schema=schema)
    operator.register_fake(made_as)
    return operator


jitter = _operator(
    launch_jitter, lambda crops, table: torch.empty_like(crops), "jitter", "(Tensor crops, Tensor table) -> Tensor"
)
blur_x = _operator(
    launch_blur_x,
    lambda crops, table: torch.empty_like(crops, dtype=torch.float32),
    "blur_x",
    "(Tensor crops, Tensor table) -> Tensor",
)
blur_y = _operator(
    launch_blur_y,
    lambda crops, blurred, table, factor, shift: torch.empty_like(blurred),
    "blur_y",
    "(Tensor crops, Tensor blurred, Tensor table, float[] factor, float[] shift) -> Tensor",
)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """What levels of 255 are multiplied by, and what is then added, for each channel."""
    return [1 / (255 * one) for one in std], [-one / other for one, other in zip(mean, std, strict=True)]


def change(
    crops: UInt8[Tensor, "x 3 h w"], table: Float[Tensor, "x columns"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "x 3 h w"]:
    """Crops with their colours changed by the rows of the table (`color_table.table`), normalised."""
    jittered = jitter(crops, table)
    factor, shift = normalisation(mean, std)
    return blur_y(jittered, blur_x(jittered, table), table, factor, shift)


TRIED, TRIED_SIZE = 24, 40
"""Crops of a trial, and pixels of their sides."""
MOST_APART, MOST_OTHERS = 8.0, 0.01
"""Levels of 255 that a value of the trial may be away from the definition's (a rounding before the hue turns), and the share of
values that may be away at all."""


def trial(device: torch.device) -> None:
    """Compile the kernels and compare them with their definition on drawn crops. Raises RuntimeError where they differ."""
    generator = np.random.default_rng(0)
    view = augment.View(TRIED_SIZE, (0.3, 1.0), 0.5, 0.3)
    draws = augment.flat(augment.draw(generator, view, 1, TRIED))
    crops = torch.from_numpy(generator.integers(0, 256, (TRIED, 3, TRIED_SIZE, TRIED_SIZE), dtype=np.uint8)).to(device)
    table = color_table.table(draws).to(device)
    ours = change(crops, table, (0.0,) * 3, (1 / 255,) * 3)
    apart = (ours - augment.change(crops, draws, (0.0,) * 3, (1 / 255,) * 3)).abs()
    most, others = float(apart.max()), float((apart > 0.5).float().mean())
    if not (most <= MOST_APART and others <= MOST_OTHERS):
        raise RuntimeError(
            f"they are up to {most:.1f} levels of 255 away from what they should be, {100 * others:.1f} % of values"
        )
