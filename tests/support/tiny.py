"""Checkpoints of tiny networks that the tests of frozen probes load, drawn from a seed."""

from pathlib import Path

import torch

from checkpoints import store
from checkpoints.architecture import Architecture, SwinSize, swin_shape
from pretrain.models.backbone import Backbone, make

TINY = Architecture("vit", 8, 32, 3, 64, 2, 1, init="fan_in")


def backbone(shape: Architecture = TINY, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return make(shape, maskable=False).eval().requires_grad_(False)


def write(path: Path, shape: Architecture = TINY) -> Path:
    """A backbone's file, as a run leaves it."""
    about = {"key": "teacher", "epoch": 3, "step": 30, "shape": shape._asdict()}
    store.save_backbone(path, backbone(shape).state_dict(), about)
    return path


def write_swin(path: Path) -> Path:
    return write(path, swin_shape("swin_tiny", SwinSize(32, (1, 1), 1), 4, 32, 4, 3))
