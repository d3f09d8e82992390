"""The method as the paper's pseudo-code says it (Algorithm 1), everything on all tokens: slow, and what ours must equal.

It shares the networks' weights with ours and nothing of the step: prototypes for every patch, the patch centre as the mean of
their logits, masks applied to the loss at the end. v views, b images, n patches, k prototypes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.batches.dataset import Batch
from pretrain.method.ibot import Student, Teacher


class Plain(NamedTuple):
    """The step's losses and the means that move the centres."""

    total: Tensor
    cls: Tensor
    patch: Tensor
    cls_mean: Tensor
    patch_mean: Tensor


def step(student: Student, teacher: Teacher, batch: Batch, cls_temperature: float, patch_temperature: float) -> Plain:
    """Forward and both losses; call `.total.backward()` for the gradients."""
    views, images = batch.crops.shape[:2]
    crops, mask = batch.crops.flatten(0, 1), batch.masks.grid.flatten(0, 1)
    with torch.no_grad():
        bottleneck = teacher.head.bottleneck(teacher.backbone(crops))
        teacher_cls, teacher_patches = teacher.head.cls(bottleneck[:, 0]).float(), teacher.head.patches(bottleneck[:, 1:]).float()
    bottleneck = student.head.bottleneck(student.backbone(crops, mask))
    student_cls, student_patches = [student.head.cls(bottleneck[:, 0])], student.head.patches(bottleneck[:, 1:]).float()
    for view in batch.local_crops:
        bottleneck = student.head.bottleneck(student.backbone(view))
        student_cls.append(student.head.cls(bottleneck[:, 0]))
        student.head.patches(bottleneck[:, 1:])  # the original computes and forgets these
    answers = torch.cat(student_cls).float().unflatten(0, (-1, images))
    targets = F.softmax((teacher_cls - teacher.centres.cls) / cls_temperature, dim=-1).unflatten(0, (views, images))
    patch_targets = F.softmax((teacher_patches - teacher.centres.patch) / patch_temperature, dim=-1)
    cls, pairs = torch.zeros(()), 0
    for q in range(views):
        for v in range(len(answers)):
            if v != q:
                cls = cls + torch.sum(-targets[q] * F.log_softmax(answers[v] / 0.1, dim=-1), dim=-1).mean()
                pairs += 1
    each = torch.sum(-patch_targets * F.log_softmax(student_patches / 0.1, dim=-1), dim=-1)
    flat = mask.flatten(1).float()
    patch = (torch.sum(each * flat, dim=-1) / flat.sum(dim=-1).clamp(min=1.0)).mean()
    cls = cls / pairs
    return Plain(cls + patch, cls, patch, teacher_cls.mean(dim=0), teacher_patches.mean(dim=(0, 1)))
