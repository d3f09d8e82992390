"""Weights of transformers' ViT, DINOv2 (with registers) and Swin under our names: what `--to huggingface` writes, and Phikon."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from checkpoints import reading
from checkpoints.cli import UserError

Weights = dict[str, Tensor]

Rules = Iterable[tuple[str, str]]

RULES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"encoder\.layers\.(\d+)\.downsample\.(norm|reduction)\.(\w+)", r"layers.\1.downsample.\2.\3"),
)
PARTS = {
    r"attention\.(?:attention|self)\.(query|key|value)\.(\w+)": r"attn.\1.\2",
    r"attention\.self\.relative_position_bias_table": "attn.relative_position_bias_table",
    r"attention\.output\.dense\.(\w+)": r"attn.proj.\1",
    r"(?:layernorm_before|norm1)\.(\w+)": r"norm1.\1",
    r"(?:layernorm_after|norm2)\.(\w+)": r"norm2.\1",
    r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)": r"mlp.fc1.\1",
    r"(?:output\.dense|mlp\.fc2)\.(\w+)": r"mlp.fc2.\1",
    r"mlp\.weights_in\.(\w+)": r"mlp.w12.\1",
    r"mlp\.weights_out\.(\w+)": r"mlp.w3.\1",
    r"layer_scale([12])\.lambda1": r"ls\1.gamma",
}
"""Names within a block; what has no place here keeps its name, and is refused by it."""
BLOCK = re.compile(r"encoder\.(?:layer\.(\d+)|layers\.(\d+)\.blocks\.(\d+))\.(.*)")
LEFT_OUT = re.compile(r"pooler\..*|.*\.relative_position_index")


def to_ours(weights: Mapping[str, Tensor]) -> tuple[Weights, tuple[str, ...]]:
    """Weights under the names of Swin as the original has it, or of ViT or DINOv2; and the names that are no backbone's."""
    ignored = tuple(name for name in weights if LEFT_OUT.fullmatch(name))
    found = {_renamed(name): weight for name, weight in weights.items() if name not in ignored}
    for name in [name for name in found if ".attn.query." in name]:
        three = [found.pop(name.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
        if not any(part is None for part in three):
            found[name.replace(".query.", ".qkv.")] = torch.cat([part for part in three if part is not None])
    return found, ignored


def _renamed(name: str) -> str:
    block = BLOCK.fullmatch(name)
    if block is None:
        return _by_rule(name, RULES)
    vit, stage, number, part = block.groups()
    return (f"blocks.{vit}." if vit else f"layers.{stage}.blocks.{number}.") + _by_rule(part, PARTS.items())


def _by_rule(name: str, rules: Rules) -> str:
    return next((re.sub(pattern, new, name) for pattern, new in rules if re.fullmatch(pattern, name)), name)


def heads_beside(path: Path) -> int:
    """Attention heads that a `config.json` in the file's folder states (transformers' or timm's); 0 where none does.

    Raises UserError for a number that cannot be.
    """
    try:
        config = reading.values(path.parent / "config.json")
        arguments = config.get("model_args") or {}
        stated = config.get("num_attention_heads") or arguments.get("num_heads") or 0
    except (OSError, ValueError, AttributeError):
        return 0
    if isinstance(stated, list):  # a Swin's, whose weights show them
        return 0
    if not isinstance(stated, int) or isinstance(stated, bool) or not 0 <= stated <= 1024:
        raise UserError(f"{path.parent / 'config.json'} states {str(stated)[:40]} attention heads: it is damaged")
    return stated
