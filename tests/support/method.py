"""A small student, its teacher, and a batch."""

import torch

from checkpoints.architecture import Architecture
from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.method.heads import Head
from pretrain.method.ibot import Student, Teacher
from pretrain.models.vit import ViT

TINY = Architecture("vit_tiny", 8, 24, 3, 64, 2, 1)


def networks(**head: object) -> tuple[Student, Teacher]:
    torch.manual_seed(0)
    values = {"out_dim": 12, "patch_out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 8, "shared": True, "norm_last_layer": False}
    student = Student(ViT(TINY, maskable=True), Head(64, **{**values, **head}))
    teacher = Teacher(ViT(TINY, maskable=False), Head(64, **{**values, **head, "shared": True}))
    teacher.copy(student)
    return student, teacher


def batch(seed: int = 0, local_crops: int = 3) -> Batch:
    torch.manual_seed(seed)
    grid = torch.rand(2, 4, 3, 3) < 0.3
    grid[0, 0] = False
    return Batch(torch.randn(2, 4, 3, 24, 24), masking.as_masks(grid), torch.randn(local_crops, 4, 3, 16, 16))
