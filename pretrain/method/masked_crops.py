"""Masked image modelling on other crops than both global ones (App. B, Fig. 8): on all crops, or on one global crop."""

import torch

from pretrain.batches.dataset import Batch
from pretrain.batches.masking import Masks
from pretrain.method.ibot import Losses, StudentOutput, Targets, TeacherOutput, patch_loss
from pretrain.method.objective import Objective, with_patch_loss


class OneGlobal(Objective):
    """Variant (d): the first global crop alone is masked; its patch loss is the mean over its own images."""

    def masks(self, batch: Batch) -> Masks:
        """Of the other views nothing is masked; their indices stay, with weight zero, so that no size depends on the masks."""
        grid, indices, weight = batch.masks
        in_first_view = indices < grid[0].numel()
        first_grid = torch.zeros_like(grid)
        first_grid[0] = grid[0]
        return Masks(first_grid, indices, weight * in_first_view * len(grid))


class EveryCrop(Objective):
    """Variant (c): local crops are masked too; their targets are the teacher's output for the same local crop, unmasked.

    The patch loss is the mean over all crops, the centre's update that over all patches. The paper reports near collapse.
    """

    fixed_shapes = False

    def teacher_forward(self, teacher: torch.nn.Module, batch: Batch, masks: Masks | None) -> TeacherOutput:
        """Masked patches of global crops, then those of local crops, and the mean over the patches of both."""
        of_global: TeacherOutput = teacher(batch.crops, masks)
        if batch.local_masks is None or masks is None:
            return of_global
        of_local: TeacherOutput = teacher(batch.local_crops, batch.local_masks)
        share = masks.grid.numel() / (masks.grid.numel() + batch.local_masks.grid.numel())
        mean = share * of_global.patch_mean + (1 - share) * of_local.patch_mean
        return of_global._replace(patches=torch.cat([of_global.patches, of_local.patches]), patch_mean=mean)

    def student_forward(self, student: torch.nn.Module, batch: Batch, masks: Masks | None) -> StudentOutput:
        return student(batch.crops, masks, batch.local_crops, batch.local_masks if masks is not None else None)

    def losses(
        self, output: StudentOutput, targets: Targets, batch: Batch, masks: Masks | None, cls_weight: float, patch_weight: float
    ) -> Losses:
        if batch.local_masks is None or masks is None:
            return super().losses(output, targets, batch, masks, cls_weight, patch_weight)
        views, local = len(batch.crops), len(batch.local_crops)
        weights = [masks.weight * views, batch.local_masks.weight * local]
        both = masks._replace(weight=torch.cat(weights) / (views + local))
        return with_patch_loss(output, targets, patch_loss(output.patches, targets.patches, both), cls_weight, patch_weight)
