"""A plain ViT as a feature pyramid: a backbone for MMDetection and MMSegmentation that needs PyTorch and MMEngine alone.

Four blocks are tapped; their patch tokens become maps of stride 4, 8, 16 and 32 for patches of 16 (or stay on their grid, for a
linear head). Written beside a model by iBOT's `transfer.predict.export`; a config finds it by `custom_imports`.

b images, t tokens ([CLS] first), d width, gh gw patches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

OFFSET = 0.1
"""Added to a grid's sides before position embeddings are resized by their quotient, as in the original iBOT and DINO."""


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    """Patches to tokens."""

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)


class ViT(nn.Module):
    """The transformer; position embeddings of one grid are resized to the image's."""

    def __init__(
        self, channels: int, patch_size: int, width: int, depth: int, heads: int, grid: Sequence[int], *, norm: bool
    ) -> None:
        super().__init__()
        self.grid = (grid[0], grid[1])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], width))
        self.patch_embed = Embedding(channels, width, patch_size)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens [b, t, d] that enter the first block, and the grid of patches."""
        patches = self.patch_embed.proj(images)
        rows, columns = patches.shape[-2:]
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return tokens + self.position(rows, columns), (rows, columns)

    def position(self, rows: int, columns: int) -> Tensor:
        """Position embeddings [1, t, d] of a grid: bicubic."""
        if (rows, columns) == self.grid:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, self.grid).permute(0, 3, 1, 2)
        factors = ((rows + OFFSET) / self.grid[0], (columns + OFFSET) / self.grid[1])
        resized = F.interpolate(grid, scale_factor=factors, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


class Levels(nn.Module):
    """Maps of four taps at four times, twice, once and half their resolution; of patches of 8 at twice, once, half, a quarter."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        up = nn.Sequential(nn.ConvTranspose2d(width, width, 2, 2))
        twice = [nn.ConvTranspose2d(width, width, 2, 2), nn.BatchNorm2d(width), nn.GELU(), nn.ConvTranspose2d(width, width, 2, 2)]
        if patch_size > 8:
            parts = [nn.Sequential(*twice), up, nn.Identity(), nn.MaxPool2d(2, 2)]
        else:
            parts = [up, nn.Identity(), nn.MaxPool2d(2, 2), nn.MaxPool2d(4, 4)]
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = parts

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [level(one) for level, one in zip((self.fpn1, self.fpn2, self.fpn3, self.fpn4), maps, strict=True)]


@MODELS.register_module(force=True)
class ViTPyramid(nn.Module):
    """Four maps of a ViT, finest first. `norm`: each tap goes through the final norm. `levels` false: all on one grid."""

    def __init__(
        self,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        taps: Sequence[int],
        grid: Sequence[int],
        norm: bool,
        levels: bool = True,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.patch_size, self.taps = patch_size, tuple(taps)
        self.net = ViT(channels, patch_size, width, depth, heads, grid, norm=norm)
        self.levels = Levels(width, patch_size) if levels else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images are padded with zeros on the right and below until patches divide them."""
        side = self.patch_size
        x, grid = self.net.embed(F.pad(images, (0, -images.shape[-1] % side, 0, -images.shape[-2] % side)))
        maps = []
        for number, block in enumerate(self.net.blocks):
            x = block(x)
            if number in self.taps:
                maps.append(self.net.norm(x)[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous())
        return tuple(maps if self.levels is None else self.levels(maps))
