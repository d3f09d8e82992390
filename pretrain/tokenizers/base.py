"""Tokenizer interface: crops to one integer code for each patch, the target of a masked patch.

x crops, c channels, h w pixels, gh gw patches. Codes are those of the unmasked crop; tokenizers are not trained here.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from checkpoints.cli import UserError

PIECE = 64
"""Crops at a time, so that memory does not grow with the batch."""
BITS = 3
"""Bits of each channel's mean colour (masked patch prediction of the original ViT, its appendix B.1.2)."""
MOST_CHANNELS = 4
"""That `colour` takes: 4096 codes; a fifth would make 32768."""


class Tokenizer(nn.Module, ABC):
    """Crops -> codes from 0 to `vocabulary` - 1. `mean` and `std` are what the crops have been normalised by."""

    vocabulary: int
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(tuple(values), dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, crops: Float[Tensor, "x c h w"], grid: tuple[int, int]) -> Int[Tensor, "x gh gw"]:
        """Codes, computed in float32 under any autocast, without gradients, on the crops' device and without waiting for it.

        Raises UserError where crops of this size do not have this grid (see `check`).
        """
        self.check(crops.shape[2], crops.shape[3], grid)
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            return torch.cat([self.encode(piece.float(), grid) for piece in crops.split(PIECE)])

    @abstractmethod
    def encode(self, crops: Float[Tensor, "x c h w"], grid: tuple[int, int]) -> Int[Tensor, "x gh gw"]:
        """The codes of a few crops."""

    def check(self, height: int, width: int, grid: tuple[int, int]) -> None:
        """Raise UserError where crops of so many pixels cannot be given codes on this grid: call it before the first step."""
        if height % grid[0] or width % grid[1]:
            raise UserError(f"crops of {height} x {width} pixels do not divide into a grid of {grid[0]} x {grid[1]} patches")

    def pixels(self, crops: Float[Tensor, "x c h w"]) -> Float[Tensor, "x c h w"]:
        """Values from 0 to 1, as before they were normalised."""
        return (crops * self.std + self.mean).clamp(0, 1)


class Colour(Tokenizer):
    """Each channel's mean over the patch in 3 bits, the first channel's the highest: 512 codes for RGB."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        if len(mean) > MOST_CHANNELS:
            raise UserError(f"tokenizer colour has 8 codes a channel, too many for {len(mean)} channels: use kmeans:FILE")
        self.vocabulary = 2 ** (BITS * len(mean))

    def encode(self, crops: Float[Tensor, "x c h w"], grid: tuple[int, int]) -> Int[Tensor, "x gh gw"]:
        rows, columns = crops.shape[2] // grid[0], crops.shape[3] // grid[1]
        patches = self.pixels(crops).unflatten(3, (grid[1], columns)).unflatten(2, (grid[0], rows))
        levels = (patches.mean(dim=(3, 5)) * 2**BITS).long().clamp(max=2**BITS - 1)
        code = torch.zeros_like(levels[:, 0])
        for channel in levels.unbind(dim=1):
            code = code * 2**BITS + channel
        return code
