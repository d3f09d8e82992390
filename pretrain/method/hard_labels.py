"""Hard or soft patch targets, centred or not (App. E, Table 18). Targets of [CLS] stay iBOT's.

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
    """`hard`: one-hot at the teacher's largest logit. Not `centred`: softmax and sharpening only.

    The table's softmax without sharpening is --teacher-patch-temp 0.1, the student's temperature.
    """

    def __init__(self, *, hard: bool, centred: bool) -> None:
        self.hard, self.centred = hard, centred

    @torch.no_grad()
    def targets(self, output: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        soft = super().targets(output, batch, masks, centres, now)
        logits = output.patches - centres.patch[0] if self.centred else output.patches.float()
        if self.hard:
            return soft._replace(patches=F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype))
        return soft._replace(patches=F.softmax(logits / now.patch_temperature, dim=-1))
