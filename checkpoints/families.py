"""Whose a backbone is, by its weights: its family in words, and timm's name of its architecture where it needs one.

What two architectures share is not guessed: CLIP's two activations, rotary positions of another base, heads of another width show
in no weight or in one alone, and a wrong choice would measure another network in silence.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from checkpoints import checked, layouts, reading
from checkpoints.architecture import is_timms
from checkpoints.cli import UserError

Weights = dict[str, Tensor]

DINOV2 = {384: "vit_small_patch14", 768: "vit_base_patch14", 1024: "vit_large_patch14", 1536: "vit_giant_patch14"}
DINOV3 = {
    (384, False): "vit_small_patch16_dinov3",
    (384, True): "vit_small_plus_patch16_dinov3",
    (768, False): "vit_base_patch16_dinov3",
    (1024, False): "vit_large_patch16_dinov3",
    (1280, True): "vit_huge_plus_patch16_dinov3",
    (4096, True): "vit_7b_patch16_dinov3",
}
"""By width, and whether its blocks have SwiGLU."""
ROPE_BASE = 100.0
HEADS = {1280: ("vit_huge_patch14_224", 32)}
"""Plain ViTs whose heads are not 64 wide, by their width: timm's name and number of blocks (MAE's ViT-H)."""
WIDTHS = {
    384: "small",
    768: "base",
    1024: "large",
    1152: "so400m",
    1280: "huge",
    1408: "giant",
    1536: "giantopt",
    1664: "gigantic",
}
CONVNEXTS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (3, 3, 9, 3)): "tiny",
    (96, (3, 3, 27, 3)): "small",
    (128, (3, 3, 27, 3)): "base",
    (192, (3, 3, 27, 3)): "large",
    (256, (3, 3, 27, 3)): "xlarge",
    (352, (3, 3, 27, 3)): "huge",
}
"""By width and blocks of the stages."""
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
"""By blocks of the stages, and whether they are bottlenecks."""


class Family(NamedTuple):
    """Whose a backbone is."""

    words: str
    arch: str = ""
    """timm's name, where the weights alone do not show the architecture."""


def whose(weights: Mapping[str, Tensor], arch: str, path: Path) -> Family:
    """The family of a backbone under timm's names or its authors'; `arch` is what the user named.

    Raises UserError where only a name can tell, with the names that come into question.
    """
    if layouts.is_swin(weights):
        return Family("a Swin backbone (the original iBOT's, EsViT's or timm's)")
    if layouts.is_plain(weights):
        return Family("a ViT backbone (iBOT's, DINO's, MAE's, MoCo v3's or timm's)", arch or _of_other_heads(weights))
    if arch:
        return Family(f"a backbone of timm's {arch}", arch)
    found = (
        _dinov2(weights, path) or _dinov3(weights, path) or _siglip(weights, path) or _convnext(weights, path) or _resnet(weights)
    )
    if found:
        return found
    arch = _named_beside(path)
    if not arch:
        raise UserError(_ask(weights, path))
    return Family(f"a backbone of timm's {arch}", arch)


def _of_other_heads(weights: Mapping[str, Tensor]) -> str:
    arch, blocks = HEADS.get(weights["pos_embed"].shape[-1], ("", 0))
    return arch if f"blocks.{blocks - 1}.norm1.weight" in weights else ""


def _width(weights: Mapping[str, Tensor], path: Path) -> int:
    """Width of the class token; 0 without one."""
    return checked.part(weights, "cls_token", path, 1, 1, None).shape[-1] if "cls_token" in weights else 0


def _dinov2(weights: Mapping[str, Tensor], path: Path) -> Family | None:
    width = _width(weights, path)
    if "mask_token" not in weights or "blocks.0.ls1.gamma" not in weights or "pos_embed" not in weights or width not in DINOV2:
        return None
    registers = checked.part(weights, "register_tokens", path, 1, None, width) if "register_tokens" in weights else None
    end = "_dinov2" if registers is None else f"_reg{registers.shape[1]}_dinov2"
    return Family("a backbone of DINOv2", DINOV2[width] + end)


def _dinov3(weights: Mapping[str, Tensor], path: Path) -> Family | None:
    """Meta's own file, as `dinov3` below leaves it."""
    if not is_dinov3(weights):
        return None
    width = _width(weights, path)
    arch = DINOV3.get((width, "blocks.0.mlp.w1.weight" in weights))
    biased = any(name.endswith("attn.qkv.bias") for name in weights)
    if arch is None or (biased and not is_timms(f"{arch}_qkvb")):
        raise UserError(f"{path} is a backbone of DINOv3 of a size that timm has not ({width} wide): it cannot be used here")
    return Family("a backbone of DINOv3", f"{arch}_qkvb" if biased else arch)


def is_dinov3(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are a DINOv3 ViT's under Meta's names."""
    return "storage_tokens" in weights and "blocks.0.ls1.gamma" in weights and "pos_embed" not in weights


def dinov3(weights: Mapping[str, Tensor], constants: Mapping[str, Tensor], path: Path) -> tuple[Weights, list[str]]:
    """A DINOv3's weights without its mask token and biases that are zero, and the names of what was left out.

    `constants` holds what files carry besides: periods of the rotary positions, masks of the keys' biases. Raises UserError for
    what timm's model does not compute: periods of another base, a bias of the keys.
    """
    kept, ignored = dict(weights), ["mask_token"] * ("mask_token" in weights)
    kept.pop("mask_token", None)
    periods = constants.get("rope_embed.periods")
    if periods is not None:
        number = torch.arange(len(periods), dtype=torch.float32)
        if not torch.allclose(periods.float(), ROPE_BASE ** (number / len(periods)), rtol=1e-2):
            raise UserError(
                f"{path}: its rotary positions are not those of the published DINOv3 (base 100): it cannot be used here"
            )
    biases = {name: weight for name, weight in kept.items() if name.endswith("attn.qkv.bias")}
    for name, bias in biases.items():
        mask = constants.get(f"{name}_mask")
        kept[name] = bias if mask is None or not bool(mask.isfinite().all()) else bias * mask
        if bool(kept[name].chunk(3)[1].any()):
            raise UserError(f"{path}: {name} has a bias of the keys, which timm's DINOv3 has not: it cannot be used here")
    if not any(bool(kept[name].any()) for name in biases):
        kept = {name: weight for name, weight in kept.items() if name not in biases}
    return kept, ignored


def _siglip(weights: Mapping[str, Tensor], path: Path) -> Family | None:
    if "attn_pool.latent" not in weights or "pos_embed" not in weights or "cls_token" in weights:
        return None
    arch = sized(weights, "siglip", path)
    return Family("the vision tower of a SigLIP", arch) if arch else None


def sized(weights: Mapping[str, Tensor], kind: str, path: Path) -> str:
    """timm's name of a ViT of that kind by its width, patches and image size; empty for one that timm has not."""
    width, _, patch, _ = checked.part(weights, "patch_embed.proj.weight", path, None, None, None, None).shape
    tokens = checked.part(weights, "pos_embed", path, 1, None, None).shape[1] - ("cls_token" in weights)
    name = f"vit_{WIDTHS.get(width, '')}_patch{patch}_{kind}_{math.isqrt(max(tokens, 0)) * patch}"
    return name if is_timms(name) else ""


def _convnext(weights: Mapping[str, Tensor], path: Path) -> Family | None:
    if not layouts.is_convnext(weights):
        return None
    first = next(name for name in ("downsample_layers.0.0.weight", "stem.0.weight") if name in weights)
    stages = _stages(weights, r"stages\.([0-3])\.(?:blocks\.)?(\d{1,3})\..*(?:dwconv|conv_dw)\.weight")
    size = CONVNEXTS.get((checked.part(weights, first, path, None, None, None, None).shape[0], stages))
    second = any(".grn." in name for name in weights)
    arch = f"convnext{'v2' if second else ''}_{size}"
    return Family(f"a ConvNeXt backbone{' V2' if second else ''} (Meta's, DINOv3's or timm's)", arch) if is_timms(arch) else None


def _resnet(weights: Mapping[str, Tensor]) -> Family | None:
    stages = _stages(weights, r"layer([1-4])\.(\d{1,3})\.conv1\.weight")
    arch = RESNETS.get((stages, "layer1.0.conv3.weight" in weights))
    return Family("a ResNet backbone (torchvision's, MoCo v3's, DINO's or timm's)", arch) if arch else None


def _stages(weights: Mapping[str, Tensor], pattern: str) -> tuple[int, ...]:
    """Number of blocks in each stage."""
    found = [match[1] for match in map(re.compile(pattern).fullmatch, weights) if match]
    return tuple(found.count(stage) for stage in sorted(set(found)))


def _named_beside(path: Path) -> str:
    """The architecture that a `config.json` in the file's folder names, as timm writes it."""
    try:
        return str(reading.values(path.parent / "config.json").get("architecture", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _ask(weights: Mapping[str, Tensor], path: Path) -> str:
    """A sentence that asks for timm's name."""
    if "norm_pre.weight" in weights and "pos_embed" in weights and "cls_token" in weights:
        both = [name for name in (sized(weights, kind, path) for kind in ("clip_quickgelu", "clip")) if name]
        if both:
            which = " or ".join(f"--ckpt timm:{name}@{path}" for name in both)
            return (
                f"{path} is the vision tower of a CLIP, and no weight shows its activation: give {which} (QuickGELU is OpenAI's)"
            )
    return (
        f"{path} is a backbone that its weights alone do not name (it begins with {', '.join(list(weights)[:4])}): give timm's "
        f"name of it, --ckpt timm:NAME@{path} (names: python -c \"import timm; print(timm.list_models('vit*'))\")"
    )
