"""Dense self-distillation in place of masks (App. E): every patch of one view learns from its match in another.

Nothing is masked. The match is the patch at the same place of the image ("DINO + pos.": patches whose place the other crop lacks
do not count), or the one with the most similar token of the teacher's backbone ("DINO + feat.").

v global views, b images, n = g x g patches, d width, k prototypes. A view's partner is the next one, the first after the last.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pretrain.batches.dataset import Batch, Placed
from pretrain.batches.masking import Masks
from pretrain.method import ibot
from pretrain.method.ibot import STUDENT_TEMPERATURE, Centres, Losses, StudentOutput, Targets, TeacherOutput
from pretrain.method.objective import Objective, with_patch_loss
from pretrain.method.schedule import ScheduleValues


class Dense(Objective):
    """`by` is `position` or `feature`."""

    def __init__(self, by: str) -> None:
        self.by = by

    def masks(self, batch: Batch) -> Masks:
        """No patch is masked; a loss is computed for every patch."""
        grid = torch.zeros_like(batch.masks.grid)
        indices = torch.arange(grid.numel(), device=grid.device)
        return Masks(grid, indices, torch.full(indices.shape, 1.0 / len(indices), device=grid.device))

    def teacher_forward(self, teacher: torch.nn.Module, batch: Batch, masks: Masks | None) -> TeacherOutput:
        return teacher(batch.crops, masks, patch_features=self.by == "feature")

    @torch.no_grad()
    def targets(self, output: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        """iBOT's of [CLS]; of each patch that of its match in the view's partner."""
        targets = ibot.center_and_sharpen(output, centres, now.cls_temperature, now.patch_temperature)
        if masks is None:
            return targets
        views, images, side, _ = masks.grid.shape
        if self.by == "feature":
            assert output.patch_features is not None
            match = most_similar(output.patch_features)
        else:
            assert batch.placed is not None
            match = same_place(batch.placed, side)[0]
        of_partner = targets.patches.unflatten(0, (views, images, side * side)).roll(-1, dims=0)  # [v, b, n, k]
        matched = of_partner.gather(2, match[..., None].expand(-1, -1, -1, of_partner.shape[-1]))
        return targets._replace(patches=matched.flatten(0, 2))

    def losses(
        self, output: StudentOutput, targets: Targets, batch: Batch, masks: Masks | None, cls_weight: float, patch_weight: float
    ) -> Losses:
        """Mean over the patches of a view that have a match, then over views and images; views without any count as zero."""
        if masks is None:
            return super().losses(output, targets, batch, masks, cls_weight, patch_weight)
        views, images, side, _ = masks.grid.shape
        has_match = torch.ones(views, images, side * side, dtype=torch.bool, device=masks.grid.device)
        if self.by == "position":
            assert batch.placed is not None
            has_match = same_place(batch.placed, side)[1]
        of_patches = -(targets.patches * F.log_softmax(output.patches.float() / STUDENT_TEMPERATURE, dim=-1)).sum(dim=-1)
        of_patches = of_patches.unflatten(0, (views, images, side * side)) * has_match
        patch = (of_patches.sum(-1) / has_match.sum(-1).clamp(min=1)).mean()
        return with_patch_loss(output, targets, patch, cls_weight, patch_weight)


def most_similar(features: Float[Tensor, "v b n d"]) -> Int[Tensor, "v b n"]:
    """For each patch the index of the patch in its view's partner whose token has the largest cosine similarity."""
    tokens = F.normalize(features.float(), dim=-1)
    return (tokens @ tokens.roll(-1, dims=0).transpose(2, 3)).argmax(dim=-1)


def same_place(placed: Placed, side: int) -> tuple[Int[Tensor, "v b n"], Bool[Tensor, "v b n"]]:
    """For each patch the index of the patch in its view's partner that contains its centre, and whether there is one."""
    # centres of the patches, in coordinates of the crop (0 to 1), then of the image, then of the partner
    middle = (torch.arange(side, device=placed.box.device) + 0.5) / side
    left, upper, width, height = (part[..., None] for part in placed.box.float().unbind(-1))
    across = torch.where(placed.flip[..., None], 1 - middle, middle)
    x = (left + across * width)[..., None, :].expand(-1, -1, side, side)
    y = (upper + middle * height)[..., None].expand(-1, -1, side, side)
    left, upper, width, height = (part.roll(-1, dims=0)[..., None] for part in (left, upper, width, height))
    column, row = (x - left) / width, (y - upper) / height
    column = torch.where(placed.flip.roll(-1, dims=0)[..., None, None], 1 - column, column)
    column, row = (column * side).floor().long(), (row * side).floor().long()
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    number = row.clamp(0, side - 1) * side + column.clamp(0, side - 1)
    return number.flatten(2), inside.flatten(2)
