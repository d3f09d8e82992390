"""The method: student, teacher, two centres, two losses (paper sections 3.1 and 3.2, algorithm 1).

v global views, s all student views, b images, m masked patches, k prototypes, z bottleneck.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pretrain.batches.masking import Masks
from pretrain.engine import distributed
from pretrain.method.heads import Head
from pretrain.models.backbone import Backbone

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9
"""Of the [CLS] centre, and of the patches' where nothing else is said."""


class StudentOutput(NamedTuple):
    """The student's answer: [CLS] of every view, global ones first, and the masked patches only."""

    cls: Float[Tensor, "s b k"]
    patches: Float[Tensor, "m k"]


class TeacherOutput(NamedTuple):
    """The teacher's logits in float32: [CLS], masked patches, and the mean of **all** patches, masked or not."""

    cls: Float[Tensor, "v b k"]
    patches: Float[Tensor, "m k"]
    patch_mean: Float[Tensor, " k"]
    features: Float[Tensor, "v b d"] | None = None
    """The backbone's [CLS] tokens, for the log."""
    patch_features: Float[Tensor, "v b n d"] | None = None
    """The backbone's patch tokens, where they were asked for."""


class Targets(NamedTuple):
    """The teacher's answer as probabilities, and the mean logits of this batch that move the centres."""

    cls: Float[Tensor, "v b k"]
    patches: Float[Tensor, "m k"]
    cls_mean: Float[Tensor, " k"]
    patch_mean: Float[Tensor, " k"]


class Losses(NamedTuple):
    """Both losses with their weights in, and their sum."""

    total: Float[Tensor, ""]
    cls: Float[Tensor, ""]
    patch: Float[Tensor, ""]


class Network(nn.Module):
    """Backbone and head, whose weights carry the original's names `backbone.*` and `head.*`."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class Student(Network):
    """Sees the global crops with masks and the local crops without, unless they are given some."""

    def forward(
        self,
        crops: Float[Tensor, "v b c h w"],
        masks: Masks | None,
        local_crops: Float[Tensor, "n b c hl wl"],
        local_masks: Masks | None = None,
    ) -> StudentOutput:
        """The patches that are answered for are those of the global crops, then those of the local ones."""
        views, images = crops.shape[:2]
        seen = ((crops, masks), (local_crops, local_masks)) if len(local_crops) else ((crops, masks),)
        tokens = self.backbone.forward_multi([(kind.flatten(0, 1), m and m.grid.flatten(0, 1)) for kind, m in seen])
        cls_tokens = torch.cat([group[:, 0] for group in tokens])
        patches = [gather_masked(group[:, 1:].flatten(0, 1), m) for group, (_, m) in zip(tokens, seen, strict=True)]
        bottleneck = self.head.bottleneck(torch.cat([cls_tokens, *patches]))
        cls_logits = self.head.cls(bottleneck[: len(cls_tokens)])
        patch_logits = self.head.patches(bottleneck[len(cls_tokens) :])
        return StudentOutput(cls_logits.unflatten(0, (views + len(local_crops), images)).float(), patch_logits.float())


class Teacher(Network):
    """An exponential moving average of the student; sees the global crops whole. Holds the centres."""

    def __init__(self, backbone: Backbone, head: Head, patch_centre_momentum: float = CENTRE_MOMENTUM) -> None:
        super().__init__(backbone, head)
        self.centres = Centres(head.out_dim, head.patch_out_dim, patch_centre_momentum)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, crops: Float[Tensor, "v b c h w"], masks: Masks | None, *, patch_features: bool = False) -> TeacherOutput:
        """Prototypes are linear, so the mean of all patch logits is the logits of the mean bottleneck vector.

        The patch centre is therefore exact although most patch logits are never computed.
        """
        tokens = self.backbone(crops.flatten(0, 1))
        bottleneck = self.head.bottleneck(tokens)
        patches = bottleneck[:, 1:].flatten(0, 1)
        masked = gather_masked(patches, masks)
        cls_logits = self.head.cls(bottleneck[:, 0]).unflatten(0, crops.shape[:2])
        with torch.autocast(crops.device.type, enabled=False):
            patch_mean = self.head.patches(patches.mean(dim=0))
        features = tokens[:, 0].float().unflatten(0, crops.shape[:2])
        kept = tokens[:, 1:].unflatten(0, crops.shape[:2]) if patch_features else None
        return TeacherOutput(cls_logits.float(), self.head.patches(masked).float(), patch_mean, features, kept)

    @torch.no_grad()
    def update_ema_(self, student: Network, momentum: float, accepted: bool | Bool[Tensor, ""] = True) -> None:
        """Move every weight towards the student's: `teacher = momentum * teacher + (1 - momentum) * student`, if accepted."""
        mine, theirs = zip(*shared_weights(self, student), strict=True)
        if isinstance(accepted, Tensor):
            ways = torch._foreach_sub(theirs, mine)
            torch._foreach_mul_(ways, accepted * (1.0 - momentum))
            torch._foreach_add_(mine, ways)
        elif accepted:
            torch._foreach_lerp_(mine, theirs, 1.0 - momentum)

    @torch.no_grad()
    def copy(self, student: Network) -> None:
        """Take the student's weights as they are."""
        for mine, theirs in shared_weights(self, student):
            mine.copy_(theirs)


def shared_weights(teacher: nn.Module, student: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of parameters of the same name (the student alone has a mask token; tied patch prototypes count once).

    Where they are spread over processes, this one's part of each.
    """
    theirs = dict(student.named_parameters())
    pairs = ((weight.data, theirs[name].data) for name, weight in teacher.named_parameters() if name in theirs)
    return ((mine, other) for mine, other in map(distributed.local, pairs))


class Centres(nn.Module):
    """Moving averages of the teacher's logits, subtracted before its softmax so that no prototype takes all."""

    def __init__(self, cls_prototypes: int, patch_prototypes: int, patch_momentum: float = CENTRE_MOMENTUM) -> None:
        super().__init__()
        self.patch_momentum = patch_momentum
        self.register_buffer("cls", torch.zeros(1, cls_prototypes))
        self.register_buffer("patch", torch.zeros(1, 1, patch_prototypes))
        self.cls: Tensor
        self.patch: Tensor

    @torch.no_grad()
    def update_(self, targets: Targets, accepted: bool | Bool[Tensor, ""] = True) -> None:
        """One step towards this batch's mean logits, the mean being that of all processes; none if the step was refused."""
        if accepted is False:
            return
        cls_mean, patch_mean = distributed.mean(torch.cat([targets.cls_mean, targets.patch_mean])).split(
            [self.cls.shape[-1], self.patch.shape[-1]]
        )
        moved = ((self.cls, cls_mean[None], CENTRE_MOMENTUM), (self.patch, patch_mean[None, None], self.patch_momentum))
        for centre, new, momentum in moved:
            # a weight of zero would not do: what was refused may be NaN
            to = new if isinstance(accepted, bool) else torch.where(accepted, new, centre)
            centre.lerp_(to, 1 - momentum)


def gather_masked(patches: Float[Tensor, "x d"], masks: Masks | None) -> Float[Tensor, "m d"]:
    """Of all patches of a batch the masked ones, in the order of `masks.indices`; none where there are no masks."""
    return patches[:0] if masks is None else patches[masks.indices]


@torch.no_grad()
def center_and_sharpen(answer: TeacherOutput, centres: Centres, cls_temperature: float, patch_temperature: float) -> Targets:
    """Teacher logits -> targets: centred, divided by the temperature, softmax; float32 throughout."""
    return Targets(
        cls=F.softmax((answer.cls - centres.cls) / cls_temperature, dim=-1),
        patches=F.softmax((answer.patches - centres.patch[0]) / patch_temperature, dim=-1),
        cls_mean=answer.cls.mean(dim=(0, 1)),
        patch_mean=answer.patch_mean,
    )


def losses(logits: StudentOutput, targets: Targets, masks: Masks | None, cls_weight: float, patch_weight: float) -> Losses:
    """Both cross-entropies, averaged apart and added."""
    cls = cls_weight * cls_loss(logits.cls, targets.cls)
    patch = patch_weight * patch_loss(logits.patches, targets.patches, masks)
    return Losses(cls + patch, cls, patch)


def merge_micro_batches(parts: Sequence[tuple[Losses, Targets]]) -> tuple[Losses, Targets]:
    """The losses of several batches of one size as those of one large batch, and targets with its means."""
    if len(parts) == 1:
        return parts[0]
    losses = Losses(*(torch.stack([part.detach() for part in kind]).mean() for kind in zip(*(p for p, _ in parts), strict=True)))
    cls_mean, patch_mean = (torch.stack([getattr(t, name) for _, t in parts]).mean(dim=0) for name in ("cls_mean", "patch_mean"))
    return losses, parts[-1][1]._replace(cls_mean=cls_mean, patch_mean=patch_mean)


def cls_loss(logits: Float[Tensor, "s b k"], targets: Float[Tensor, "v b k"]) -> Float[Tensor, ""]:
    """Mean cross-entropy between every teacher view and every **other** student view (equation 1, over v (s - 1) pairs)."""
    log_student = F.log_softmax(logits / STUDENT_TEMPERATURE, dim=-1)
    views = len(targets)
    others = log_student.sum(dim=0) - log_student[:views]
    pairs = views * (len(logits) - 1)
    return -(targets * others).sum(dim=-1).mean(dim=-1).sum() / pairs


def patch_loss(logits: Float[Tensor, "m k"], targets: Float[Tensor, "m k"], masks: Masks | None) -> Float[Tensor, ""]:
    """Cross-entropy of masked patches (equation 2): mean over an image's masked patches, then over all images and views.

    Images without masks count as zero.
    """
    if masks is None:
        return logits.sum() * 0.0
    log_student = F.log_softmax(logits / STUDENT_TEMPERATURE, dim=-1)
    return -(targets * log_student).sum(dim=-1) @ masks.weight
