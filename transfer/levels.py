"""From the tokens of a ViT to maps at strides of 4, 8, 16 and 32 pixels. b images, d width, gh gw tokens."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from checkpoints.cli import UserError

STRIDES = (4, 8, 16, 32)
"""Pixels of a token's side in the four maps, which anchors and RoIAlign of the configs expect."""


class Levels(nn.Module):
    """Tokens of four blocks on one grid -> maps at four times, twice, once and half its resolution (patch 16).

    Patches of 8 have twice the grid, so that theirs are twice, once, half and a quarter. The original's names.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        up = nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2))
        if patch_size > 8:
            twice_up = [nn.ConvTranspose2d(width, width, 2, 2), nn.SyncBatchNorm(width), nn.GELU()]
            self.fpn1 = nn.Sequential(*twice_up, nn.ConvTranspose2d(width, width, 2, 2))
            self.fpn2, self.fpn3, self.fpn4 = up, nn.Identity(), nn.MaxPool2d(2, 2)
        else:
            self.fpn1, self.fpn2 = up, nn.Identity()  # type: ignore[assignment]
            self.fpn3, self.fpn4 = nn.MaxPool2d(2, 2), nn.MaxPool2d(4, 4)  # type: ignore[assignment]

    def forward(self, maps: Sequence[Float[Tensor, "b d gh gw"]]) -> list[Float[Tensor, "b d _ _"]]:
        return [level(one) for level, one in zip((self.fpn1, self.fpn2, self.fpn3, self.fpn4), maps, strict=True)]


def grid_stride(patch_size: int) -> int:
    """The stride that tokens of a ViT are resized to: 8 for patches of up to 8 pixels, else 16."""
    return 8 if patch_size <= 8 else 16


def resized_tokens(tokens: Float[Tensor, "b d gh gw"], factor: float) -> Float[Tensor, "b d _ _"]:
    """Bilinear, token centres where the pixels are: a token of the result covers 1 / factor of the given ones' sides."""
    if factor == 1:
        return tokens
    return F.interpolate(tokens, scale_factor=factor, mode="bilinear", align_corners=False, recompute_scale_factor=False)


def padded(images: Float[Tensor, "b c h w"], *multiples: int) -> Float[Tensor, "b c _ _"]:
    """Images with zeros on the right and below until these divide their sides, one after the other."""
    for multiple in multiples:
        images = F.pad(images, (0, -images.shape[-1] % multiple, 0, -images.shape[-2] % multiple))
    return images


def cropped(found: Float[Tensor, "b d _ _"], size: Sequence[int], stride: int) -> Float[Tensor, "b d _ _"]:
    """The tokens of a map that lie on an image of that size (height, width)."""
    height, width = (math.ceil(side / stride) for side in size)
    return found[..., :height, :width].contiguous()


def taps_of(depth: int) -> list[int]:
    """After which blocks a ViT is tapped: 4, 6, 8, 12 of 12 (0-based 3, 5, 7, 11), in proportion for other depths."""
    taps = [round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]
    if len(set(taps)) < 4 or taps[0] < 0:
        raise UserError(f"a pyramid taps four blocks, this ViT has {depth}: give --neck simple, which needs the last alone")
    return taps
