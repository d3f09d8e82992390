"""A timm ViT as images (and masks) to tokens, position embeddings resized the original's way.

b images, c channels, h w pixels, gh gw patches, t = 1 + gh * gw tokens, d width.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from checkpoints.architecture import Architecture
from pretrain.models import drop_path as stochastic_depth
from pretrain.models import packed_blocks
from pretrain.models.compiling import CompiledBlock
from pretrain.models.drop_path import Group
from pretrain.models.init import initialise_linear_, whiten_
from pretrain.models.packed_blocks import PackedBlock, stream

POSITION_OFFSET = 0.1
"""Added to a grid's side before it is divided by the stored side: the original's guard against rounding, part of its numbers."""


def of_size(
    positions: Float[Tensor, "1 t d"], rows: int, columns: int, *, grid: tuple[int, int] | None = None
) -> Float[Tensor, "1 _ d"]:
    """Position embeddings ([CLS] first, then a `grid`, square if None) for one that is to be trained: bicubic, by size.

    So the original begins fine-tuning at another input size and its dense tasks. `ViT.position` is its rule in the forward.
    """
    cls_position, patch_position = positions[:, :1], positions[:, 1:]
    side = math.isqrt(patch_position.shape[1])
    grid = grid or (side, side)
    if (rows, columns) == grid:
        return positions
    resized = patch_position.unflatten(1, grid).permute(0, 3, 1, 2)
    resized = F.interpolate(resized.float(), size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([cls_position, resized.flatten(2).transpose(1, 2).to(cls_position.dtype)], dim=1)


class ViT(VisionTransformer):
    """timm's ViT with a mask token; its weights carry the original's names.

    `maskable` adds the parameter `masked_embed` [1, d] that stands for masked patches (the student has it, the
    teacher does not). `drop_path` is the last block's rate, rising linearly from zero. `checkpointed` computes each block again
    in the backward in place of keeping what is inside it. `fused` is one attention kernel in place of two matrix products and a
    softmax: faster on GPUs, several times slower on CPUs in bf16 (docs/performance.md).
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(
        self, shape: Architecture, *, maskable: bool, drop_path: float = 0.0, fused: bool = True, checkpointed: bool = False
    ) -> None:
        super().__init__(
            img_size=shape.image_size,
            patch_size=shape.patch_size,
            in_chans=shape.channels,
            num_classes=0,
            embed_dim=shape.embed_dim,
            depth=shape.depth,
            num_heads=shape.num_heads,
            drop_path_rate=drop_path,
            dynamic_img_size=True,
            weight_init="skip",
            block_fn=PackedBlock,
        )
        self.shape, self.checkpointed, self.recompute_activations, self.fused = shape, checkpointed, True, fused
        self.residual: torch.dtype | None = None
        """In what the blocks' sums are kept while the network trains under autocast; None: as the embedding gives them."""
        self.compiled: CompiledBlock | None = None
        """What computes a block while it trains, where blocks are compiled."""
        self.kernels: Any = None
        """What computes all blocks while the network trains in 16 bits on a GPU, where that was asked for (`fused_blocks`)."""
        self.grid: tuple[int, int] = (self.patch_embed.grid_size[0],) * 2
        block: Any
        for block in self.blocks:
            block.attn.fused_attn = fused
        if maskable:
            self.masked_embed = nn.Parameter(torch.zeros(1, shape.embed_dim))
        self._initialise()

    def _initialise(self) -> None:
        """The original's initialisation: position and class tokens truncated normal 0.02, the convolution torch's default."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        initialise_linear_(self, self.shape.init)
        if self.shape.init == "whiten":
            whiten_(self.patch_embed.proj)

    def compile_blocks(self) -> None:
        """From now on blocks run compiled while they train."""
        self.compiled = CompiledBlock(packed_blocks.run)

    def leave_uncompiled(self) -> None:
        """Undo `compile_blocks`."""
        self.compiled = None

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b gh gw"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Tokens after the final norm, [CLS] first. Patches where `mask` is true are replaced before position is added."""
        return self.forward_multi([(images, mask)])[0]

    def forward_multi(self, groups: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """`forward` for crops of several sizes in one pass, (images, mask) each: tokens are packed without padding."""
        x, sizes = self._packed(groups)
        parts = self._through(x, sizes).split([size.images * size.tokens for size in sizes])
        return [part.unflatten(0, size) for part, size in zip(parts, sizes, strict=True)]

    def forward_rows(
        self, groups: Sequence[tuple[Tensor, Tensor | None]], rows_of: Callable[[Sequence[Group]], Tensor]
    ) -> Float[Tensor, "r d"]:
        """Some rows of the packed tokens of `forward_multi`, the last block computed for no others.

        `rows_of` gives them, `[r]` on the device, for the sizes of the groups.
        """
        x, sizes = self._packed(groups)
        return self._through(x, sizes, rows_of(sizes))

    def _packed(self, groups: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Float[Tensor, "x d"], tuple[Group, ...]]:
        """Tokens that enter the first block, one group after the other, and the groups' sizes."""
        embedded = [self.embed(images, mask) for images, mask in groups]
        kind = self.residual if self.training else None
        x = torch.cat([stream(x.flatten(0, 1), kind) for x in embedded])
        return x, tuple(Group(len(x), x.shape[1]) for x in embedded)

    def _through(self, x: Tensor, sizes: tuple[Group, ...], rows: Tensor | None = None) -> Float[Tensor, "_ d"]:
        """Packed tokens through all blocks and the final norm; with `rows`, the last block computes only those."""
        device = x.device.type
        if self.kernels is not None and self.training and torch.is_autocast_enabled(device):
            images, kind = [size.images for size in sizes], torch.get_autocast_dtype(device)
            factors = stochastic_depth.drawn_factors(list(self.blocks), images, x.device, training=True)
            return self.kernels.through(list(self.blocks), self.norm, x, sizes, factors, rows, kind, recompute=self.checkpointed)
        depths = list(self._depths(sizes, x.device))
        whole = self.blocks if rows is None else self.blocks[:-1]
        for block, depth in zip(whole, depths, strict=False):
            x = self._block(block, x, sizes, depth)
        if rows is not None:
            last = depths[-1]
            if isinstance(last, stochastic_depth.Kept):
                last = stochastic_depth.factors([last], sum(size.images for size in sizes), x.device)[0]
            x = packed_blocks.run_rows(self.blocks[-1], x, sizes, rows, last, self.recompute_activations)
        return self.norm(x)

    def _depths(self, sizes: Sequence[Group], device: torch.device) -> Sequence[Any]:
        """Stochastic depth of each block for this forward (`drop_path.depths`)."""
        images, factors = [size.images for size in sizes], self.compiled is not None
        return stochastic_depth.depths(list(self.blocks), images, device, training=self.training, as_factors=factors)

    def _block(self, block: nn.Module, x: Tensor, sizes: Sequence[Group], depth: Any) -> Tensor:
        """One block, compiled where it trains (`compiled`), its inside kept for the backward unless `checkpointed`."""
        compiled = self.compiled if self.training else None
        run: Callable[..., Tensor] = partial(compiled, block) if compiled else block  # with its hooks, where it is sharded
        arguments = (x, sizes, depth, self.recompute_activations and compiled is None)
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(run, *arguments, use_reentrant=False)
        return run(*arguments)

    def embed(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images -> tokens [b, t, d] that enter the first block."""
        patches = self.patch_embed.proj(images)
        grid = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        if mask is not None:
            patches = torch.where(mask.flatten(1)[..., None], self.masked_embed.to(patches.dtype), patches)
        cls_token = self.cls_token.expand(len(images), -1, -1).to(patches.dtype)
        return torch.cat([cls_token, patches], dim=1) + self.position(*grid)

    def position(self, rows: int, columns: int) -> Float[Tensor, "1 t d"]:
        """Position embeddings of a grid: bicubic without antialiasing, by scale factor (see POSITION_OFFSET)."""
        if (rows, columns) == self.grid:
            return self.pos_embed
        cls_position, patch_position = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = patch_position.unflatten(1, self.grid).permute(0, 3, 1, 2)
        factors = ((rows + POSITION_OFFSET) / self.grid[0], (columns + POSITION_OFFSET) / self.grid[1])
        grid = F.interpolate(grid.float(), scale_factor=factors, mode="bicubic")
        assert grid.shape[-2:] == (rows, columns)
        return torch.cat([cls_position, grid.flatten(2).transpose(1, 2).to(cls_position.dtype)], dim=1)

    def train_grid(self, rows: int, columns: int) -> None:
        """Make the parameter one of another grid, which need not be square: resized by size, once (`of_size`)."""
        resized = of_size(self.pos_embed.detach(), rows, columns, grid=self.grid).clone()
        self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        self.grid = (rows, columns)

    def last_blocks(self, images: Float[Tensor, "b c h w"], count: int) -> list[Float[Tensor, "b t d"]]:
        """Tokens after each of the last `count` blocks, each through the final norm, the very last one last."""
        x, outputs = self.embed(images), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index >= len(self.blocks) - count:
                outputs.append(self.norm(x))
        return outputs

    def last_patches_before_norm(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Patch tokens of the last block without the final norm."""
        return self.blocks[-1](self._before_last(images))[:, 1:]

    def get_last_selfattention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads t t"]:
        """Attention weights of the last block."""
        return self._attention(self._before_last(images))

    def raw_patches(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
        """Patch tokens of the last block without the final norm, and its [CLS] attention to each (mean over the heads)."""
        x = self._before_last(images)
        return self.blocks[-1](x)[:, 1:], self._attention(x)[:, :, 0, 1:].mean(dim=1)

    def _before_last(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def _attention(self, x: Tensor) -> Tensor:
        last: Any = self.blocks[-1]
        attention, x = last.attn, last.norm1(x)
        q, k, _ = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(-2, -1) * attention.scale).softmax(dim=-1)
