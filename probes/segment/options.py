"""Options of the frozen probe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probes.shared.label_rule import NOTHING


@dataclass(frozen=True)
class SegmentOptions:
    """One number for dense features, in minutes: mIoU of a frozen backbone."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME, hf:OWNER/NAME, torchvision:NAME,
    python:FILE.py:FUNCTION (docs/backbones.md; default: the newest run)."""
    data: str = "sample"
    """`sample`, or a folder in ADE20K's layout: images/training, annotations/training, and the same with validation; pictures of
    any format, paired by name. classes.txt beside them: a name a line, or R G B NAME where label maps are in colours."""
    background: str | None = None
    """The label of pixels without a class, or `none`. Where it is 0, as in ADE20K (the default), label 1 is the first class, else
    label 0 is. It must be given where classes.txt or classes.json lists classes."""
    ignore: tuple[int, ...] = (NOTHING,)
    """Further void labels; 255 always is one."""
    head: Literal["linear", "knn"] = "linear"
    """Classifier of the patch tokens."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint."""
    size: int | None = None
    """Pixels of a window's side: images' shorter side is resized to it (default: 128 for the sample, else 512)."""
    epochs: int = 10
    """linear: passes over the training images."""
    lr: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """linear: peak learning rates of AdamW (cosine to zero); the best on held-out training images is trained again on all."""
    k: tuple[int, ...] = (20,)
    """knn: number of neighbours; of several the best on held-out training images is used with all."""
    held_out: float = 20.0
    """Percentage of the training images on which the learning rate or k is chosen, where there are several."""
    batch_size: int = 16
    """Windows a step."""
    images: int | None = None
    """Use only so many training images."""
    baseline: bool = False
    """Also measure the same backbone untrained."""
    seed: int = 0
    """Seed of the head, the order of images and the untrained backbone."""
    out: Path | None = None
    """The record (default: in results/ beside the checkpoint, under a name of its own)."""
