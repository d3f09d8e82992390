"""Backbones' weights under the names of Hugging Face and OpenMMLab, from ours.

Ours are timm's: see `checkpoints.layouts`. d width, i block, s stage.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from checkpoints import layouts
from checkpoints.cli import UserError
from transfer.exports import reload

Weights = dict[str, Tensor]
Rules = Sequence[tuple[str, str]]


def renamed(weights: Mapping[str, Tensor], rules: Rules) -> Weights:
    """Every name by the first rule whose pattern fits all of it. Raises UserError for a name that none fits."""
    found: Weights = {}
    for name, weight in weights.items():
        for pattern, new in rules:
            if re.fullmatch(pattern, name):
                found[re.sub(pattern, new, name)] = weight
                break
        else:
            raise UserError(f"there is no place for {name} in that layout: give --to timm, which holds every architecture")
    return found


def split_qkv(weights: Mapping[str, Tensor]) -> Weights:
    """`attn.qkv` as the three that it is made of."""
    found: Weights = {}
    for name, weight in weights.items():
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), weight.chunk(3), strict=True):
                found[name.replace(".attn.qkv.", f".attn.{part}.")] = piece
        else:
            found[name] = weight
    return found


ENDS = r"(weight|bias)"


def part_rules(ours: str, theirs: str, names: Mapping[str, str]) -> Rules:
    """Weights and biases of a block's parts: `ours` a pattern for the block, `theirs` what stands in its place."""
    end = re.compile(ours).groups + 1
    return [(rf"{ours}\.{re.escape(part)}\.{ENDS}", rf"{theirs}.{name}.\{end}") for part, name in names.items()]


VIT_BLOCK, SWIN_BLOCK = r"blocks\.(\d+)", r"layers\.(\d+)\.blocks\.(\d+)"
HUGGINGFACE_BLOCK = {
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
OPENMMLAB_MLP = {"mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}


def qkv_names(attention: str) -> dict[str, str]:
    """Names of the three parts of `split_qkv`."""
    return {f"attn.{part}": f"{attention}.{part}" for part in ("query", "key", "value")}


VIT_HUGGINGFACE: Rules = (
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (rf"patch_embed\.proj\.{ENDS}", r"embeddings.patch_embeddings.projection.\1"),
    *part_rules(VIT_BLOCK, r"encoder.layer.\1", HUGGINGFACE_BLOCK | qkv_names("attention.attention")),
    (rf"norm\.{ENDS}", r"layernorm.\1"),
)
DINOV2_HUGGINGFACE: Rules = (
    (r"reg_token", "embeddings.register_tokens"),
    (rf"blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.{ENDS}", r"encoder.layer.\1.\2.\3"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    *VIT_HUGGINGFACE,
)
SWIN_HUGGINGFACE: Rules = (
    (rf"patch_embed\.proj\.{ENDS}", r"embeddings.patch_embeddings.projection.\1"),
    (rf"patch_embed\.norm\.{ENDS}", r"embeddings.norm.\1"),
    (rf"layers\.(\d+)\.downsample\.(norm|reduction)\.{ENDS}", r"encoder.layers.\1.downsample.\2.\3"),
    *part_rules(SWIN_BLOCK, r"encoder.layers.\1.blocks.\2", HUGGINGFACE_BLOCK | qkv_names("attention.self")),
    (
        rf"{SWIN_BLOCK}\.attn\.relative_position_bias_table",
        r"encoder.layers.\1.blocks.\2.attention.self.relative_position_bias_table",
    ),
    (rf"norm\.{ENDS}", r"layernorm.\1"),
)
VIT_OPENMMLAB: Rules = (
    (r"cls_token|pos_embed", r"\g<0>"),
    (rf"patch_embed\.proj\.{ENDS}", r"patch_embed.projection.\1"),
    *part_rules(VIT_BLOCK, r"layers.\1", OPENMMLAB_MLP | {"norm1": "ln1", "norm2": "ln2"}),
    (rf"{VIT_BLOCK}\.attn\.(qkv|proj)\.{ENDS}", r"layers.\1.attn.\2.\3"),
    (rf"norm\.{ENDS}", r"ln1.\1"),
)
SWIN_OPENMMLAB: Rules = (
    (rf"patch_embed\.proj\.{ENDS}", r"patch_embed.projection.\1"),
    (rf"patch_embed\.norm\.{ENDS}", r"patch_embed.norm.\1"),
    (rf"layers\.(\d+)\.downsample\.(norm|reduction)\.{ENDS}", r"stages.\1.downsample.\2.\3"),
    *part_rules(SWIN_BLOCK, r"stages.\1.blocks.\2", OPENMMLAB_MLP | {"norm1": "norm1", "norm2": "norm2"}),
    (
        rf"{SWIN_BLOCK}\.attn\.(qkv\.{ENDS}|proj\.{ENDS}|relative_position_bias_table)",
        r"stages.\1.blocks.\2.attn.w_msa.\3",
    ),
)


def vit_to_huggingface(weights: Weights) -> Weights:
    """transformers' `ViTModel`. Its pooler becomes the identity, so that `pooler_output` is [CLS]."""
    width = weights["cls_token"].shape[-1]
    pooler = {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    return renamed(split_qkv(weights), VIT_HUGGINGFACE) | pooler


def dinov2_to_huggingface(weights: Weights) -> Weights:
    """transformers' `Dinov2Model`, or with registers.

    With registers timm adds the position of [CLS] to its token there, and has no mask token.
    """
    found = renamed(split_qkv(weights), DINOV2_HUGGINGFACE)
    found["embeddings.mask_token"] = torch.zeros(1, weights["cls_token"].shape[-1])
    if "reg_token" in weights:
        at = "embeddings.position_embeddings"
        found[at] = torch.cat([torch.zeros_like(weights["cls_token"]), found[at]], dim=1)
    return found


def swin_to_huggingface(weights: Weights) -> Weights:
    """transformers' `SwinModel`."""
    return renamed(split_qkv(layouts.to_original(weights)), SWIN_HUGGINGFACE)


def vit_to_openmmlab(weights: Weights) -> Weights:
    """MMPretrain's `VisionTransformer`."""
    return renamed(weights, VIT_OPENMMLAB)


def swin_to_openmmlab(weights: Weights, stages: int) -> Weights:
    """MMPretrain's `SwinTransformer` (also MMDetection's and MMSegmentation's): it gathers four patches in another order."""
    theirs = layouts.to_original(weights)
    reordered = {name: _unfolded(weight) if ".downsample." in name else weight for name, weight in theirs.items()}
    return renamed(reordered, (*SWIN_OPENMMLAB, (rf"norm\.{ENDS}", rf"norm{stages - 1}.\1")))


def _unfolded(weight: Tensor) -> Tensor:
    """The last axis holds four patches one after the other, first down, then across; theirs goes channel by channel."""
    four = weight.unflatten(-1, (2, 2, -1))  # across, down, channel
    return four.movedim(-1, -3).transpose(-1, -2).flatten(-3)


def huggingface_config(shape: Mapping[str, Any], registers: int) -> dict[str, Any]:
    """`config.json` of the transformers model that belongs to a shape."""
    common = {
        "image_size": shape["image_size"],
        "patch_size": shape["patch_size"],
        "num_channels": shape["channels"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
    }
    if shape["depths"]:
        stages = layouts.swin_stages(shape)
        return common | {
            "architectures": ["SwinModel"],
            "model_type": "swin",
            "embed_dim": stages.widths[0],
            "hidden_size": shape["embed_dim"],
            "depths": list(shape["depths"]),
            "num_heads": list(stages.heads),
            "window_size": shape["window"],
            "mlp_ratio": 4.0,
            "drop_path_rate": 0.0,
            "use_absolute_embeddings": False,
        }
    sizes = {
        "hidden_size": shape["embed_dim"],
        "num_hidden_layers": shape["depth"],
        "num_attention_heads": shape["num_heads"],
    }
    if "dinov2" not in shape["arch"]:
        more = {"intermediate_size": 4 * shape["embed_dim"], "pooler_act": "linear", "pooler_output_size": shape["embed_dim"]}
        return common | sizes | more | {"architectures": ["ViTModel"], "model_type": "vit"}
    kind: dict[str, Any] = {"architectures": ["Dinov2Model"], "model_type": "dinov2"}
    if registers:
        kind = {
            "architectures": ["Dinov2WithRegistersModel"],
            "model_type": "dinov2_with_registers",
            "num_register_tokens": registers,
        }
    return common | sizes | kind | {"mlp_ratio": 4}


def huggingface_processor(shape: Mapping[str, Any], resize: int) -> dict[str, Any]:
    """`preprocessor_config.json`: the probes' own view of an image."""
    size = shape["image_size"]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resize},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(shape["mean"]),
        "image_std": list(shape["std"]),
    }


def timm_config(shape: Mapping[str, Any], resize: int) -> dict[str, Any]:
    """`config.json` of timm: the architecture, its arguments, and the probes' own view of an image.

    It cannot state the epsilon of a Swin's norms, which is 1e-5 there and 1e-6 in the original: the card's lines do.
    """
    size = shape["image_size"]
    return {
        "architecture": reload.timm_name(shape),
        "num_classes": 0,
        "num_features": shape["embed_dim"],
        "model_args": reload.timm_arguments(shape),
        "pretrained_cfg": {
            "tag": "ibot",
            "num_classes": 0,
            "input_size": [shape["channels"], size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": size / resize,
            "mean": list(shape["mean"]),
            "std": list(shape["std"]),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
