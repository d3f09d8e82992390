"""Backbones by shape, and from checkpoints of all kinds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from timm.models import adapt_input_conv
from torch import Tensor

from checkpoints import published, zoo
from checkpoints.architecture import SIZES, Architecture, possible, stored_architecture
from checkpoints.cli import UserError
from checkpoints.published import Contents
from checkpoints.resolve import (
    _shown_by,
    _timms_own,
    arch_of,
    backbone_part,
    load_strictly,
    pretrained_config,
    refuse_misfits,
)
from checkpoints.store import first_line
from pretrain.models.measured import Measured
from pretrain.models.swin import Swin
from pretrain.models.timm_vit import AnyViT
from pretrain.models.vit import ViT, of_size

Trainable = ViT | Swin | AnyViT
"""All map images [b, c, h, w], with or without a mask [b, gh, gw], to tokens [b, t, d], [CLS] (or the mean token) first."""
Backbone = Trainable | Measured
"""What probes measure: also what is never trained here."""
MEASURED_ONLY = ("hf:", "torchvision:", "python:")
"""Beginnings of --ckpt that `pretrain.backbones` opens, for probes alone."""
KINDS: dict[str, type[ViT] | type[Swin] | type[AnyViT]] = {"vit": ViT, "swin": Swin, "timm": AnyViT}


def make(
    shape: Architecture, *, maskable: bool, drop_path: float = 0.0, fused: bool = True, checkpointed: bool = False
) -> Trainable:
    """A backbone of this shape with fresh weights; see `pretrain.models.vit.ViT` for the arguments."""
    return KINDS[shape.kind](shape, maskable=maskable, drop_path=drop_path, fused=fused, checkpointed=checkpointed)


class Loaded(NamedTuple):
    """A backbone from disk and where it came from."""

    backbone: Backbone
    path: Path
    epoch: int
    contents: Contents
    """Everything that the file holds."""


def load_backbone(checkpoint: Path | None, *, runs: Path = Path("runs"), key: str = "teacher", full: bool = False) -> Loaded:
    """A frozen backbone on the CPU from any checkpoint: see `open_checkpoint`.

    `key` is `teacher` or `student`. Every weight must fit: a missing or surplus key is a UserError that names it.
    """
    checkpoint = zoo.meant(checkpoint)
    path, contents = open_checkpoint(checkpoint, runs=runs, key=key, full=full)
    backbone = backbone_of(contents, key, path).requires_grad_(False)
    if (name := timms_name(checkpoint)) and backbone.shape.channels == 3:  # normalised as timm's weights of that tag want it
        config, own = pretrained_config(name), backbone.shape
        backbone.shape = own._replace(mean=tuple(config.get("mean") or own.mean), std=tuple(config.get("std") or own.std))
    return Loaded(backbone, path, contents.epoch, contents)


def timms_name(checkpoint: Path | None) -> str:
    """NAME[.TAG] of `timm:NAME[.TAG][@FILE]`; empty for anything else, and for a path that exists."""
    if checkpoint is None or not str(checkpoint).startswith("timm:") or checkpoint.exists():
        return ""
    return str(checkpoint).removeprefix("timm:").partition("@")[0]


def backbone_of(contents: Contents, key: str, path: Path) -> Trainable:
    """The backbone of one network of a checkpoint, strictly loaded, in evaluation mode. `path` is for messages."""
    weights = backbone_part(contents.network(key, path))
    backbone = make(architecture_of_contents(contents, weights, path), maskable="masked_embed" in weights)
    load_strictly(backbone, fitted(weights, backbone, path), path)
    return backbone.eval()


def open_checkpoint(
    checkpoint: Path | None, *, runs: Path = Path("runs"), key: str = "teacher", full: bool = False
) -> tuple[Path, Contents]:
    """The file that is meant, and what it holds.

    None is the newest run under `runs`; else a run's folder, a file of this project, a published one, a name of the zoo
    (`checkpoints/zoo.json`), `timm:NAME` (its published weights) or `timm:NAME@FILE` (a file that holds that architecture). Of a
    run's folder the backbone alone is read, or everything if `full`.
    """
    checkpoint = zoo.meant(checkpoint)
    if checkpoint is not None and str(checkpoint).startswith(MEASURED_ONLY) and not checkpoint.exists():
        raise UserError(
            f"{checkpoint} is a network that probes measure: this command needs a ViT or a Swin of the kinds it trains"
        )
    if name := timms_name(checkpoint):
        file, arch = str(checkpoint).partition("@")[2], arch_of(name)
        return (Path(file), published.read(Path(file), arch)) if file else (Path(f"timm:{name}"), _timms_own(name, arch))
    path = zoo.find(checkpoint, runs, whole=full or key != "teacher", check=_as_listed)
    return path, published.read(path)


def _as_listed(entry: Mapping[str, Any], path: Path) -> str:
    """Description of a downloaded file of the zoo. Raises UserError if it does not hold what its entry says."""
    contents = published.read(path)
    key = next(iter(contents.networks)) if "teacher" not in contents.networks else "teacher"
    shape = backbone_of(contents, key, path).shape
    wanted = (entry["arch"], entry["patch_size"], entry.get("window", 0))
    if (shape.arch, shape.patch_size, shape.window) != wanted:
        raise UserError(f"{path} holds a {shape.arch} of patch size {shape.patch_size}, not a {wanted[0]} of {wanted[1]}")
    if entry["holds"].startswith("student, teacher") and "student" not in contents.networks:
        raise UserError(f"{path} holds one backbone, not {entry['holds']}")
    return f"{contents.layout}, {shape.arch} of patch size {shape.patch_size}"


def architecture_of_contents(contents: Contents, weights: dict[str, Tensor], path: Path) -> Architecture:
    """The architecture of a checkpoint's backbone: as stored, or inferred from its weights.

    Raises UserError where it cannot be, or is not that of the weights, naming those that are missing, left over or of another
    size: before any network is made.
    """
    if contents.shape is not None:
        return agreed(stored_architecture(contents.shape, str(path)), weights, path)
    return agreed(possible(_shown_by(weights, contents.arch, path, contents.heads), str(path)), weights, path)


def agreed(shape: Architecture, weights: dict[str, Tensor], path: Path) -> Architecture:
    """Returns the shape. Raises UserError if the weights do not fit such a network, built on the meta device."""
    with torch.device("meta"):
        outline = make(shape, maskable="masked_embed" in weights)
    refuse_misfits(outline, fitted(weights, outline, path), path)
    return shape


def fitted(weights: dict[str, Tensor], backbone: Trainable, path: Path) -> dict[str, Tensor]:
    """Weights in the layout of the backbone's class; timm's own filter for architectures that only timm has."""
    if not isinstance(backbone, AnyViT) or any(name.startswith("model.") for name in weights):
        return weights
    try:
        return backbone.from_timm(weights)
    except Exception as error:  # a filter trusts the weights to be what it is for
        raise UserError(f"{path} does not fit: timm cannot read it as {backbone.shape.arch} ({first_line(error)})") from error


def starting_weights(
    other: Backbone, shape: Architecture, path: Path, *, positions: Literal["scale", "size"] = "scale"
) -> dict[str, Tensor]:
    """The weights of another backbone for one with this shape.

    Size of the images and number of channels may differ: a ViT's positions are resized, by the `scale` of the forward
    (`ViT.position`) or by `size` (`of_size`), those of timm's ViTs by timm's rule; the patch embedding is repeated over the
    channels, or summed to one, by timm's rule. Raises UserError where anything else differs.
    """
    source = other.shape
    if isinstance(other, Measured):
        raise UserError(f"{path} is measured as it is, and cannot be trained here: give weights of a ViT or a Swin")
    fields = ["patch_size", "embed_dim", "depth", "num_heads", "depths", "window"]
    if (source.kind, source.kind == "timm" and source.arch) != (shape.kind, shape.kind == "timm" and shape.arch):
        fields = ["arch"]
    differing = [name for name in fields if getattr(source, name) != getattr(shape, name)]
    if differing:
        words = ", ".join(f"{name.replace('_', ' ')} {getattr(source, name)}" for name in differing)
        raise UserError(f"{path} has {words}: give {flags_for(source)}")
    if source.channels not in (3, shape.channels):
        raise UserError(f"{path} has {source.channels} channels: only 3 can be changed to --channels {shape.channels}")
    weights = {name: weight for name, weight in other.state_dict().items() if name != "masked_embed"}
    side = shape.image_size // shape.patch_size
    if isinstance(other, ViT):
        resized = other.position(side, side) if positions == "scale" else of_size(other.pos_embed, side, side)
        weights["pos_embed"] = resized.clone()
    elif isinstance(other, AnyViT):
        weights |= other.resized_positions(side)
    first = "model.patch_embed.proj.weight" if shape.kind == "timm" else "patch_embed.proj.weight"
    weights[first] = adapt_input_conv(shape.channels, weights[first], base_chans=source.channels)
    return weights


def flags_for(shape: Architecture) -> str:
    """The flags of `pretrain.train` that ask for this architecture."""
    if shape.kind == "timm":
        local = -(-96 // shape.patch_size) * shape.patch_size  # the usual size, up to whole patches
        return f"--arch {shape.arch}" + f" --local-crops-size {local}" * (local != 96)
    if shape.kind == "swin":
        return f"--arch {shape.arch} --patch-size {shape.patch_size} --window {shape.window}"
    flags = f"--arch {shape.arch if shape.arch in SIZES else 'vit_small'} --patch-size {shape.patch_size}"
    size = SIZES.get(shape.arch)
    if size is None or (size.embed_dim, size.depth) != (shape.embed_dim, shape.depth):
        flags += f" --width {shape.embed_dim} --depth {shape.depth}"
    return flags
