"""timm's Swin as images (and masks) to tokens, windows padded and shifted in the original's order.

The original pads a grid that the window does not divide before it shifts, timm after. The mean of the last stage's tokens stands
for [CLS]; masks are drawn on the last stage's grid.

b images, h w patches of a stage, c its width, n windows, a patches of a window, d width of the last stage, t = 1 + last patches.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from checkpoints import layouts
from checkpoints.architecture import Architecture
from pretrain.models import drop_path as stochastic_depth
from pretrain.models.compiling import CompiledBlock
from pretrain.models.drop_path import Group, Kept, add_branches
from pretrain.models.init import initialise_linear_, whiten_
from pretrain.models.packed_blocks import mlp, recompute, stream

EPSILON = 1e-6
"""Epsilon of the norms, as in the original; timm's Swin has 1e-5."""
Count = int | torch.SymInt
"""A number that is not known yet while a graph is made."""
APART = -100.0
"""Added to the attention between patches that only a shift has brought into one window: the original's number."""


class WindowBlock(SwinTransformerBlock):
    """timm's block, computed in the original's order."""

    def forward(
        self, x: Float[Tensor, "b h w c"], depth: Kept | Float[Tensor, "2 b"] | None = None, recompute_activations: bool = True
    ) -> Float[Tensor, "b h w c"]:
        """`depth`: stochastic depth, see `packed_blocks.run`."""
        return run(self, x, depth, recompute_activations)


def run(
    block: Any, x: Float[Tensor, "b h w c"], depth: Kept | Float[Tensor, "2 b"] | None = None, recompute_activations: bool = True
) -> Float[Tensor, "b h w c"]:
    """One block, like `packed_blocks.run`."""

    def attention_branch(some: Tensor, kept: Sequence[Group]) -> Tensor:
        return windows(block, block.norm1(some), recompute_activations=recompute_activations)

    def mlp_branch(some: Tensor, kept: Sequence[Group]) -> Tensor:
        return mlp(block.mlp, block.norm2(some), recompute_activations=recompute_activations)

    # whole images are kept or dropped; while a graph is exported their number is a symbol, and nothing is dropped
    whole = [Group(len(x), 1)] if isinstance(depth, Kept) else []
    return add_branches(x, (attention_branch, mlp_branch), depth, whole, per_image)


def per_image(factor: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """A factor per image in the shape of patches."""
    return factor[:, None, None, None]


def windows(block: Any, x: Float[Tensor, "b h w c"], *, recompute_activations: bool) -> Float[Tensor, "b h w c"]:
    """Attention within windows: pad, shift, cut, attend, and all of it back."""
    (rows, columns), (side, _), (shift, _) = x.shape[1:3], block.window_size, block.shift_size
    down, across = (rows + side - 1) // side, (columns + side - 1) // side  # windows
    x = F.pad(x, (0, 0, 0, across * side - columns, 0, down * side - rows))
    apart = None
    if shift:  # while a graph is made of it, sizes are not numbers yet
        x = torch.roll(x, (-shift, -shift), dims=(1, 2))
        apart = (shifted_apart if torch.compiler.is_compiling() else _remembered)(down, across, side, shift, x.device)
    cut = window_partition(x, (side, side)).reshape(x.shape[0], down * across, side * side, x.shape[-1])
    x = _attend(block.attn, cut, apart, recompute_activations=recompute_activations)
    x = window_reverse(x.reshape(-1, side, side, x.shape[-1]), (side, side), down * side, across * side)
    if shift:
        x = torch.roll(x, (shift, shift), dims=(1, 2))
    return x[:, :rows, :columns]


def _attend(
    layer: Any, x: Float[Tensor, "b n a c"], apart: Float[Tensor, "n a a"] | None, *, recompute_activations: bool
) -> Float[Tensor, "b n a c"]:
    """timm's WindowAttention; the weights are computed again in the backward."""

    def mix(qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, layer.num_heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)
        weights = (q * layer.scale) @ k.transpose(-2, -1) + layer._get_rel_pos_bias()
        if apart is not None:
            weights = weights + apart[:, None]
        return (weights.softmax(dim=-1).to(v.dtype) @ v).transpose(2, 3).flatten(3)

    return layer.proj(recompute(mix, layer.qkv(x), recompute_activations))


def shifted_apart(down: Count, across: Count, side: int, shift: int, device: torch.device) -> Float[Tensor, "n a a"]:
    """Attention mask of shifted windows: 0, or APART between patches that only the shift by `shift` brought together."""
    rows, columns = (_stretch(windows * side, side, shift) for windows in (down, across))
    part = window_partition((3 * rows[:, None] + columns)[None, :, :, None], (side, side)).flatten(1)
    return torch.where(part[:, None] == part[:, :, None], 0.0, APART).to(device)


def _stretch(length: Count, side: int, shift: int) -> Float[Tensor, " length"]:
    """Region of each position along one axis after the shift: 0 before the last window, then 1, and 2 for the wrapped part."""
    place = torch.arange(length)
    return (place >= length - side).float() + (place >= length - shift).float()


@lru_cache(maxsize=64)
def _remembered(down: int, across: int, side: int, shift: int, device: torch.device) -> Float[Tensor, "n a a"]:
    with torch.inference_mode(False):  # an inference tensor in the cache could not be trained with
        return shifted_apart(down, across, side, shift, device)


class Swin(SwinTransformer):
    """timm's Swin with a mask token; its weights carry timm's names. The arguments are those of `pretrain.models.vit.ViT`."""

    def __init__(
        self, shape: Architecture, *, maskable: bool, drop_path: float = 0.0, fused: bool = True, checkpointed: bool = False
    ) -> None:
        stages = layouts.swin_stages(shape._asdict())
        width = stages.widths[0]
        super().__init__(
            img_size=shape.image_size,
            patch_size=shape.patch_size,
            in_chans=shape.channels,
            num_classes=0,
            embed_dim=width,
            depths=shape.depths,
            num_heads=stages.heads,
            window_size=shape.window,
            norm_layer=partial(nn.LayerNorm, eps=EPSILON),  # type: ignore[arg-type]
            drop_path_rate=drop_path,
            strict_img_size=False,
            weight_init="skip",
        )
        self.head = nn.Identity()  # type: ignore[assignment]
        self.shape, self.checkpointed, self.recompute_activations, self.fused = shape, checkpointed, True, False
        self.residual: torch.dtype | None = None
        """As `ViT.residual`."""
        self.compiled: CompiledBlock | None = None
        """What computes a block while it trains, where blocks are compiled."""
        for block in self.blocks:
            # timm's stage takes no kind of block, and another block would draw other weights; the modules in it are the same.
            # A function in its place could neither be compiled nor sharded
            block.__class__ = WindowBlock
        if maskable:
            self.masked_embed = nn.Parameter(torch.zeros(1, width))
        initialise_linear_(self, shape.init)
        if shape.init == "whiten":
            whiten_(self.patch_embed.proj)  # type: ignore[arg-type]

    def compile_blocks(self) -> None:
        """From now on blocks run compiled while they train."""
        self.compiled = CompiledBlock(run)

    def leave_uncompiled(self) -> None:
        """Undo `compile_blocks`."""
        self.compiled = None

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, first to last."""
        return [block for stage in self.layers for block in stage.blocks]  # type: ignore[union-attr]

    def forward(self, images: Float[Tensor, "b ch y x"], mask: Bool[Tensor, "b gh gw"] | None = None) -> Float[Tensor, "b t d"]:
        """Tokens after the final norm, their mean first. Patches under a masked token are replaced before the first block."""
        *_, last = self._through(self.embed(images, mask))
        return pooled(self.norm(last))

    def forward_multi(self, groups: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """`forward` for crops of several sizes, one size after the other."""
        return [self(images, mask) for images, mask in groups]

    def embed(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images -> patches [b, h, w, c] that enter the first block. Each position of `mask` covers a square of patches."""
        patches = self.patch_embed(images)
        if mask is not None:
            times = patches.shape[1] // mask.shape[1], patches.shape[2] // mask.shape[2]
            mask = mask.repeat_interleave(times[0], dim=1).repeat_interleave(times[1], dim=2)
            patches = torch.where(mask[..., None], self.masked_embed.to(patches.dtype), patches)
        return patches

    def _through(self, x: Tensor) -> Iterator[Tensor]:
        """Yields the output of every block."""
        stage: Any
        compiled = self.compiled if self.training else None
        # sizes may be symbols while a graph is exported, which never trains
        depths = iter(self._depths(len(x), x.device) if self.training else [None] * len(self.blocks))
        for stage in self.layers:
            x = stream(stage.downsample(x), self.residual if self.training else None)
            for block in stage.blocks:
                compute: Callable[..., Tensor] = partial(compiled, block) if compiled else block
                arguments = (x, next(depths), self.recompute_activations and compiled is None)
                if self.checkpointed and torch.is_grad_enabled():
                    x = checkpoint(compute, *arguments, use_reentrant=False)
                else:
                    x = compute(*arguments)
                yield x

    def _depths(self, images: int, device: torch.device) -> Sequence[Any]:
        """As `ViT._depths`, for crops of one size, in training."""
        return stochastic_depth.depths(self.blocks, [images], device, training=True, as_factors=self.compiled is not None)

    def last_blocks(self, images: Float[Tensor, "b ch y x"], count: int) -> list[Float[Tensor, "b _ _"]]:
        """Tokens after each of the last `count` blocks, their mean first, the very last block last.

        Those of the last stage pass through the final norm; earlier stages are narrower and have none (the original's rule).
        """
        outputs = list(self._through(self.embed(images)))[-count:]
        return [pooled(self.norm(x) if x.shape[-1] == self.shape.embed_dim else x) for x in outputs]

    def last_patches_before_norm(self, images: Float[Tensor, "b ch y x"]) -> Float[Tensor, "b n d"]:
        """Tokens of the last block without the final norm."""
        *_, last = self._through(self.embed(images))
        return last.flatten(1, 2)


def pooled(x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b _ c"]:
    """Tokens with their mean in front."""
    tokens = x.flatten(1, 2)
    return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
