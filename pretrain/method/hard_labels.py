"""Hard against soft labels, centred or not: what Table 18 (App. E) varies of the targets of patches. [CLS] stays as it is.

m masked patches, k prototypes.
"""

import torch
import torch.nn.functional as F

from pretrain.batches.dataset import Batch
from pretrain.batches.masking import Masks
from pretrain.method.ibot import Centres, Targets, TeacherOutput
from pretrain.method.objective import Objective
from pretrain.method.schedule import ScheduleValues


class Labels(Objective):
    """`hard`: the teacher's first choice alone. Not `centred`: no centre is taken off, sharpening is all that is left.

    Softmax without sharpening is no switch but a temperature: the student's own, 0.1 (--teacher-patch-temp).
    """

    def __init__(self, *, hard: bool, centred: bool) -> None:
        self.hard, self.centred = hard, centred

    @torch.no_grad()
    def targets(self, answer: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        soft = super().targets(answer, batch, masks, centres, now)
        logits = answer.patches - centres.patch[0] if self.centred else answer.patches
        if self.hard:
            return soft._replace(patches=F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype))
        return soft._replace(patches=F.softmax(logits / now.patch_temperature, dim=-1))
