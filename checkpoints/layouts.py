"""Names of backbones' weights elsewhere and here, both ways. Ours are timm's."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor

from checkpoints import checked, reading
from checkpoints.cli import UserError

Weights = dict[str, Tensor]

CLASSIFIERS = ("head.", "head_dist.", "fc.", "pre_logits.", "classifier.", "linear.")
COMPUTED = ("relative_position_index", "attn_mask")
"""Buffers that follow from the sizes; the original's Swin files carry them."""
DINOV2 = {384: "vit_small_patch14", 768: "vit_base_patch14", 1024: "vit_large_patch14", 1536: "vit_giant_patch14"}


class SwinStages(NamedTuple):
    """Widths and heads of a Swin's stages, which double from stage to stage."""

    widths: tuple[int, ...]
    heads: tuple[int, ...]


def swin_stages(shape: Mapping[str, Any]) -> SwinStages:
    """Stages of a Swin's architecture (its fields as a dict), which has the last width and the first number of heads."""
    numbers = range(len(shape["depths"]))
    widths = tuple(shape["embed_dim"] // 2 ** (len(numbers) - 1 - stage) for stage in numbers)
    return SwinStages(widths, tuple(shape["num_heads"] * 2**stage for stage in numbers))


def to_ours(weights: Mapping[str, Tensor]) -> tuple[Weights, tuple[str, ...]]:
    """A backbone's weights under our names, and the names of those that are not a backbone's."""
    ignored = tuple(name for name in weights if name.startswith(CLASSIFIERS))
    kept = {name: w for name, w in weights.items() if name not in ignored and not name.endswith(COMPUTED)}
    for name in ("weight", "bias"):  # timm's name of the last norm where it stands behind the pooling
        pooled = kept.pop(f"fc_norm.{name}", None)
        if pooled is not None and f"norm.{name}" not in kept:
            kept[f"norm.{name}"] = pooled
    if is_swin(kept) and "layers.0.downsample.norm.weight" in kept:
        kept = {_moved(name, 1): weight for name, weight in kept.items()}
    return kept, ignored


def to_original(weights: Mapping[str, Tensor]) -> Weights:
    """Our names -> the original's (and OpenMMLab's forks' of it): Swin's downsampling belongs to the stage before it."""
    return {_moved(name, -1) if is_swin(weights) else name: weight for name, weight in weights.items()}


def with_indices(weights: Mapping[str, Tensor]) -> Weights:
    """A Swin's weights with the buffers that the original's files carry beside its tables of position biases."""
    tables = [name for name in weights if name.endswith("relative_position_bias_table")]
    found = dict(weights)
    for name in tables:
        side = (math.isqrt(len(weights[name])) + 1) // 2
        found[name.replace("bias_table", "index")] = get_relative_position_index(side, side)
    return found


def _moved(name: str, by: int) -> str:
    return re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + by}.downsample", name)


def is_swin(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a Swin's."""
    return "layers.0.blocks.0.attn.relative_position_bias_table" in weights


TABLE = re.compile(r"layers\.(\d{1,4})\.blocks\.\d{1,4}\.attn\.relative_position_bias_table")
"""A Swin's table of position biases, its stage first."""
PLAIN = re.compile(
    r"cls_token|pos_embed|masked_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d{1,4}\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)"
)
"""Names of a ViT's weights as iBOT and DINO have it; any other name means another kind of ViT."""


def is_plain(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a ViT's as iBOT and DINO have it, its positions a square and one for [CLS]."""
    if "pos_embed" not in weights or weights["pos_embed"].ndim != 3 or not all(PLAIN.fullmatch(name) for name in weights):
        return False
    return round((weights["pos_embed"].shape[1] - 1) ** 0.5) ** 2 == weights["pos_embed"].shape[1] - 1


def whose(weights: Mapping[str, Tensor], arch: str, path: Path) -> tuple[str, str]:
    """The family of a backbone, and timm's name of its architecture where it needs one."""
    if is_swin(weights):
        return "a Swin backbone (the original iBOT's, EsViT's or timm's)", ""
    if is_plain(weights):
        return "a ViT backbone (the original iBOT's, DINO's or timm's)", arch
    width = checked.part(weights, "cls_token", path, 1, 1, None).shape[-1] if "cls_token" in weights else 0
    if "mask_token" in weights and "blocks.0.ls1.gamma" in weights and width in DINOV2:
        registers = checked.part(weights, "register_tokens", path, 1, None, width) if "register_tokens" in weights else None
        return "a backbone of DINOv2", DINOV2[width] + ("_dinov2" if registers is None else f"_reg{registers.shape[1]}_dinov2")
    arch = arch or _named_beside(path)
    if not arch:
        raise UserError(
            f"{path} is a ViT that its weights alone do not name: give timm's name of it, --ckpt timm:NAME@{path} (names: "
            "python -c \"import timm; print(timm.list_models('vit*'))\")"
        )
    return f"a backbone of timm's {arch}", arch


def _named_beside(path: Path) -> str:
    """The architecture that a `config.json` in the file's folder names, as on Hugging Face."""
    try:
        return str(reading.values(path.parent / "config.json").get("architecture", ""))
    except (OSError, ValueError, AttributeError):
        return ""
