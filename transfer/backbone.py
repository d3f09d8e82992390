"""Backbones as feature pyramids for MMDetection and MMSegmentation.

Importing this file registers `IBOTBackbone` with MMEngine. b images, h w pixels, d width; level i has stride 4, 8, 16, 32 for
patches of 16 (paper App. C; the original's dense backbone).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from checkpoints import layouts, store
from checkpoints.architecture import Architecture, shape_of
from checkpoints.cli import UserError, WorkError
from checkpoints.resolve import backbone_part, load_strictly
from pretrain.models.backbone import Backbone, architecture_of_contents, fitted, make, open_checkpoint
from pretrain.models.swin import Swin
from pretrain.models.vit import ViT


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


MOST_PATCHES = 1024
"""Largest number of patches along a grid's side."""


def taps_of(depth: int) -> list[int]:
    """After which blocks a ViT is tapped: 4, 6, 8, 12 of 12 (0-based 3, 5, 7, 11), in proportion for other depths."""
    taps = [round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]
    if len(set(taps)) < 4 or taps[0] < 0:
        raise UserError(f"a pyramid taps four blocks, this ViT has {depth}")
    return taps


class Pyramid(nn.Module):
    """A ViT or a Swin as four maps.

    `levels` false leaves a ViT's four taps on their grid (the linear head). `norm_taps`: the final norm on every tap. `frozen`:
    the network stays as it is, in evaluation mode. `checkpointed` computes blocks again in the backward. `grid`: rows and columns
    that a ViT's position embeddings are resized to once, here, by size, as in the original: that grid is trained, and resized in
    the forward for images of another; None keeps the grid of the checkpoint.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        levels: bool = True,
        norm_taps: bool = False,
        taps: Sequence[int] | None = None,
        grid: Any = None,
        frozen: bool = False,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        its = net.shape
        if its.kind == "timm":
            raise UserError(f"pyramids are made of ViTs and Swins as iBOT has them, not of timm's {its.arch}")
        self.net, self.shape, self.frozen, self.checkpointed = net, its, frozen, checkpointed
        self.grid = None if grid is None else resized(net, grid)
        if isinstance(net, ViT):
            self.taps = list(taps) if taps is not None else taps_of(its.depth)
            self.levels = Levels(its.embed_dim, its.patch_size) if levels else None
            if not norm_taps and not frozen:
                net.norm = nn.Identity()
        else:
            self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in widths(its))
            net.norm = nn.Identity()
        if frozen:
            net.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Pyramid":
        super().train(mode)
        if self.frozen:
            self.net.eval()
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Four maps, finest first. Images are padded with zeros on the right and below until patches divide them."""
        images = F.pad(images, (0, -images.shape[-1] % self.shape.patch_size, 0, -images.shape[-2] % self.shape.patch_size))
        if isinstance(self.net, Swin):
            return tuple(self._stages(self.net, images))
        maps = self._tapped(self.net, images)
        return tuple(self.levels(maps) if self.levels is not None else maps)

    def _tapped(self, net: Any, images: Tensor) -> list[Tensor]:
        grid = [side // self.shape.patch_size for side in images.shape[-2:]]
        x, maps = net.embed(images), []
        for number, block in enumerate(net.blocks):
            x = self._run(block, x)
            if number in self.taps:
                maps.append(net.norm(x)[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous())
        return maps

    def _stages(self, net: Any, images: Tensor) -> list[Tensor]:
        x, maps = net.embed(images), []
        for stage, norm in zip(net.layers, self.norms, strict=True):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self._run(block, x)
            maps.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return maps

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointed and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def resized(net: Backbone, grid: Any) -> tuple[int, int]:
    """Give a ViT position embeddings of this grid (rows, columns), which is returned. Raises UserError for other networks."""
    sides = tuple(grid) if isinstance(grid, (list, tuple)) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MOST_PATCHES for side in sides):
        raise UserError(f"model.backbone.grid {grid}: give rows and columns of patches, as in model.backbone.grid=32,32, or None")
    if not isinstance(net, ViT):
        raise UserError(f"model.backbone.grid is for ViTs: {net.shape.arch} has no grid of position embeddings, give None")
    net.train_grid(*sides)
    return net.grid


def drawn(shape: Architecture, grid: Any) -> Backbone:
    """A network with random weights whose position embeddings, where there is a grid, are drawn for it."""
    net = make(shape, maskable=False)
    if grid is not None:
        resized(net, grid)
        nn.init.trunc_normal_(net.pos_embed, std=0.02)  # type: ignore[arg-type]
    return net


def widths(shape: Architecture) -> list[int]:
    """Widths of the four feature maps."""
    return list(layouts.swin_stages(shape._asdict()).widths) if shape.depths else [shape.embed_dim] * 4


@MODELS.register_module()
class IBOTBackbone(Pyramid):
    """A pyramid whose weights come from any checkpoint, as a backbone of MMDetection and MMSegmentation.

    `checkpoint` is whatever `--ckpt` takes; every weight must fit, and `arch`, `patch_size` and `window`, where they are given,
    must be its own. Without one they say what to build with random weights.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        arch: str | None = None,
        patch_size: int | None = None,
        window: int | None = None,
        key: str = "teacher",
        drop_path: float = 0.0,
        **how: Any,
    ) -> None:
        """`how` goes to Pyramid."""
        weights, shape = _weights(checkpoint, Wanted(arch, patch_size, window), key)
        net = make(shape, maskable=False, drop_path=drop_path)
        if weights is not None:
            weights.pop("masked_embed", None)
            load_strictly(net, fitted(weights, net, Path(str(checkpoint))), Path(str(checkpoint)))
        super().__init__(net, **how)
        self.seal = fingerprint(net) if weights is not None else ""

    def init_weights(self) -> None:
        """MMEngine calls this once everything is built; the weights that were loaded stay, and are looked at again."""
        self.verify()

    def verify(self) -> None:
        """Raise WorkError if the loaded weights are no longer there."""
        if self.seal and fingerprint(self.net) != self.seal:
            raise WorkError("the checkpoint's weights were overwritten while the model was built: nothing was trained")


class Wanted(NamedTuple):
    """A config's requirements on its backbone; None where the checkpoint decides."""

    arch: str | None
    patch_size: int | None
    window: int | None


def _weights(path: str | None, wanted: Wanted, key: str) -> tuple[dict[str, Tensor] | None, Architecture]:
    if path is None:
        if wanted.arch is None:
            raise UserError("the backbone has no checkpoint: give --ckpt, or a config that names an architecture")
        return None, shape_of(wanted.arch, wanted.patch_size or 16, 224, window=wanted.window or 7)
    file, contents = open_checkpoint(Path(path), key=key)
    weights = backbone_part(contents.network(key, file))
    shape = architecture_of_contents(contents, weights, file)
    for name, value in wanted._asdict().items():
        if value is not None and getattr(shape, name) != value:
            found = getattr(shape, name)
            raise UserError(
                f"{file} has {name.replace('_', ' ')} {found}, the config is for {value}: give another --config or --ckpt"
            )
    return weights, shape


def fingerprint(net: nn.Module) -> str:
    """A digest of a network's weights; not every use keeps the last norm."""
    return store.checksum({name: weight for name, weight in net.state_dict().items() if not name.startswith("norm.")})


def try_out(settings: Mapping[str, Any]) -> None:
    """Build a config's backbone once and let it go, before anything is made. Raises UserError where it cannot be."""
    if str(settings.get("type")).rpartition(".")[2] != IBOTBackbone.__name__:
        return  # of a config of one's own
    try:
        IBOTBackbone(**{name: value for name, value in settings.items() if name not in ("type", "init_cfg")})
    except TypeError as error:  # an argument that it does not have
        raise UserError(f"model.backbone of the config cannot be built: {store.first_line(error)}") from error
