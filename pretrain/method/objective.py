"""One batch's forward passes, targets and losses: `Objective` has a method for each, `forward_and_losses` their order.

`Objective` is iBOT's. Each system that the paper compares with it (Tables 9, 17, 18, 20, App. B and E) replaces one or two acts,
in `hard_labels.py`, `targets.py`, `dense.py` and `masked_crops.py` beside this file.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.batches.dataset import Batch
from pretrain.batches.masking import Masks
from pretrain.engine.precision import Precision
from pretrain.method import ibot
from pretrain.method.ibot import Centres, Losses, StudentOutput, Targets, Teacher, TeacherOutput
from pretrain.method.schedule import ScheduleValues


class LossWeights(NamedTuple):
    """Weights of both losses, and the largest norm of a gradient tensor (0: not clipped); the same in every step."""

    cls: float = 1.0
    patch: float = 1.0
    clip_grad: float = 3.0


class Objective:
    """iBOT (paper, section 3.1): the student predicts, at masked patches, the teacher's output for the whole crop."""

    patch_prototypes: int | None = None
    """Number of patch prototypes where the targets decide it; None: --patch-out-dim does."""
    digest = ""
    """SHA-256 of the file that the targets come from; empty without one."""
    fixed_shapes = True
    """Whether all steps have the same shapes once masked patches are padded."""
    padded_to: int | None = None
    """To how many masked patches a batch is padded, where heads and losses are compiled (`compiled.py`)."""
    judge: Callable[..., tuple[Targets, Losses]] | None = None
    """Targets and losses as one compiled function, where they are."""

    @property
    def is_plain(self) -> bool:
        """Whether targets and losses are iBOT's."""
        return type(self).targets is Objective.targets and type(self).losses is Objective.losses

    def masks(self, batch: Batch) -> Masks:
        """Patches that the student does not see, and patches for which a loss is computed."""
        return batch.masks

    def teacher_forward(self, teacher: torch.nn.Module, batch: Batch, masks: Masks | None) -> TeacherOutput:
        """The teacher's logits, computed under autocast."""
        return teacher(batch.crops, masks)

    def student_forward(self, student: torch.nn.Module, batch: Batch, masks: Masks | None) -> StudentOutput:
        """The student's logits, computed under autocast."""
        return student(batch.crops, masks, batch.local_crops)

    def targets(self, output: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        """Target distributions for the student, rows of which sum to one, without gradients."""
        return ibot.center_and_sharpen(output, centres, now.cls_temperature, now.patch_temperature)

    def losses(
        self, output: StudentOutput, targets: Targets, batch: Batch, masks: Masks | None, cls_weight: float, patch_weight: float
    ) -> Losses:
        """Both losses times their weights, and their sum."""
        return ibot.losses(output, targets, masks, cls_weight, patch_weight)


IBOT = Objective()


class BatchOutput(NamedTuple):
    """One batch's outputs, targets and losses."""

    student: StudentOutput
    teacher: TeacherOutput
    targets: Targets
    losses: Losses


def forward_and_losses(
    student: torch.nn.Module,
    teacher: Teacher,
    batch: Batch,
    now: ScheduleValues,
    precision: Precision,
    objective: Objective,
    cls_weight: float,
    patch_weight: float,
) -> BatchOutput:
    """The body of Algorithm 1 up to `backward`, which `losses.total` waits for."""
    # masks: which patches of the global crops the student does not see; none before --pred-start-epoch
    masks = objective.masks(batch) if now.masking else None
    count = len(masks.indices) if masks is not None else 0
    if masks is not None and objective.padded_to is not None:
        masks = masks.padded(objective.padded_to)
    # teacher: logits of the unmasked global crops; student: logits of masked global crops and of local crops
    seen = batch
    if objective.is_plain and precision.low is not None:  # as the patch embedding rounds them, once for both networks
        seen = batch._replace(crops=batch.crops.to(precision.low), local_crops=batch.local_crops.to(precision.low))
    with precision.autocast():
        teacher_output = objective.teacher_forward(teacher, seen, masks)
        student_output = objective.student_forward(student, seen, masks)
    if objective.judge is not None:  # the same as below, compiled
        temperatures = [batch.crops.new_full((), value) for value in (now.cls_temperature, now.patch_temperature)]
        found = objective.judge(student_output, teacher_output, teacher.centres, *temperatures, masks, cls_weight, patch_weight)
        return BatchOutput(student_output, teacher_output, without_padding(found[0], count), found[1])
    # targets: the teacher's logits, centred and sharpened
    targets = objective.targets(teacher_output, batch, masks, teacher.centres, now)
    # losses: cross-entropy of [CLS] over other views (equation 2), of masked patches in place (equation 3)
    losses = objective.losses(student_output, targets, batch, masks, cls_weight, patch_weight)
    return BatchOutput(student_output, teacher_output, without_padding(targets, count), losses)


def without_padding(targets: Targets, count: int) -> Targets:
    """The targets of the `count` masked patches: the log's measurements are of those."""
    return targets._replace(patches=targets.patches[:count])


def with_patch_loss(
    output: StudentOutput, targets: Targets, patch_loss: Tensor, cls_weight: float, patch_weight: float
) -> Losses:
    """iBOT's [CLS] loss and another patch loss, times their weights, and their sum."""
    cls, patch = cls_weight * ibot.cls_loss(output.cls, targets.cls), patch_weight * patch_loss
    return Losses(cls + patch, cls, patch)
