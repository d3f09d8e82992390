"""From scores of windows to mIoU over whole images.

w windows, k classes, s side of a window, b images.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from checkpoints.cli import WorkError
from probes.segment.features import Seen
from probes.shared import windows
from probes.shared.label_rule import NOTHING

SHARP: dict[str, dict[str, bool]] = {"bilinear": {"align_corners": False}}
Scores = Callable[[Tensor], Tensor]
"""Scores of the classes [w, k, side, side] from features of windows [w, n, d]."""


class Confusion:
    """Counts of pixels: rows are classes, columns what was said."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.long)

    def add(self, said: Int[Tensor, "b h w"], labels: Int[Tensor, "b h w"]) -> None:
        known = labels != NOTHING
        flat = labels[known].cpu() * len(self.counts) + said[known].cpu()
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts)

    def metrics(self) -> dict[str, float]:
        """Percent: `miou` over the classes that occur in labels or predictions, `macc` in labels, `aacc` over pixels.

        Raises WorkError where no pixel has a label.
        """
        right, is_there = self.counts.diag().double(), self.counts.sum(dim=1).double()
        union = is_there + self.counts.sum(dim=0) - right
        if not is_there.any():
            raise WorkError("no pixel of these images has a label: there is nothing to measure")
        iou, accuracy = (right / union)[union > 0], (right / is_there)[is_there > 0]
        aacc = right.sum() / is_there.sum()
        return {"miou": 100 * iou.mean().item(), "macc": 100 * accuracy.mean().item(), "aacc": 100 * aacc.item()}


class Measured(NamedTuple):
    """Counts on the test images, the setting they are of, and the mIoU of every setting that was tried on held-out images."""

    setting: str
    confusion: Confusion
    tried: dict[str, float]


@torch.no_grad()
def add_whole(confusion: Confusion, one: Seen, labels: Tensor, scores: Scores, size: int, mode: str) -> bool:
    """Count the answers for one image at the size of its label map; whether all scores are finite."""
    every = F.interpolate(scores(one.features), size=(size, size), mode=mode, **SHARP.get(mode, {}))
    whole = windows.joined(every, one.where, one.height, one.width)
    answers = F.interpolate(whole[None], size=labels.shape, mode=mode, **SHARP.get(mode, {}))[0]
    confusion.add(answers.argmax(dim=0)[None].cpu(), labels[None])
    return bool(answers.isfinite().all())
