"""The architecture of a backbone: stored with every checkpoint, so that no command has to ask for it."""

import re
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch

from checkpoints import checked
from checkpoints.cli import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as the original normalises everything."""


class Architecture(NamedTuple):
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
    """Number of heads of the first block."""
    init: str = "original"
    """Weight initialisation: `original` (linear layers with standard deviation 0.02), `fan_in` (one over the root of their
    inputs), or `whiten` (so, and the patch embedding whitens)."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    """Mean and standard deviation that images are normalised by, one number a channel."""
    depths: tuple[int, ...] = ()
    """Swin: blocks of each stage."""
    window: int = 0
    """Swin: patches of a window's side."""
    value_range: tuple[float, ...] = ()
    """Values that became 0 and 1 in images of more than 8 bit; empty: integers 0 and 65535, floats unchanged."""

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
) -> Architecture:
    """The shape of a named architecture; `depth` and `width` override a ViT's number of blocks and embedding width.

    A ViT's heads are 64 wide throughout, as in every published one. Raises UserError for an unknown name or an impossible size.
    """
    if arch not in SIZES and arch not in SWIN_SIZES and not is_timms(arch):
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
    return _divided(Architecture(arch, patch_size, image_size, channels, embed_dim, depth or size.depth, embed_dim // 64, init))


def swin_shape(arch: str, size: SwinSize, patch_size: int, image_size: int, window: int, channels: int) -> Architecture:
    """A Swin's."""
    width = size.width * 2 ** (len(size.depths) - 1)
    return Architecture(
        arch, patch_size, image_size, channels, width, sum(size.depths), size.num_heads, depths=size.depths, window=window
    )


def is_timms(arch: str) -> bool:
    """Whether it is the plain name of an architecture in timm's own list.

    No other word may reach timm: it takes `hf-hub:OWNER/MODEL` and `local-dir:FOLDER` for orders to fetch and to open.
    """
    return re.fullmatch(r"\w+", arch, re.ASCII) is not None and timm.is_model(arch)


def timm_model(arch: str, **settings: Any) -> Any:
    """timm's model of that architecture with fresh weights: nothing is fetched. Raises UserError for a name that it has not."""
    if not is_timms(arch):
        raise UserError(f"timm has no architecture {arch!r}: names are those of timm.list_models(), nothing is fetched by name")
    return timm.create_model(arch, pretrained=False, num_classes=0, **settings)


@lru_cache
def timm_shape(arch: str, image_size: int, channels: int) -> Architecture:
    """That of a ViT of timm with a class token, by its name there. Raises UserError for any other name."""
    with torch.device("meta"):
        model = timm_model(arch, in_chans=channels)
    if getattr(model, "cls_token", None) is None or not hasattr(model, "blocks") or not hasattr(model, "forward_features"):
        raise UserError(f"--arch {arch} has no class token: choose from {KNOWN}, or any of timm's ViTs that has one")
    patch, heads = model.patch_embed.patch_size[0], getattr(model.blocks[0].attn, "num_heads", 0)
    settings = getattr(model, "pretrained_cfg", {})
    mean, std = (tuple(settings.get(name, usual)) for name, usual in (("mean", MEAN), ("std", STD)))
    if channels != len(mean):
        mean, std = MEAN, STD
    return Architecture(arch, patch, image_size, channels, model.num_features, len(model.blocks), heads, mean=mean, std=std)


def _divided(shape: Architecture) -> Architecture:
    if shape.image_size % shape.stride:
        what = "patch size" if shape.stride == shape.patch_size else "patch size x 8"
        flag = "--patch-size" if shape.kind == "vit" else f"its {what},"
        raise UserError(f"--global-crops-size {shape.image_size} is not divisible by {flag} {shape.stride}")
    return shape


MOST = {"patch_size": 512, "image_size": 2**16, "channels": 4096, "embed_dim": 2**15, "depth": 512, "num_heads": 1024}
"""Limits for the architecture in a file; the largest ViT that was ever trained is 6144 wide and 48 deep."""
MOST_STAGES, MOST_WINDOW, MOST_TOKENS = 8, 256, 2**17
MOST_BYTES = 2**30
"""Limit for what a Swin precomputes for its windows, which its weights do not show."""


def stored_architecture(values: Any, where: str) -> Architecture:
    """A shape as a checkpoint holds it; JSON knows no tuples. Raises UserError, `where` first, for one that cannot be."""
    fields = checked.mapping(values, f"{where}: shape")
    unknown = sorted(fields.keys() - set(Architecture._fields))
    if unknown:
        raise UserError(f"{where}: the shape has {', '.join(unknown)[:99]}, not known here: update, or take another copy")
    checked.mapping(
        fields, f"{where}: shape", [name for name in Architecture._fields if name not in Architecture._field_defaults]
    )
    found: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    shape = possible(Architecture(**found), where)
    checked.colours(shape.mean, f"{where}: mean", shape.channels, -1e6)
    checked.colours(shape.std, f"{where}: std", shape.channels, 1e-6)
    return shape._replace(value_range=_range(shape.value_range, f"{where}: value_range"))


def _range(values: Any, where: str) -> tuple[float, ...]:
    found = tuple(checked.number(one, where) for one in checked.listed(values, where))
    if found and (len(found) != 2 or found[0] >= found[1]):
        checked.refuse(where, checked.shown(values), "two numbers, the lower one first")
    return found


def possible(shape: Architecture, where: str) -> Architecture:
    """Returns the architecture. Raises UserError for an impossible one, before anything of that size is allocated."""
    for name, most in MOST.items():
        checked.count(getattr(shape, name), f"{where}: {name}", 0 if name == "num_heads" else 1, most)
    checked.one_of(shape.init, f"{where}: init", ("original", "fan_in", "whiten"))
    depths = checked.listed(shape.depths, f"{where}: depths")
    for depth in depths:
        checked.count(depth, f"{where}: depths", 1, MOST["depth"])
    checked.count(shape.window, f"{where}: window", 1 if depths else 0, MOST_WINDOW)
    arch = checked.text(shape.arch, f"{where}: arch", 200)
    if (arch not in SWIN_SIZES and arch != "swin") if depths else (shape.kind == "timm" and not is_timms(arch)):
        raise UserError(f"{where}: its architecture {arch!r} is none of {KNOWN} or timm's: it is not looked for anywhere else")
    wrong = _misshapen(shape)
    if wrong:
        raise UserError(f"{where} asks for a network that cannot be: {wrong}")
    return shape


def _misshapen(shape: Architecture) -> str:
    """A sentence on values that contradict each other, or an empty string."""
    if shape.image_size % shape.stride or shape.image_size < shape.stride:
        return f"images of {shape.image_size} pixels and tokens of {shape.stride}"
    if (shape.image_size // shape.patch_size) ** 2 > MOST_TOKENS:
        return f"images of {shape.image_size} pixels in patches of {shape.patch_size}"
    if shape.depths:
        return _misshapen_stages(shape)
    divided = shape.kind == "timm" or (shape.num_heads and shape.embed_dim % shape.num_heads == 0)
    return "" if divided else f"a width of {shape.embed_dim} with {shape.num_heads} heads"


def _misshapen_stages(shape: Architecture) -> str:
    last = len(shape.depths) - 1
    if last >= MOST_STAGES or sum(shape.depths) != shape.depth:
        return f"{shape.depth} blocks in stages of {', '.join(map(str, shape.depths[:9]))}"
    first_width = shape.embed_dim // 2**last
    if shape.embed_dim % 2**last or not shape.num_heads or first_width % shape.num_heads:
        return f"a width of {shape.embed_dim} after {last + 1} stages with {shape.num_heads} heads at first"
    if _of_windows(shape) > MOST_BYTES:
        return f"images of {shape.image_size} pixels in windows of {shape.window} patches, {shape.depth} blocks deep"
    return ""


def _of_windows(shape: Architecture) -> int:
    """Bytes of a Swin's tables: which patches of a window may see each other, and how far apart they are."""
    grids = [shape.image_size // shape.patch_size // 2**stage for stage in range(len(shape.depths))]
    sides = [min(shape.window, grid) for grid in grids]
    each = [4 * (grid + side) ** 2 * side**2 + 8 * side**4 for grid, side in zip(grids, sides, strict=True)]
    return sum(depth * bytes_ for depth, bytes_ in zip(shape.depths, each, strict=True))
