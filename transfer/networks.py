"""The network of a pyramid: from a checkpoint of any kind, with its weights or with random ones."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from checkpoints.architecture import Architecture, shape_of
from checkpoints.cli import UserError
from pretrain.backbones.open import open_backbone
from pretrain.models.backbone import Backbone, Loaded, load_backbone, make, timms_name
from pretrain.models.measured import Measured
from pretrain.models.timm_vit import AnyViT
from pretrain.models.vit import ViT

MOST_PATCHES = 1024
"""Largest number of patches along a grid's side."""


class Wanted(NamedTuple):
    """A config's requirements on its backbone; None where the checkpoint decides."""

    arch: str | None
    patch_size: int | None
    window: int | None


class Network(NamedTuple):
    """A network that can be trained."""

    net: Backbone
    lacks: list[str]
    """What was asked for and the network has not, in words."""


def opened(checkpoint: Path | None, key: str = "teacher") -> Loaded:
    """The backbone of anything that `--ckpt` takes: iBOT's own ViTs and Swins where it is one, else as its library has it.

    Raises UserError for what cannot be read, WorkError for what cannot be fetched.
    """
    if timms_name(checkpoint):
        try:
            return load_backbone(checkpoint, key=key)
        except UserError:  # not a ViT as they are trained here
            pass
    return open_backbone(checkpoint, key=key)


def network(checkpoint: str | None, wanted: Wanted, key: str, *, drop_path: float, checkpointed: bool) -> Network:
    """The network of a checkpoint, or of random weights without one. Raises UserError where it is not the one that is wanted."""
    if checkpoint is None:
        if wanted.arch is None:
            raise UserError("the backbone has no checkpoint: give --ckpt, or a config that names an architecture")
        shape = shape_of(wanted.arch, wanted.patch_size or 16, 224, window=wanted.window or 7)
        return Network(_made(shape, drop_path, checkpointed), [])
    loaded = opened(Path(checkpoint), key)
    source = loaded.backbone
    shape = source.shape
    for name, value in wanted._asdict().items():
        if value is not None and getattr(shape, name) != value:
            found = getattr(shape, name)
            raise UserError(
                f"{loaded.path} has {name.replace('_', ' ')} {found}, the config is for {value}: give another --config or --ckpt"
            )
    if shape.channels != 3:
        raise UserError(f"{loaded.path} is for images of {shape.channels} channels: dense transfer reads RGB")
    if isinstance(source, Measured):
        return Network(source, source.make_trainable_(drop_path=drop_path, checkpointed=checkpointed))
    net = _made(shape, drop_path, checkpointed)
    net.load_state_dict({name: weight for name, weight in source.state_dict().items() if name != "masked_embed"})
    return Network(net, [])


def _made(shape: Architecture, drop_path: float, checkpointed: bool) -> Any:
    """With fresh weights; of ViTs and Swins the pyramid computes blocks again by itself."""
    return make(shape, maskable=False, drop_path=drop_path, checkpointed=checkpointed and shape.kind == "timm").eval()


def resized(net: Backbone, grid: Any) -> tuple[int, int]:
    """Give a ViT position embeddings of this grid (rows, columns), which is returned. Raises UserError for other networks."""
    sides = tuple(grid) if isinstance(grid, (list, tuple)) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= MOST_PATCHES for side in sides):
        raise UserError(f"model.backbone.grid {grid}: give rows and columns of patches, as in model.backbone.grid=32,32, or None")
    if not isinstance(net, ViT):
        raise UserError(f"model.backbone.grid is for ViTs: {net.shape.arch} has no grid of position embeddings, give None")
    net.train_grid(*sides)
    return net.grid


def drawn(net: Backbone, grid: Any) -> Backbone:
    """The same network with random weights; its position embeddings, where there is a grid, are drawn for it.

    Raises UserError for a network that cannot be made anew.
    """
    if isinstance(net, Measured):
        return net.fresh()
    fresh = make(net.shape, maskable=False)
    if grid is not None:
        resized(fresh, grid)
        nn.init.trunc_normal_(fresh.pos_embed, std=0.02)  # type: ignore[arg-type]
    return fresh


def is_foreign(net: Backbone) -> bool:
    """Whether a network is computed by another library."""
    return isinstance(net, (AnyViT, Measured))
