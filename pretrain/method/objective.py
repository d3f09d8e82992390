"""What a step asks of both networks and makes of their answers: the acts that systems compared with iBOT do otherwise.

`Objective` is iBOT's own, act by act. Each comparison (paper Tables 9, 17, 18, 20, App. B and E) replaces one or two of them,
in `hard_labels.py`, `targets.py`, `dense.py` and `masked_crops.py` beside this file.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.batches.dataset import Batch
from pretrain.batches.masking import Masks
from pretrain.method import ibot
from pretrain.method.ibot import Centres, Losses, StudentOutput, Targets, TeacherOutput
from pretrain.method.schedule import ScheduleValues


class LossWeights(NamedTuple):
    """Weights of both losses, and the largest norm of a gradient tensor (0: not clipped); the same in every step."""

    cls: float = 1.0
    patch: float = 1.0
    clip_grad: float = 3.0


class Objective:
    """iBOT (paper section 3.1): masked patches predict what the teacher says of the whole crop."""

    patch_prototypes: int | None = None
    """How many the targets of patches have, where it is not for the options to say."""
    digest = ""
    """Of what the targets depend on besides options and data."""

    def masks(self, batch: Batch) -> Masks:
        """Which patches the student does not see, and which it answers for."""
        return batch.masks

    def teacher_forward(self, teacher: torch.nn.Module, batch: Batch, masks: Masks | None) -> TeacherOutput:
        """The teacher's forward, under autocast."""
        return teacher(batch.crops, masks)

    def student_forward(self, student: torch.nn.Module, batch: Batch, masks: Masks | None) -> StudentOutput:
        """The student's forward, under autocast."""
        return student(batch.crops, masks, batch.local_crops)

    def targets(self, answer: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        """What the student is to say."""
        return ibot.center_and_sharpen(answer, centres, now.cls_temperature, now.patch_temperature)

    def losses(
        self, logits: StudentOutput, targets: Targets, batch: Batch, masks: Masks | None, cls: float, patch: float
    ) -> Losses:
        """Both losses, with their weights `cls` and `patch` in."""
        return ibot.losses(logits, targets, masks, cls, patch)


IBOT = Objective()


def with_patch_loss(logits: StudentOutput, targets: Targets, patch_loss: Tensor, cls: float, patch: float) -> Losses:
    """iBOT's [CLS] loss beside another one of patches, with their weights."""
    of_cls, of_patches = cls * ibot.cls_loss(logits.cls, targets.cls), patch * patch_loss
    return Losses(of_cls + of_patches, of_cls, of_patches)
