"""Targets that are not the run's own teacher's: an offline tokenizer's codes, or what a fixed network says (Tables 9, 20).

x crops, m masked patches, k codes or prototypes.
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
from pretrain.method import heads as head
from pretrain.method.ibot import Centres, Losses, StudentOutput, Targets, Teacher, TeacherOutput
from pretrain.method.objective import Objective, with_patch_loss
from pretrain.method.schedule import ScheduleValues
from pretrain.models.backbone import backbone_of, open_checkpoint
from pretrain.tokenizers.base import Tokenizer


class Codes(Objective):
    """BEiT: each masked patch is classified as the code that the tokenizer gives it. Cross-entropy, no temperature, no centre.

    The mean is iBOT's: over an image's masked patches, then over all images. The patch head is one linear layer on the backbone's
    token (`pretrain/method/other_heads.py`).
    """

    def __init__(self, tokenizer: Tokenizer, digest: str) -> None:
        self.tokenizer, self.digest = tokenizer, digest
        self.patch_prototypes = tokenizer.vocabulary

    @torch.no_grad()
    def targets(self, answer: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        own = super().targets(answer, batch, masks, centres, now)
        if masks is None:
            return own
        codes = self.tokenizer(batch.crops.flatten(0, 1), (masks.grid.shape[2], masks.grid.shape[3]))
        wanted = F.one_hot(codes.flatten()[masks.indices], self.tokenizer.vocabulary)
        return own._replace(patches=wanted.to(answer.patches.dtype))

    def losses(
        self, logits: StudentOutput, targets: Targets, batch: Batch, masks: Masks | None, cls: float, patch: float
    ) -> Losses:
        if masks is None:
            return super().losses(logits, targets, batch, masks, cls, patch)
        each = -(targets.patches * F.log_softmax(logits.patches, dim=-1)).sum(dim=-1)
        return with_patch_loss(logits, targets, each @ masks.weight, cls, patch)


class Frozen(Objective):
    """A trained network in the teacher's place, for patches alone: its head's answer, less its centre, sharpened as ever."""

    def __init__(self, network: Teacher, digest: str) -> None:
        self.network, self.digest = network.eval(), digest
        self.patch_prototypes = network.head.patch_out_dim

    def teacher_forward(self, teacher: nn.Module, batch: Batch, masks: Masks | None) -> TeacherOutput:
        own, fixed = teacher(batch.crops, masks), self.network(batch.crops, masks)
        return own._replace(patches=fixed.patches)

    @torch.no_grad()
    def targets(self, answer: TeacherOutput, batch: Batch, masks: Masks | None, centres: Centres, now: ScheduleValues) -> Targets:
        own = super().targets(answer, batch, masks, centres, now)
        logits = answer.patches - self.network.centres.patch[0]
        return own._replace(patches=F.softmax(logits / now.patch_temperature, dim=-1))


def frozen(checkpoint: str, shape: Architecture, device: torch.device) -> Frozen:
    """From a full checkpoint of ours or a published one; DINO's one head answers for patches too, with its own centre.

    Raises UserError where it has no head, or other patches than the run.
    """
    path, contents = open_checkpoint(Path(checkpoint), full=True)
    weights = contents.network("teacher", path)
    heads = {name.removeprefix("head."): weight for name, weight in weights.items() if name.startswith("head.")}
    if not heads:
        raise UserError(
            f"{path} has no projection head, so it cannot name what a patch shows: give a full checkpoint (last.pt, "
            "checkpoint.pth), or make codes of its tokens (python -m pretrain.tokenizers kmeans) for --targets codes"
        )
    backbone = backbone_of(contents, "teacher", path)
    theirs = backbone.shape
    if (theirs.stride, theirs.channels) != (shape.stride, shape.channels):
        raise UserError(
            f"{path} has tokens of {theirs.stride} pixels and {theirs.channels} channels, the run {shape.stride} and "
            f"{shape.channels}: give a checkpoint like the run"
        )
    network = Teacher(backbone, head.of_weights(heads, path))
    network.centres.cls.copy_(_centre(contents.centres, ("cls",), network.head.out_dim, path))
    network.centres.patch.copy_(_centre(contents.centres, ("patch", "cls"), network.head.patch_out_dim, path))
    return Frozen(network.to(device).requires_grad_(False), store.sha256(path))


def _centre(centres: Mapping[str, Tensor], names: Sequence[str], prototypes: int, path: Path) -> Float[Tensor, " k"]:
    """The first of these that there is, or none. Raises UserError for one of another number of prototypes."""
    found = next((centres[name] for name in names if name in centres), torch.zeros(prototypes))
    if found.numel() != prototypes:
        raise UserError(f"{path} has centres of {found.numel()} prototypes, its head has {prototypes}: take another copy")
    return found.flatten().float()
