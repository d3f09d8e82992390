"""The encoder of DALL-E's discrete VAE (arXiv 2102.12092) as a tokenizer of 8192 codes: BEiT's targets, and Table 20's.

x crops, h w pixels, gh gw patches, k codes. Layers and names are those of the published source, written anew.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from checkpoints import checked
from checkpoints.cli import UserError
from checkpoints.resolve import loaded_strictly
from pretrain.tokenizers.base import Tokenizer
from pretrain.tokenizers.dalle_pickle import read

WIDTHS = (1, 2, 4, 8)
"""Widths of the four groups, in multiples of the first convolution's. The grid is halved after each but the last."""
STRIDE = 2 ** (len(WIDTHS) - 1)
MOST_BLOCKS = 64
"""Largest number of blocks in a group; the published encoder has two."""
MARGIN = 0.1
"""Part of the range from 0 to 1 left free at both ends, as in the encoder's training."""


class Convolution(nn.Module):
    """Convolution with bias and zero padding, its parameters under the published names."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.zeros(outputs, inputs, side, side)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "x _ h w"]) -> Float[Tensor, "x _ h w"]:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """A residual of four convolutions, a quarter as wide inside, scaled by `gain`."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        inner = outputs // 4
        sizes = {
            "conv_1": (inputs, inner, 3),
            "conv_2": (inner, inner, 3),
            "conv_3": (inner, inner, 3),
            "conv_4": (inner, outputs, 1),
        }
        self.gain = gain
        self.id_path = nn.Identity() if inputs == outputs else Convolution(inputs, outputs, 1)
        self.res_path = nn.ModuleDict({name: Convolution(*size) for name, size in sizes.items()})

    def forward(self, x: Float[Tensor, "x _ h w"]) -> Float[Tensor, "x _ h w"]:
        residual = x
        for convolution in self.res_path.values():
            residual = convolution(F.relu(residual))
        return self.id_path(x) + self.gain * residual


class Encoder(nn.Module):
    """Pixels [x, c, 8 gh, 8 gw] in MARGIN..1 - MARGIN -> logits [x, k, gh, gw]."""

    def __init__(self, *, channels: int, width: int, depth: int, vocabulary: int) -> None:
        """`width` of the first convolution, `depth` blocks a group."""
        super().__init__()
        gain = 1 / (len(WIDTHS) * depth) ** 2
        parts: dict[str, nn.Module] = {"input": Convolution(channels, width, 7)}
        inputs = width
        for number, times in enumerate(WIDTHS, 1):
            into = [inputs, *[times * width] * (depth - 1)]
            blocks = {f"block_{place}": Block(size, times * width, gain) for place, size in enumerate(into, 1)}
            parts[f"group_{number}"], inputs = nn.ModuleDict(blocks), times * width
        parts["output"] = nn.ModuleDict({"conv": Convolution(inputs, vocabulary, 1)})
        self.blocks = nn.ModuleDict(parts)

    def forward(self, pixels: Float[Tensor, "x c h w"]) -> Float[Tensor, "x k gh gw"]:
        parts: Any = self.blocks
        x = parts["input"](pixels)
        for number in range(1, len(WIDTHS) + 1):
            for block in parts[f"group_{number}"].values():
                x = block(x)
            x = F.max_pool2d(x, 2) if number < len(WIDTHS) else x
        return parts["output"]["conv"](F.relu(x))


class Dalle(Tokenizer):
    """The code with the highest logit at each place.

    Crops are brought to 8 pixels a patch (112 for a grid of 14, as in BEiT) by the bicubic filter with antialiasing, which is
    Pillow's. A departure: BEiT cuts its second picture from the image itself, with Pillow's Lanczos filter, and computes in
    half precision on a GPU.
    """

    def __init__(self, encoder: Encoder, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        weights: Any = encoder.blocks
        self.encoder, self.vocabulary = encoder.eval().requires_grad_(False), len(weights["output"]["conv"].w)

    def check(self, height: int, width: int, grid: tuple[int, int]) -> None:
        """Any crop has codes on any grid."""

    def encode(self, crops: Float[Tensor, "x c h w"], grid: tuple[int, int]) -> Int[Tensor, "x gh gw"]:
        size = [STRIDE * grid[0], STRIDE * grid[1]]
        pixels = F.interpolate(self.pixels(crops), size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.encoder((1 - 2 * MARGIN) * pixels + MARGIN).argmax(dim=1)


def open_dalle(path: Path, mean: Sequence[float], std: Sequence[float]) -> Dalle:
    """The encoder of the published file, or of one that `dalle_pickle.save` wrote. Raises UserError for other files."""
    weights = read(path)
    encoder = encoder_of(weights, path)
    channels = weights["blocks.input.w"].shape[1]
    if channels != len(mean):
        raise UserError(f"{path} takes images of {channels} channels, not {len(mean)}: use another tokenizer, such as colour")
    return Dalle(encoder, mean, std)


def encoder_of(weights: Mapping[str, Tensor], path: Path) -> Encoder:
    """The network whose sizes these weights have, strictly loaded."""
    first, last = weights.get("blocks.input.w"), weights.get("blocks.output.conv.w")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4 or first.shape[0] % 4:
        raise UserError(f"{path} is no encoder of DALL-E: its weights are {', '.join(list(weights)[:3]) or 'none'}")
    depth = len({name.split(".", 3)[2] for name in weights if name.startswith("blocks.group_1.")})
    checked.network(weights, str(path))
    checked.count(depth, f"{path}: blocks of a group", 1, MOST_BLOCKS)
    build = partial(Encoder, channels=first.shape[1], width=first.shape[0], depth=depth, vocabulary=len(last))
    return loaded_strictly(build, dict(weights), path)
