"""The architecture that a file's weights have, and strict loading: every weight fits, or an error names those that do not."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from checkpoints import checked, families, layouts
from checkpoints.architecture import (
    MOST,
    MOST_STAGES,
    SIZES,
    SWIN_SIZES,
    Architecture,
    SwinSize,
    is_timms,
    swin_shape,
    timm_shape,
)
from checkpoints.cli import UserError, WorkError
from checkpoints.published import Contents
from checkpoints.store import first_line

FIRST = ("patch_embed.proj.weight", "downsample_layers.0.0.weight", "stem.0.weight", "conv1.weight")
"""First convolution: of ViTs and Swins, of ConvNeXts under Meta's and timm's names, of ResNets."""
Module = TypeVar("Module", bound=nn.Module)


def arch_of(name: str) -> str:
    """The architecture in one of timm's names, `ARCH` or `ARCH.WEIGHTS`. Raises UserError for one that it has not."""
    arch = name.partition(".")[0]
    if not is_timms(arch):
        if ":" in arch or "/" in arch:
            raise UserError(f"timm:{name} is not one of timm's own names: fetch the file yourself and give timm:ARCH@FILE")
        close = ", ".join(timm.list_models(f"*{arch[:9]}*")[:6])
        raise UserError(f"timm has no model {arch}" + (f": perhaps {close}" if close else ""))
    return arch


def pretrained_config(name: str) -> Mapping[str, Any]:
    """timm's `pretrained_cfg` of a name with its tag, or of the first tag. Raises UserError for a tag that timm has not."""
    try:
        config: Any = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        arch, _, tag = name.partition(".")
        tags = ", ".join(one.partition(".")[2] for one in timm.list_pretrained(f"{arch}.*")[:8]) or "none"
        raise UserError(f"timm has no weights {tag!r} of {arch} (it has: {tags})") from error
    return {} if config is None else config.to_dict()


def _timms_own(name: str, arch: str) -> Contents:
    """timm's published weights, from its cache or the Hugging Face hub."""
    timm.models.set_pretrained_check_hash(True)  # of files whose names end in one; the hub's client compares the others
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises a great many things
        cure = f"give a file with --ckpt timm:{name}@FILE"
        raise WorkError(f"timm's weights of {name} could not be fetched ({first_line(error)}): {cure}") from error
    weights, _ = layouts.to_ours(model.state_dict())
    layout, arch = families.whose(weights, arch, Path(name))
    return Contents(f"{layout}, {name}", {"only": {f"backbone.{key}": weight for key, weight in weights.items()}}, arch=arch)


def _shown_by(weights: dict[str, Tensor], arch: str, path: Path, heads: int = 0) -> Architecture:
    """The shape that weights show, of timm's architecture `arch` where they alone do not, with so many heads if that is known."""
    if layouts.is_swin(weights):
        return _swin_of(weights, path)
    if layouts.is_plain(weights) and _heads_are_64(arch):
        return _vit_of(weights, path, heads)
    if not arch:
        raise UserError(f"{path} holds no ViT or Swin that is known here")
    if not is_timms(arch):
        raise UserError(f"{path}: its architecture {arch[:100]!r} is not in timm's list: it is not looked for anywhere else")
    tokens = checked.part(weights, "pos_embed", path, 1, None, None).shape[1] if "pos_embed" in weights else 0
    first = next((name for name in FIRST if name in weights), FIRST[0])
    _, channels, patch, _ = checked.part(weights, first, path, None, None, None, None).shape
    checked.count(channels, f"{path}: channels", 1, 4096)
    if first != FIRST[0]:
        return timm_shape(arch, timm_size(arch), channels)
    checked.count(patch, f"{path}: patch size", 1, MOST["patch_size"])
    return timm_shape(arch, _side(tokens) * patch or timm_size(arch), channels)._replace(patch_size=patch)


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


def _vit_of(weights: dict[str, Tensor], path: Path, heads: int) -> Architecture:
    """Heads are 64 wide in every ViT of iBOT and DINO, unless `heads` says how many there are."""
    width, channels, patch, _ = checked.part(weights, "patch_embed.proj.weight", path, None, None, None, None).shape
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    depth = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=0)
    sizes = (name for name, size in SIZES.items() if (size.embed_dim, size.depth) == (width, depth))
    return Architecture(next(sizes, "vit"), patch, side * patch, channels, width, depth, heads or max(width // 64, 1))


def _swin_of(weights: dict[str, Tensor], path: Path) -> Architecture:
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


def backbone_part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under `backbone.`, without that prefix."""
    return {name.removeprefix("backbone."): w for name, w in weights.items() if name.startswith("backbone.")}


def load_strictly(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load every weight or raise a UserError that names what is missing, left over, or of another shape."""
    refuse_misfits(module, weights, path)
    module.load_state_dict(weights)


def loaded_strictly(build: Callable[[], Module], weights: dict[str, Tensor], path: Path) -> Module:
    """The module of `build` with these weights, built only if its outline on the meta device fits all of them."""
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
    """Phrases on weights that do not fit the module."""
    have: dict[str, Any] = module.state_dict()
    problems = [f"it lacks {name}" for name in have.keys() - weights.keys()]
    problems += [f"{name} has no place" for name in weights.keys() - have.keys()]
    problems += [
        f"{name} is {list(weights[name].shape)}, not {list(have[name].shape)}"
        for name in have.keys() & weights.keys()
        if weights[name].shape != have[name].shape
    ]
    return problems
