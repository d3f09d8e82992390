"""Names of backbones' weights elsewhere and here, both ways. Ours are timm's."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor

Weights = dict[str, Tensor]

CLASSIFIERS = ("head.", "head_dist.", "fc.", "pre_logits.", "classifier.", "linear.")
LEFT_OUT = re.compile(
    r"(dino_head|ibot_head|student_head|teacher_head|decoder|norms|\w*projectors?|\w*projection_head|\w*predictor|local_cls_norm)\..*"
    r"|decoder_\w+(\..*)?|rope_embed\.periods|.*\.bias_mask"
)
"""What trainings keep beside a backbone, besides classifiers: heads, decoders, what is used on local crops alone, constants."""
CHUNK = re.compile(r"^blocks\.\d{1,4}\.(\d{1,4})\.")
"""A block in a chunk of blocks, as DINOv2 and DINOv3 train: its own number is the second one."""
COMPUTED = ("relative_position_index", "attn_mask")
"""Buffers that follow from the sizes; the original's Swin files carry them."""


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
    classifiers = ("head.fc.",) if is_convnext(weights) else CLASSIFIERS  # its last norm is called head.norm
    ignored = [name for name in weights if name.startswith(classifiers) or LEFT_OUT.fullmatch(name)]
    kept = {name: w for name, w in weights.items() if name not in ignored and not name.endswith(COMPUTED)}
    for name in ("weight", "bias"):  # timm's name of the last norm where it stands behind the pooling
        pooled = kept.pop(f"fc_norm.{name}", None)
        if pooled is not None and f"norm.{name}" not in kept:
            kept[f"norm.{name}"] = pooled
    if "patch_embed.proj.weight" in kept and "blocks.0.0.norm1.weight" in kept:
        kept = {CHUNK.sub(r"blocks.\1.", name): weight for name, weight in kept.items()}
    without = {name: weight for name, weight in kept.items() if name != "mask_token"}
    if len(without) < len(kept) and is_plain(without):  # MAE's, of its decoder
        kept, ignored = without, [*ignored, "mask_token"]
    if is_swin(kept) and "layers.0.downsample.norm.weight" in kept:
        kept = {_moved(name, 1): weight for name, weight in kept.items()}
    return kept, tuple(ignored)


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


def is_convnext(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a ConvNeXt's, under Meta's names or timm's."""
    return any(name in weights for name in ("stages.0.0.dwconv.weight", "stages.0.blocks.0.conv_dw.weight"))


def is_plain(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a ViT's as iBOT and DINO have it, its positions a square and one for [CLS]."""
    if "pos_embed" not in weights or weights["pos_embed"].ndim != 3 or not all(PLAIN.fullmatch(name) for name in weights):
        return False
    return round((weights["pos_embed"].shape[1] - 1) ** 0.5) ** 2 == weights["pos_embed"].shape[1] - 1
