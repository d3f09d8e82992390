"""What decides a backbone's weights: stored with every checkpoint, so that no command has to ask for it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch

from checkpoints.command import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as the original normalises everything."""


class Shape(NamedTuple):
    """A ViT (`vit_*`), a Swin (`swin_*`), or a ViT of timm by its own name."""

    arch: str
    patch_size: int
    image_size: int
    channels: int
    embed_dim: int
    """Width of the tokens that leave the network; Swin's first stage is narrower."""
    depth: int
    """Blocks in all."""
    num_heads: int
    """Of the first block."""
    init: str = "original"
    """How weights begin: `original` (linear layers with standard deviation 0.02), `fan_in` (one over the root of their
    inputs), or `whiten` (so, and the patch embedding whitens)."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    """What images are normalised by, one number a channel."""
    depths: tuple[int, ...] = ()
    """Swin: blocks of each stage."""
    window: int = 0
    """Swin: patches of a window's side."""

    @property
    def stride(self) -> int:
        """Pixels of a token's side: Swin halves its grid after every stage but the last."""
        return self.patch_size * 2 ** max(len(self.depths) - 1, 0)

    @property
    def kind(self) -> str:
        """`vit`, `swin` or `timm`."""
        if self.depths:
            return "swin"
        return "vit" if self.arch in SIZES or self.arch == "vit" else "timm"


class Size(NamedTuple):
    """Width, blocks and heads of a named ViT."""

    embed_dim: int
    depth: int
    num_heads: int


SIZES = {
    "vit_tiny": Size(192, 12, 3),
    "vit_small": Size(384, 12, 6),
    "vit_base": Size(768, 12, 12),
    "vit_large": Size(1024, 24, 16),
}


class SwinSize(NamedTuple):
    """Width of the first stage, blocks of each, heads of the first; both double from stage to stage."""

    width: int
    depths: tuple[int, ...]
    num_heads: int


SWIN_SIZES = {
    "swin_tiny": SwinSize(96, (2, 2, 6, 2), 3),
    "swin_small": SwinSize(96, (2, 2, 18, 2), 3),
    "swin_base": SwinSize(128, (2, 2, 18, 2), 4),
    "swin_large": SwinSize(192, (2, 2, 18, 2), 6),
}


KNOWN = ", ".join([*SIZES, *SWIN_SIZES])


def shape_of(
    arch: str,
    patch_size: int,
    image_size: int,
    *,
    channels: int = 3,
    depth: int | None = None,
    width: int | None = None,
    init: str = "original",
    window: int = 7,
) -> Shape:
    """The shape of a named architecture; `depth` and `width` override a ViT's number of blocks and embedding width.

    A ViT's heads are 64 wide throughout, as in every published one. Raises UserError for an unknown name or an impossible size.
    """
    if arch not in SIZES and arch not in SWIN_SIZES and not timm.is_model(arch):
        raise UserError(f"unknown --arch {arch}: choose from {KNOWN}, or any of timm's ViTs with a class token")
    if arch not in SIZES and (depth or width):
        raise UserError(f"--width and --depth change {', '.join(SIZES)} only: --arch {arch} has its own")
    if arch in SWIN_SIZES:
        return _divided(swin_shape(arch, SWIN_SIZES[arch], patch_size, image_size, window, channels))._replace(init=init)
    if arch not in SIZES:
        return _divided(timm_shape(arch, image_size, channels)._replace(init=init))
    size = SIZES[arch]
    embed_dim = width or size.embed_dim
    if embed_dim % 64:
        raise UserError(f"--width {embed_dim} is not a multiple of 64, the width of an attention head")
    return _divided(Shape(arch, patch_size, image_size, channels, embed_dim, depth or size.depth, embed_dim // 64, init))


def swin_shape(arch: str, size: SwinSize, patch_size: int, image_size: int, window: int, channels: int) -> Shape:
    """A Swin's."""
    width = size.width * 2 ** (len(size.depths) - 1)
    return Shape(
        arch, patch_size, image_size, channels, width, sum(size.depths), size.num_heads, depths=size.depths, window=window
    )


@lru_cache
def timm_shape(arch: str, image_size: int, channels: int) -> Shape:
    """That of a ViT of timm with a class token, by its name there. Raises UserError for any other name."""
    with torch.device("meta"):
        model: Any = timm.create_model(arch, num_classes=0, in_chans=channels)
    if getattr(model, "cls_token", None) is None or not hasattr(model, "blocks") or not hasattr(model, "forward_features"):
        raise UserError(f"--arch {arch} has no class token: choose from {KNOWN}, or any of timm's ViTs that has one")
    patch, heads = model.patch_embed.patch_size[0], getattr(model.blocks[0].attn, "num_heads", 0)
    settings = getattr(model, "pretrained_cfg", {})
    mean, std = (tuple(settings.get(name, usual)) for name, usual in (("mean", MEAN), ("std", STD)))
    if channels != len(mean):
        mean, std = MEAN, STD
    return Shape(arch, patch, image_size, channels, model.num_features, len(model.blocks), heads, mean=mean, std=std)


def _divided(shape: Shape) -> Shape:
    if shape.image_size % shape.stride:
        what = "patch size" if shape.stride == shape.patch_size else "patch size x 8"
        flag = "--patch-size" if shape.kind == "vit" else f"its {what},"
        raise UserError(f"--global-crops-size {shape.image_size} is not divisible by {flag} {shape.stride}")
    return shape


def stored_shape(values: Mapping[str, Any]) -> Shape:
    """A shape as a checkpoint holds it; JSON knows no tuples."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Shape(**fields)
