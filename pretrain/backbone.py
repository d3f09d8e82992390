"""A timm ViT as images (and masks) to tokens, position embeddings resized the original's way.

b images, c channels, h w pixels, gh gw patches, t = 1 + gh * gw tokens, d width.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from checkpoints import published, store
from checkpoints.command import UserError
from pretrain.blocks import Group, PackedBlock
from pretrain.initial import initialise_linear_, whiten_

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as the original normalises everything."""


class Shape(NamedTuple):
    """All that decides a ViT's weights. Stored with every checkpoint, so that no command has to ask for it."""

    arch: str
    patch_size: int
    image_size: int
    channels: int
    embed_dim: int
    depth: int
    num_heads: int
    init: str = "original"
    """How weights begin: `original` (linear layers with standard deviation 0.02), `fan_in` (one over the root of their
    inputs), or `whiten` (so, and the patch embedding whitens)."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    """What images are normalised by, one number a channel."""


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

POSITION_OFFSET = 0.1
"""Added to a grid's side before it is divided by the stored side: the original's guard against rounding, part of its numbers."""


def shape_of(
    arch: str,
    patch_size: int,
    image_size: int,
    *,
    channels: int = 3,
    depth: int | None = None,
    width: int | None = None,
    init: str = "original",
) -> Shape:
    """The shape of a named architecture; `depth` and `width` override its number of blocks and its embedding width.

    Heads are 64 wide throughout, as in every published ViT. Raises UserError for an unknown name or an impossible size.
    """
    if arch not in SIZES:
        raise UserError(f"unknown --arch {arch}: choose from {', '.join(SIZES)}")
    size = SIZES[arch]
    embed_dim = width or size.embed_dim
    if embed_dim % 64:
        raise UserError(f"--width {embed_dim} is not a multiple of 64, the width of an attention head")
    if image_size % patch_size:
        raise UserError(f"--global-crops-size {image_size} is not divisible by --patch-size {patch_size}")
    return Shape(arch, patch_size, image_size, channels, embed_dim, depth or size.depth, embed_dim // 64, init)


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
        self, shape: Shape, *, maskable: bool, drop_path: float = 0.0, fused: bool = True, checkpointed: bool = False
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
        self.shape, self.checkpointed, self.frugal = shape, checkpointed, True
        block: Any
        for block in self.blocks:
            block.attn.fused_attn = fused
        if maskable:
            self.masked_embed = nn.Parameter(torch.zeros(1, shape.embed_dim))
        self._initialise()

    def _initialise(self) -> None:
        """As the original: position and class tokens truncated normal 0.02, the convolution as torch has it."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        initialise_linear_(self, self.shape.init)
        if self.shape.init == "whiten":
            whiten_(self.patch_embed.proj)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b gh gw"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Tokens after the final norm, [CLS] first. Patches where `mask` is true are replaced before position is added."""
        return self.several([(images, mask)])[0]

    def several(self, groups: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """The same for crops of several sizes at once, (images, mask) each: tokens packed, nothing padded."""
        embedded = [self.embed(images, mask) for images, mask in groups]
        if any(block._compiled_call_impl is not None for block in self.blocks):  # compiled for tokens of one group
            return [self.norm(self._through(self.blocks, x)) for x in embedded]
        sizes = [Group(len(x), x.shape[1]) for x in embedded]
        packed = torch.cat([x.flatten(0, 1) for x in embedded])
        packed = self.norm(self._through([partial(block, groups=sizes, frugal=self.frugal) for block in self.blocks], packed))
        parts = packed.split([size.images * size.tokens for size in sizes])
        return [part.unflatten(0, size) for part, size in zip(parts, sizes, strict=True)]

    def _through(self, blocks: Iterable[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        for block in blocks:
            keep_nothing = self.checkpointed and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if keep_nothing else block(x)
        return x

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
        side = self.patch_embed.grid_size[0]
        if (rows, columns) == (side, side):
            return self.pos_embed
        cls_position, patch_position = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = patch_position.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        factors = ((rows + POSITION_OFFSET) / side, (columns + POSITION_OFFSET) / side)
        grid = F.interpolate(grid.float(), scale_factor=factors, mode="bicubic")
        assert grid.shape[-2:] == (rows, columns)
        return torch.cat([cls_position, grid.flatten(2).transpose(1, 2).to(cls_position.dtype)], dim=1)

    def last_blocks(self, images: Float[Tensor, "b c h w"], count: int) -> list[Float[Tensor, "b t d"]]:
        """Tokens after each of the last `count` blocks, each through the final norm, the very last one last."""
        x, outputs = self.embed(images), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index >= len(self.blocks) - count:
                outputs.append(self.norm(x))
        return outputs

    def last_attention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads t t"]:
        """Attention weights of the last block."""
        x = self.embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        last: Any = self.blocks[-1]
        attention, x = last.attn, last.norm1(x)
        q, k, _ = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return (q @ k.transpose(-2, -1) * attention.scale).softmax(dim=-1)


class Loaded(NamedTuple):
    """A backbone from disk and where it came from."""

    backbone: ViT
    path: Path
    epoch: int


def load_backbone(checkpoint: Path | None, *, runs: Path = Path("runs"), key: str = "teacher") -> Loaded:
    """A frozen backbone on the CPU from a run folder, a run's `.pt`, a `backbone.safetensors`, or a published full checkpoint.

    None means the newest run under `runs`. `key` is `teacher` or `student`. Every weight must fit: a missing or surplus
    key is a UserError that names it.
    """
    path = store.newest_run(runs) if checkpoint is None else checkpoint
    if path.is_dir():
        path = _file_in(path, key)
    if not path.exists():
        raise UserError(f"there is no checkpoint at {path}")
    weights, shape, epoch = _read(path, key)
    backbone = ViT(shape, maskable="masked_embed" in weights)
    load_strictly(backbone, weights, path)
    return Loaded(backbone.eval().requires_grad_(False), path, epoch)


def starting_weights(path: Path, shape: Shape) -> dict[str, Tensor]:
    """The weights of another checkpoint's backbone for a run with this shape.

    Size of the images and number of channels may differ: positions are resized as in the forward, the patch embedding is
    repeated over the channels, or summed to one, by timm's rule. Raises UserError where anything else differs.
    """
    other = load_backbone(path).backbone
    theirs, ours = other.shape, shape
    for name in ("patch_size", "embed_dim", "depth"):
        if getattr(theirs, name) != getattr(ours, name):
            flag = {"embed_dim": "width"}.get(name, name).replace("_", "-")
            raise UserError(f"{path} has another {flag} ({getattr(theirs, name)}): give --{flag} {getattr(theirs, name)}")
    if theirs.channels not in (3, ours.channels):
        raise UserError(f"{path} has {theirs.channels} channels: only 3 can be changed to --channels {ours.channels}")
    weights = {name: weight for name, weight in other.state_dict().items() if name != "masked_embed"}
    side = ours.image_size // ours.patch_size
    weights["pos_embed"] = other.position(side, side).clone()
    weights["patch_embed.proj.weight"] = adapt_input_conv(
        ours.channels, weights["patch_embed.proj.weight"], base_chans=theirs.channels
    )
    return weights


def _file_in(folder: Path, key: str) -> Path:
    names = [store.BACKBONE, store.LAST, store.PREVIOUS] if key == "teacher" else [store.LAST, store.PREVIOUS]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"{folder} holds no checkpoint ({' or '.join(names)}): give a run's folder or a checkpoint file")


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], Shape, int]:
    if path.suffix == ".safetensors":
        if key != "teacher":
            raise UserError(f"{path} holds the teacher only: give the run's {store.LAST} for the {key}")
        weights, about = store.read_backbone(path)
        return weights, stored_shape(about["shape"]), about["epoch"]
    content = published.read_any(path)
    if isinstance(content, published.Published):
        weights = backbone_part(content._asdict()[key])
        return weights, shape_from_weights(weights, content.args, path), content.epoch
    if content.get("format") != store.FORMAT:
        raise UserError(f"{path} is neither a checkpoint of this project nor a full checkpoint of the original iBOT")
    return backbone_part(content[key]), stored_shape(content["shape"]), content["step"] // content["steps_per_epoch"]


def stored_shape(values: Mapping[str, Any]) -> Shape:
    """A shape as a checkpoint holds it; JSON knows no tuples."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Shape(**fields)


def backbone_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under `backbone.`, without that prefix."""
    return {name.removeprefix("backbone."): w for name, w in weights.items() if name.startswith("backbone.")}


def shape_from_weights(weights: dict[str, Tensor], args: dict[str, Any], path: Path) -> Shape:
    """The shape of a published ViT, read off its weights (heads are 64 wide in every one of them)."""
    try:
        embed_dim, channels, patch_size, _ = weights["patch_embed.proj.weight"].shape
        side = int((weights["pos_embed"].shape[1] - 1) ** 0.5)
    except KeyError as error:
        raise UserError(f"{path} holds no ViT (it lacks {error})") from error
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    arch = str(args.get("arch", "vit"))
    return Shape(arch, patch_size, side * patch_size, channels, embed_dim, depth, max(embed_dim // 64, 1))


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load every weight or raise a UserError that names what is missing, left over, or of another shape."""
    have = module.state_dict()
    problems = [f"it lacks {name}" for name in have.keys() - weights.keys()]
    problems += [f"{name} has no place" for name in weights.keys() - have.keys()]
    problems += [
        f"{name} is {list(weights[name].shape)}, not {list(have[name].shape)}"
        for name in have.keys() & weights.keys()
        if weights[name].shape != have[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path} does not fit: {', '.join(sorted(problems)[:5])}{more}")
    module.load_state_dict(weights)
