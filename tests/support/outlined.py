"""Checkpoints of the paper's architectures whose weights take no room: for what is planned, not computed."""

from pathlib import Path
from typing import Any

import torch

from checkpoints.architecture import shape_of
from checkpoints.published import Contents
from pretrain.models.backbone import Loaded, make

ARCHS = {"vit_small": 16, "vit_base": 16, "vit_large": 16, "swin_tiny": 4}


def checkpoint_of(arch: str, path: Path, *, head: bool = True) -> Loaded:
    """A checkpoint of this architecture whose weights take no room."""
    with torch.device("meta"):
        backbone = make(shape_of(arch, ARCHS[arch], 224), maskable=False)
    both = {"teacher": {"head.mlp.0.weight": torch.zeros(1)} if head else {}}
    return Loaded(backbone, path, 3, Contents("", both | {"student": both["teacher"]}))


def small_of(arch: str, width: int | None = None) -> Any:
    """A backbone alone, with patches of 16 pixels; a head is 64 wide."""
    with torch.device("meta"):
        return make(shape_of(arch, 16, 224, width=width), maskable=False)
