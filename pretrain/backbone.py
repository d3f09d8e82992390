"""Backbones by shape, and from checkpoints of all kinds."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from checkpoints import checked, layouts, published, zoo
from checkpoints.command import UserError, WorkError
from checkpoints.published import Contents
from checkpoints.store import first_line
from pretrain.anyvit import AnyViT
from pretrain.shape import (
    MOST_STAGES,
    SIZES,
    SWIN_SIZES,
    Shape,
    SwinSize,
    is_timms,
    possible,
    stored_shape,
    swin_shape,
    timm_shape,
)
from pretrain.swin import Swin
from pretrain.vit import ViT, of_size

Backbone = ViT | Swin | AnyViT
"""All take images [b, c, h, w] and maybe a mask [b, gh, gw], and give tokens [b, t, d], [CLS] or what stands for it first."""
Module = TypeVar("Module", bound=nn.Module)
KINDS: dict[str, type[ViT] | type[Swin] | type[AnyViT]] = {"vit": ViT, "swin": Swin, "timm": AnyViT}


def make(shape: Shape, *, maskable: bool, drop_path: float = 0.0, fused: bool = True, checkpointed: bool = False) -> Backbone:
    """A backbone of this shape with fresh weights; see `pretrain.vit.ViT` for the arguments."""
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
    path, contents = open_checkpoint(checkpoint, runs=runs, key=key, full=full)
    return Loaded(backbone_of(contents, key, path).requires_grad_(False), path, contents.epoch, contents)


def backbone_of(contents: Contents, key: str, path: Path) -> Backbone:
    """The backbone of one network of a checkpoint, strictly loaded, in evaluation mode. `path` is for messages."""
    weights = backbone_part(contents.network(key, path))
    backbone = make(shape_of_contents(contents, weights, path), maskable="masked_embed" in weights)
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
    if checkpoint is not None and str(checkpoint).startswith("timm:") and not checkpoint.exists():
        name, _, file = str(checkpoint).removeprefix("timm:").partition("@")
        arch = arch_of(name)
        return (Path(file), published.read(Path(file), arch)) if file else (checkpoint, _timms_own(name, arch))
    path = zoo.find(checkpoint, runs, whole=full or key != "teacher", check=_as_listed)
    return path, published.read(path)


def _as_listed(entry: Mapping[str, Any], path: Path) -> str:
    """In words what a file holds that an entry of the zoo stands for. Raises UserError if it holds anything else."""
    contents = published.read(path)
    key = next(iter(contents.networks)) if "teacher" not in contents.networks else "teacher"
    shape = backbone_of(contents, key, path).shape
    wanted = (entry["arch"], entry["patch_size"], entry.get("window", 0))
    if (shape.arch, shape.patch_size, shape.window) != wanted:
        raise UserError(f"{path} holds a {shape.arch} of patch size {shape.patch_size}, not a {wanted[0]} of {wanted[1]}")
    if entry["holds"].startswith("student, teacher") and "student" not in contents.networks:
        raise UserError(f"{path} holds one backbone, not {entry['holds']}")
    return f"{contents.layout}, {shape.arch} of patch size {shape.patch_size}"


def arch_of(name: str) -> str:
    """The architecture in one of timm's names, `ARCH` or `ARCH.WEIGHTS`. Raises UserError for one that it has not."""
    arch = name.partition(".")[0]
    if not is_timms(arch):
        if ":" in arch or "/" in arch:
            raise UserError(f"timm:{name} is not one of timm's own names: fetch the file yourself and give timm:ARCH@FILE")
        close = ", ".join(timm.list_models(f"*{arch[:9]}*")[:6])
        raise UserError(f"timm has no model {arch}" + (f": perhaps {close}" if close else ""))
    return arch


def _timms_own(name: str, arch: str) -> Contents:
    """timm's published weights, from its cache or the Hugging Face hub."""
    timm.models.set_pretrained_check_hash(True)  # of files whose names end in one; the hub's client compares the others
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises a great many things
        cure = f"give a file with --ckpt timm:{name}@FILE"
        raise WorkError(f"timm's weights of {name} could not be fetched ({first_line(error)}): {cure}") from error
    weights, _ = layouts.to_ours(model.state_dict())
    layout, arch = layouts.whose(weights, arch, Path(name))
    return Contents(f"{layout}, {name}", {"only": {f"backbone.{key}": weight for key, weight in weights.items()}}, arch=arch)


def shape_of_contents(contents: Contents, weights: dict[str, Tensor], path: Path) -> Shape:
    """The shape of a checkpoint's backbone: as it says, or read off its weights.

    Raises UserError where it cannot be, or is not that of the weights, naming those that are missing, left over or of another
    size: before any network is made.
    """
    if contents.shape is not None:
        return agreed(stored_shape(contents.shape, str(path)), weights, path)
    return agreed(possible(_shown_by(weights, contents.arch, path), str(path)), weights, path)


def agreed(shape: Shape, weights: dict[str, Tensor], path: Path) -> Shape:
    """The same. Raises UserError where the weights are not those of such a network, of which only the outline is drawn."""
    with torch.device("meta"):
        outline = make(shape, maskable="masked_embed" in weights)
    refuse_misfits(outline, fitted(weights, outline, path), path)
    return shape


def _shown_by(weights: dict[str, Tensor], arch: str, path: Path) -> Shape:
    """The shape that weights show, of timm's architecture `arch` where they alone do not."""
    if layouts.is_swin(weights):
        return _swin_of(weights, path)
    if layouts.is_plain(weights) and _heads_are_64(arch):
        return _vit_of(weights, path)
    if not arch:
        raise UserError(f"{path} holds no ViT or Swin that is known here")
    if not is_timms(arch):
        raise UserError(f"{path}: its architecture {arch[:100]!r} is not in timm's list: it is not looked for anywhere else")
    tokens = checked.part(weights, "pos_embed", path, 1, None, None).shape[1] if "pos_embed" in weights else 0
    patch = timm_shape(arch, 224, 3).patch_size
    channels = checked.part(weights, "patch_embed.proj.weight", path, None, None, None, None).shape[1]
    checked.count(channels, f"{path}: channels", 1, 4096)
    return timm_shape(arch, _side(tokens) * patch or timm_size(arch), channels)


def _heads_are_64(arch: str) -> bool:
    """Whether an architecture of timm, if one is named, has the heads of every ViT of iBOT and DINO."""
    if not is_timms(arch):
        return not arch
    shape = timm_shape(arch, 224, 3)
    return shape.embed_dim == 64 * shape.num_heads


def _side(tokens: int) -> int:
    """The side of the square in so many positions, up to eight of which are not patches."""
    sides = (math.isqrt(tokens - other) for other in range(min(9, tokens)) if math.isqrt(tokens - other) ** 2 == tokens - other)
    return next(sides, 0)


def timm_size(arch: str) -> int:
    """Pixels of the images that timm's architecture is made for."""
    return int(timm.models.get_pretrained_cfg(arch).input_size[-1])  # type: ignore[union-attr]


def _vit_of(weights: dict[str, Tensor], path: Path) -> Shape:
    """Heads are 64 wide in every ViT of iBOT and DINO."""
    width, channels, patch, _ = checked.part(weights, "patch_embed.proj.weight", path, None, None, None, None).shape
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    depth = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=0)
    sizes = (name for name, size in SIZES.items() if (size.embed_dim, size.depth) == (width, depth))
    return Shape(next(sizes, "vit"), patch, side * patch, channels, width, depth, max(width // 64, 1))


def _swin_of(weights: dict[str, Tensor], path: Path) -> Shape:
    """Window and image size from the tables of position biases: a last stage smaller than the window has a smaller one."""
    width, channels, patch, _ = checked.part(weights, "patch_embed.proj.weight", path, None, None, None, None).shape
    numbers = [int(found[1]) for found in map(layouts.TABLE.fullmatch, weights) if found]
    stages = checked.count(1 + max(numbers), f"{path}: stages", 1, MOST_STAGES)
    depths = tuple(numbers.count(stage) for stage in range(stages))
    names = [f"layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(stages)]
    tables = [checked.part(weights, name, path, None, None) for name in names]
    first, last = ((round(len(table) ** 0.5) + 1) // 2 for table in (tables[0], tables[-1]))
    size = SwinSize(width, depths, tables[0].shape[1])
    name = next((name for name, known in SWIN_SIZES.items() if known == size), "swin")
    return swin_shape(name, size, patch, last * patch * 2 ** (stages - 1), first, channels)


def fitted(weights: dict[str, Tensor], backbone: Backbone, path: Path) -> dict[str, Tensor]:
    """Weights as the backbone's class wants them: timm's own filter for those that only timm knows."""
    if not isinstance(backbone, AnyViT) or any(name.startswith("model.") for name in weights):
        return weights
    try:
        return backbone.from_timm(weights)
    except Exception as error:  # a filter trusts the weights to be what it is for
        raise UserError(f"{path} does not fit: timm cannot read it as {backbone.shape.arch} ({first_line(error)})") from error


def starting_weights(
    other: Backbone, shape: Shape, path: Path, *, positions: Literal["scale", "size"] = "scale"
) -> dict[str, Tensor]:
    """The weights of another backbone for one with this shape.

    Size of the images and number of channels may differ: a ViT's positions are resized, by the `scale` of the forward
    (`ViT.position`) or by `size` (`of_size`), the patch embedding is repeated over the channels, or summed to one, by timm's
    rule. Raises UserError where anything else differs.
    """
    theirs, ours = other.shape, shape
    fields = ["patch_size", "embed_dim", "depth", "num_heads", "depths", "window"]
    if (theirs.kind, theirs.kind == "timm" and theirs.arch) != (ours.kind, ours.kind == "timm" and ours.arch):
        fields = ["arch"]
    other_ones = [name for name in fields if getattr(theirs, name) != getattr(ours, name)]
    if other_ones:
        found = ", ".join(f"{name.replace('_', ' ')} {getattr(theirs, name)}" for name in other_ones)
        raise UserError(f"{path} has {found}: give {flags_for(theirs)}")
    if theirs.channels not in (3, ours.channels):
        raise UserError(f"{path} has {theirs.channels} channels: only 3 can be changed to --channels {ours.channels}")
    weights = {name: weight for name, weight in other.state_dict().items() if name != "masked_embed"}
    side = ours.image_size // ours.patch_size
    if isinstance(other, ViT):
        resized = other.position(side, side) if positions == "scale" else of_size(other.pos_embed, side, side)
        weights["pos_embed"] = resized.clone()
    first = "model.patch_embed.proj.weight" if ours.kind == "timm" else "patch_embed.proj.weight"
    weights[first] = adapt_input_conv(ours.channels, weights[first], base_chans=theirs.channels)
    return weights


def flags_for(shape: Shape) -> str:
    """The flags of `pretrain.train` that ask for this architecture."""
    if shape.kind == "timm":
        return f"--arch {shape.arch}"
    if shape.kind == "swin":
        return f"--arch {shape.arch} --patch-size {shape.patch_size} --window {shape.window}"
    flags = f"--arch {shape.arch if shape.arch in SIZES else 'vit_small'} --patch-size {shape.patch_size}"
    size = SIZES.get(shape.arch)
    if size is None or (size.embed_dim, size.depth) != (shape.embed_dim, shape.depth):
        flags += f" --width {shape.embed_dim} --depth {shape.depth}"
    return flags


def backbone_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under `backbone.`, without that prefix."""
    return {name.removeprefix("backbone."): w for name, w in weights.items() if name.startswith("backbone.")}


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load every weight or raise a UserError that names what is missing, left over, or of another shape."""
    refuse_misfits(module, weights, path)
    module.load_state_dict(weights)


def loaded_strictly(build: Callable[[], Module], weights: dict[str, Tensor], path: Path) -> Module:
    """What `build` makes, with these weights: made only where its outline, which needs no memory, fits every one of them."""
    with torch.device("meta"):
        outline = build()
    refuse_misfits(outline, weights, path)
    module = build()
    module.load_state_dict(weights)
    return module


def refuse_misfits(module: nn.Module, weights: Mapping[str, Tensor], path: Path, what: str = "") -> None:
    """Raise a UserError that names what is missing, left over, or of another shape; `what` of the file it is of."""
    problems = misfits(module, weights)
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{path}{what} does not fit: {', '.join(sorted(problems)[:5])}{more}")


def misfits(module: nn.Module, weights: Mapping[str, Tensor]) -> Sequence[str]:
    """What keeps the weights from being the module's, in words."""
    have: dict[str, Any] = module.state_dict()
    problems = [f"it lacks {name}" for name in have.keys() - weights.keys()]
    problems += [f"{name} has no place" for name in weights.keys() - have.keys()]
    problems += [
        f"{name} is {list(weights[name].shape)}, not {list(have[name].shape)}"
        for name in have.keys() & weights.keys()
        if weights[name].shape != have[name].shape
    ]
    return problems
