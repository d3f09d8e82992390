"""Backbones in files of other projects, whatever trained them: found, renamed, strictly used, and what was left out is named."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from checkpoints import checked, clip, families, huggingface, layouts, nests
from checkpoints.architecture import is_timms, timm_model
from checkpoints.cli import UserError

Weights = dict[str, Tensor]
MOCO_SMALL = 384, 12
"""Width and heads of MoCo v3's ViT-S, which are 32 wide; every other plain ViT of that width has six."""


class Found(NamedTuple):
    """The backbones of a file."""

    networks: dict[str, Weights]
    """`only` one, or `student` and `teacher`, under our names."""
    family: families.Family
    heads: int
    """Attention heads where neither the weights nor the architecture's name show them, else 0."""
    ignored: tuple[str, ...]
    """Weights that are no part of them."""


def find(content: Mapping[str, Any], path: Path, arch: str) -> Found:
    """The backbones in nested dicts. `arch` is timm's name of their architecture, where the user or the file gives one.

    Raises UserError for a file that holds none, holds several that could be meant, or was trained on for another task.
    """
    every = nests.joined(content)
    nests.refuse_other_tasks(every, path)
    found = nests.networks(_roots(every, path, arch), path)
    names = {key: nests.under(root, every, path) for key, root in found.items()}
    renamed = {key: _ours({name: every[theirs] for name, theirs in below.items()}, path) for key, below in names.items()}
    used = {theirs for key, below in names.items() for name, theirs in below.items() if name not in renamed[key][1]}
    ignored = [name.replace("/", ".") for name in every if name not in used]
    weights = renamed.get("teacher", next(iter(renamed.values())))[0]
    openai = {re.split(r"[./]", name)[-1] for name in every} >= clip.OPENAI
    family = families.whose(weights, arch or (_openais(weights, path) if openai else ""), path)
    heads = _heads(weights, any(root.endswith(("base_encoder.", "momentum_encoder.")) for root in found.values()), path)
    return Found({key: ours for key, (ours, _) in renamed.items()}, family, heads, tuple(ignored))


def _roots(every: Mapping[str, Tensor], path: Path, arch: str) -> list[str]:
    found = nests.roots(every, path)
    if not found and is_timms(arch):
        with torch.device("meta"):
            found = [nests.root_of(every, timm_model(arch).state_dict().keys())]
    if not found or not every:
        first = ", ".join(name[:100].replace("/", ".") for name in list(every)[:4])
        holds = f"its weights begin with {first} ({len(every)} in all)" if every else "it has no weights at all"
        raise UserError(
            f"{path} holds no backbone that is known here: {holds}; if timm has that architecture, give its name: timm:NAME@FILE"
        )
    return found


def _ours(weights: Weights, path: Path) -> tuple[Weights, list[str]]:
    """Weights under our names, and the names of those that are no backbone's."""
    left: tuple[str, ...] = ()
    renamed = weights
    if nests.HUGGINGFACE in weights:
        renamed, left = huggingface.to_ours(weights)
    elif "class_embedding" in weights:
        renamed, left = clip.to_ours(weights)
    ours, ignored = layouts.to_ours(renamed)
    more: list[str] = []
    if families.is_dinov3(ours):
        ours, more = families.dinov3(ours, weights, path)
    return ours, [*left, *ignored, *more]


def _openais(weights: Weights, path: Path) -> str:
    return families.sized(weights, "clip_quickgelu", path) if "norm_pre.weight" in weights else ""


def _heads(weights: Weights, moco: bool, path: Path) -> int:
    if not layouts.is_plain(weights):
        return 0
    width = checked.part(weights, "pos_embed", path, 1, None, None).shape[-1]
    return MOCO_SMALL[1] if moco and width == MOCO_SMALL[0] else huggingface.heads_beside(path)
