"""Patch targets of another source than the run's teacher: codes of an offline tokenizer, or a fixed network (Tables 9, 20).

v views, b images, p patches, m masked patches, k codes or prototypes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from checkpoints import store
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain.batches.dataset import Batch
from pretrain.batches.masking import Masks
from pretrain.method import heads
from pretrain.method.ibot import Centres, Losses, StudentOutput, Targets, Teacher, TeacherOutput
from pretrain.method.objective import Objective, with_patch_loss
from pretrain.method.schedule import ScheduleValues
from pretrain.models.backbone import backbone_of, open_checkpoint
from pretrain.tokenizers.base import Tokenizer


class Codes(Objective):
    """BEiT: cross-entropy of each masked patch with its tokenizer code, without temperature or centre.

    The mean is iBOT's: over an image's masked patches, then over all images. The patch head is one linear layer on the backbone's
    token (`pretrain/method/other_heads.py`).
    """

    def __init__(self, tokenizer: Tokenizer, digest: str) -> None:
        self.tokenizer, self.digest = tokenizer, digest
        self.patch_prototypes = tokenizer.vocabulary

    @torch.no_grad()
    def targets(self, output: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        """iBOT's of [CLS]; of each masked patch its code, one-hot."""
        targets = super().targets(output, batch, masks, centres, now)
        if masks is None:
            return targets
        codes = self.tokenizer(batch.crops.flatten(0, 1), (masks.grid.shape[2], masks.grid.shape[3]))  # [v b, p]
        one_hot = F.one_hot(codes.flatten()[masks.indices], self.tokenizer.vocabulary)  # [m, k]
        return targets._replace(patches=one_hot.float())

    def losses(
        self, output: StudentOutput, targets: Targets, batch: Batch, masks: Masks | None, cls_weight: float, patch_weight: float
    ) -> Losses:
        if masks is None:
            return super().losses(output, targets, batch, masks, cls_weight, patch_weight)
        of_patches = -(targets.patches * F.log_softmax(output.patches.float(), dim=-1)).sum(dim=-1)  # [m], temperature one
        return with_patch_loss(output, targets, of_patches @ masks.weight, cls_weight, patch_weight)


class Frozen(Objective):
    """A trained, fixed network in the teacher's place, for patches only."""

    def __init__(self, network: Teacher, digest: str) -> None:
        self.network, self.digest = network.eval(), digest
        self.patch_prototypes = network.head.patch_out_dim

    def teacher_forward(self, teacher: nn.Module, batch: Batch, masks: Masks | None) -> TeacherOutput:
        """The run's own teacher's logits of [CLS], the fixed network's of patches."""
        output, fixed = teacher(batch.crops, masks), self.network(batch.crops, masks)
        return output._replace(patches=fixed.patches)

    @torch.no_grad()
    def targets(self, output: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        """iBOT's of [CLS]; of patches the fixed network's logits, less its own centre, sharpened."""
        targets = super().targets(output, batch, masks, centres, now)
        logits = output.patches - self.network.centres.patch[0]
        return targets._replace(patches=F.softmax(logits / now.patch_temperature, dim=-1))


def frozen(checkpoint: str, shape: Architecture, device: torch.device) -> Frozen:
    """The objective with a network of a full checkpoint, ours or a published one. A DINO's one head serves patches too.

    Raises UserError for a checkpoint without a head, or with other patches than the run's.
    """
    path, contents = open_checkpoint(Path(checkpoint), full=True)
    weights = contents.network("teacher", path)
    head_weights = {name.removeprefix("head."): weight for name, weight in weights.items() if name.startswith("head.")}
    if not head_weights:
        raise UserError(
            f"{path} has no projection head, so it cannot name what a patch shows: give a full checkpoint (last.pt, "
            "checkpoint.pth), or make codes of its tokens (python -m pretrain.tokenizers kmeans) for --targets codes"
        )
    backbone = backbone_of(contents, "teacher", path)
    fixed = backbone.shape
    if (fixed.stride, fixed.channels) != (shape.stride, shape.channels):
        raise UserError(
            f"{path} has tokens of {fixed.stride} pixels and {fixed.channels} channels, the run {shape.stride} and "
            f"{shape.channels}: give a checkpoint like the run"
        )
    network = Teacher(backbone, heads.of_weights(head_weights, path))
    network.centres.cls.copy_(_centre(contents.centres, ("cls",), network.head.out_dim, path))
    network.centres.patch.copy_(_centre(contents.centres, ("patch", "cls"), network.head.patch_out_dim, path))
    return Frozen(network.to(device).requires_grad_(False), store.sha256(path))


def _centre(centres: Mapping[str, Tensor], names: Sequence[str], prototypes: int, path: Path) -> Float[Tensor, " k"]:
    """The first centre that the checkpoint has of these names, else zeros. Raises UserError for another number of prototypes."""
    centre = next((centres[name] for name in names if name in centres), torch.zeros(prototypes))
    if centre.numel() != prototypes:
        raise UserError(f"{path} has centres of {centre.numel()} prototypes, its head has {prototypes}: take another copy")
    return centre.flatten().float()
