"""Which crops masked image modelling is done on (App. B, Fig. 8): all of them, or one global crop."""

import torch

from pretrain.batches.dataset import Batch
from pretrain.batches.masking import Masks
from pretrain.method.ibot import Losses, StudentOutput, Targets, TeacherOutput, patch_loss
from pretrain.method.objective import Objective, with_patch_loss


class OneGlobal(Objective):
    """Variant (d): the first global crop alone is masked; its patch loss is the mean over its own images."""

    def masks(self, batch: Batch) -> Masks:
        """The places stay as they are, so that no size depends on what was drawn; those of other views weigh nothing."""
        grid, indices, weight = batch.masks
        first = indices < grid[0].numel()
        only = torch.zeros_like(grid)
        only[0] = grid[0]
        return Masks(only, indices, weight * first * len(grid))


class EveryCrop(Objective):
    """Variant (c): local crops are masked as well, and their patches learn what the teacher says of the same local crop.

    The mean of the patch loss is over all crops, that of the patch centre over all patches. In the paper this nearly collapses.
    """

    def teacher_forward(self, teacher: torch.nn.Module, batch: Batch, masks: Masks | None) -> TeacherOutput:
        whole: TeacherOutput = teacher(batch.crops, masks)
        if batch.local_masks is None or masks is None:
            return whole
        small: TeacherOutput = teacher(batch.local_crops, batch.local_masks)
        share = masks.grid.numel() / (masks.grid.numel() + batch.local_masks.grid.numel())
        mean = share * whole.patch_mean + (1 - share) * small.patch_mean
        return whole._replace(patches=torch.cat([whole.patches, small.patches]), patch_mean=mean)

    def student_forward(self, student: torch.nn.Module, batch: Batch, masks: Masks | None) -> StudentOutput:
        return student(batch.crops, masks, batch.local_crops, batch.local_masks if masks is not None else None)

    def losses(
        self, logits: StudentOutput, targets: Targets, batch: Batch, masks: Masks | None, cls: float, patch: float
    ) -> Losses:
        if batch.local_masks is None or masks is None:
            return super().losses(logits, targets, batch, masks, cls, patch)
        views, local = len(batch.crops), len(batch.local_crops)
        weights = [masks.weight * views, batch.local_masks.weight * local]
        both = masks._replace(weight=torch.cat(weights) / (views + local))
        return with_patch_loss(logits, targets, patch_loss(logits.patches, targets.patches, both), cls, patch)
