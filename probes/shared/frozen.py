"""Shared by commands with views of their own: options, and the frozen backbone on its device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from checkpoints.cli import UserError
from pretrain.images.values import refuse_range
from pretrain.models.backbone import Backbone, Loaded, load_backbone
from probes.shared.subject import named_device


@dataclass(frozen=True)
class Frozen:
    """Options of every such command."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME (default: the newest run)."""
    data: str = "sample"
    """`sample`, or a folder in the layout that this command's page describes (docs/robustness-and-pictures.md)."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint."""
    limit: int | None = None
    """Use at most this many of each part."""
    batch_size: int = 64
    """Images a forward."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:1`, ... (default: a GPU where there is one)."""
    seed: int = 0
    """Seed of all random draws."""
    out: Path | None = None
    """Output file or folder (default: results/ beside the checkpoint)."""


class Subject(NamedTuple):
    """A frozen backbone and where it lies."""

    loaded: Loaded
    device: torch.device

    @property
    def backbone(self) -> Backbone:
        return self.loaded.backbone


def open_subject(options: Frozen, *, full: bool = False) -> Subject:
    """The backbone that the options name; `full` reads heads too. Raises UserError for values without meaning."""
    device = named_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded = load_backbone(options.ckpt, key=options.key, full=full)
    if loaded.backbone.shape.channels != 3:
        raise UserError(f"{loaded.path} takes {loaded.backbone.shape.channels} channels: this command is for pictures of three")
    refuse_range(loaded.backbone.shape, loaded.path)
    return Subject(loaded._replace(backbone=loaded.backbone.to(device)), device)
