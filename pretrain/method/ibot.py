"""The method: iBOT (arXiv 2111.07832, sections 2 and 3), in the order of the paper's Algorithm 1.

    u, v = augment(x), augment(x)             crops, by pretrain/batches/augment.py
    m = blockwise_mask(u)                     masks, by pretrain/batches/masking.py
    g_s(u_hat), g_t(u)                        Student.forward, Teacher.forward
    H(s, t, C, tau_s, tau_t)                  center_and_sharpen, cls_loss (equation 2), patch_loss (equation 3)
    L_CLS + L_MIM                             losses
    update(g_s)                               pretrain/train.py, train_step
    g_t = l g_t + (1 - l) g_s                 Teacher.update_ema_
    C = m C + (1 - m) mean(g_t(u))            Centres.update_

Departures, which change no result but by rounding: logits are computed of masked patches only, as others have no loss; the patch
centre comes from the mean bottleneck vector. Local crops (multi-crop) are further views of the student, without masks.

v global views, n local views, s = v + n student views, b images, p patches of a view, m masked patches of all global views,
d width, z bottleneck, k prototypes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.batches.masking import Masks
from pretrain.engine import distributed
from pretrain.engine.verdict import ACCEPTED, Verdict
from pretrain.method.heads import Head
from pretrain.method.student_tokens import cls_and_masked, gather_masked
from pretrain.models.backbone import Trainable

STUDENT_TEMPERATURE = 0.1
"""tau_s and tau_s'."""
CENTRE_MOMENTUM = 0.9
"""m, and m' unless --patch-centre-momentum gives another."""


# ---- networks: what the algorithm calls g_s and g_t ----------------------------------------------


class StudentOutput(NamedTuple):
    """The student's logits, as the products give them: [CLS] of every view, global ones first, and masked patches."""

    cls: Float[Tensor, "s b k"]
    patches: Float[Tensor, "m k"]


class TeacherOutput(NamedTuple):
    """The teacher's logits, as the products give them: [CLS] of global views, masked patches; the mean over **all** patches."""

    cls: Float[Tensor, "v b k"]
    patches: Float[Tensor, "m k"]
    patch_mean: Float[Tensor, " k"]
    features: Float[Tensor, "v b d"] | None = None
    """[CLS] tokens of the backbone, for the log."""
    patch_features: Float[Tensor, "v b p d"] | None = None
    """Patch tokens of the backbone, if requested."""


class Network(nn.Module):
    """Backbone and projection head. Names of weights are the original's: `backbone.*`, `head.*`."""

    def __init__(self, backbone: Trainable, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


class Student(Network):
    """g_s: sees global crops with mask tokens, and local crops."""

    needed_only: bool | None = None
    """Whether the last block computes only the tokens that losses read (None: on a GPU; elsewhere bits stay as they were)."""

    def __init__(self, backbone: Trainable, head: Head) -> None:
        super().__init__(backbone, head)
        self.logits: Callable[..., Any] = student_logits
        """Or what it was compiled to."""

    def forward(
        self,
        crops: Float[Tensor, "v b c h w"],
        masks: Masks | None,
        local_crops: Float[Tensor, "n b c hl wl"],
        local_masks: Masks | None = None,
    ) -> StudentOutput:
        """Logits of all [CLS] tokens and of the masked patches: those of the global crops, then those of the local ones."""
        views, images = crops.shape[:2]
        groups = ((crops, masks), (local_crops, local_masks)) if len(local_crops) else ((crops, masks),)

        # u_hat: mask tokens in place of masked patches; both resolutions in one pass -> [s b, d], [m, d]
        needed_only = crops.is_cuda if self.needed_only is None else self.needed_only
        inputs = [(group.flatten(0, 1), m) for group, m in groups]
        cls_tokens, patches = cls_and_masked(self.backbone, inputs, rows_only=needed_only)

        cls_logits, patch_logits = self.logits(self.head, cls_tokens, patches)
        return StudentOutput(cls_logits.unflatten(0, (views + len(local_crops), images)), patch_logits)


class Teacher(Network):
    """g_t: exponential moving average of the student, without gradients. Sees global crops unmasked; holds the centres."""

    def __init__(self, backbone: Trainable, head: Head, patch_centre_momentum: float = CENTRE_MOMENTUM) -> None:
        super().__init__(backbone, head)
        self.centres = Centres(head.out_dim, head.patch_out_dim, patch_centre_momentum)
        self.logits: Callable[..., Any] = teacher_logits
        """Or what it was compiled to."""
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, crops: Float[Tensor, "v b c h w"], masks: Masks | None, *, patch_features: bool = False) -> TeacherOutput:
        """Logits of [CLS] tokens and masked patches; `patch_features`: the backbone's tokens of all patches too."""
        tokens = self.backbone(crops.flatten(0, 1))  # [v b, 1 + p, d]
        cls_logits, patch_logits, patch_mean = self.logits(self.head, tokens, masks, crops.device.type)
        features = tokens[:, 0].float().unflatten(0, crops.shape[:2])
        kept = tokens[:, 1:].unflatten(0, crops.shape[:2]) if patch_features else None
        return TeacherOutput(cls_logits.unflatten(0, crops.shape[:2]), patch_logits, patch_mean, features, kept)

    @torch.no_grad()
    def update_ema_(self, student: Network, momentum: float, verdict: Verdict = ACCEPTED) -> None:
        """g_t = l g_t + (1 - l) g_s for every weight, with momentum l; nothing after a refused step."""
        teacher_weights, student_weights = map(list, zip(*shared_weights(self, student), strict=True))
        verdict.lerp_(teacher_weights, student_weights, 1.0 - momentum)

    @torch.no_grad()
    def copy(self, student: Network) -> None:
        """g_t = g_s, before the first step."""
        for teacher_weight, student_weight in shared_weights(self, student):
            teacher_weight.copy_(student_weight)


def student_logits(head: Head, cls_tokens: Float[Tensor, "c d"], patches: Float[Tensor, "m d"]) -> tuple[Tensor, Tensor]:
    """The head on [CLS] tokens of all crops and on masked patches only: logits `[c, k]` and `[m, k]`."""
    bottleneck = head.bottleneck(torch.cat([cls_tokens, patches]))  # [c + m, z]
    return head.cls(bottleneck[: len(cls_tokens)]), head.patches(bottleneck[len(cls_tokens) :])


def teacher_logits(
    head: Head, tokens: Float[Tensor, "vb t d"], masks: Masks | None, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of [CLS] `[v b, k]` and of masked patches `[m, k]`, and their mean over all patches `[k]`, float32.

    `device`: its type, of whose autocast the mean is no part.
    """
    bottleneck = head.bottleneck(tokens)  # [v b, 1 + p, z], of all patches for their mean
    patches = bottleneck[:, 1:].flatten(0, 1)  # [v b p, z]
    # prototypes are linear: the mean of all patch logits is the logits of the mean vector, exact without computing them
    with torch.autocast(device, enabled=False):
        patch_mean = head.patches(patches.mean(dim=0))
    return head.cls(bottleneck[:, 0]), head.patches(gather_masked(patches, masks)), patch_mean


def shared_weights(teacher: nn.Module, student: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (teacher's, student's) of weights of the same name; of sharded ones this process's part.

    The student alone has a mask token; prototypes shared by [CLS] and patches are one parameter and come once.
    """
    student_weights = dict(student.named_parameters())
    for name, weight in teacher.named_parameters():
        if name in student_weights:
            teacher_part, student_part = distributed.local((weight.data, student_weights[name].data))
            yield teacher_part, student_part


# ---- H, first half: the teacher's logits -> targets ----------------------------------------------


class Targets(NamedTuple):
    """Target distributions for the student (rows sum to one), and the batch's mean logits, which move the centres."""

    cls: Float[Tensor, "v b k"]
    patches: Float[Tensor, "m k"]
    cls_mean: Float[Tensor, " k"]
    patch_mean: Float[Tensor, " k"]


@torch.no_grad()
def center_and_sharpen(
    teacher: TeacherOutput, centres: "Centres", cls_temperature: float | Tensor, patch_temperature: float | Tensor
) -> Targets:
    """softmax((t - C) / tau_t) of [CLS] and softmax((t - C') / tau_t') of masked patches, in float32."""
    return Targets(
        cls=F.softmax((teacher.cls.float() - centres.cls) / cls_temperature, dim=-1),
        patches=F.softmax((teacher.patches.float() - centres.patch[0]) / patch_temperature, dim=-1),
        cls_mean=teacher.cls.float().mean(dim=(0, 1)),
        patch_mean=teacher.patch_mean,
    )


# ---- H, second half: cross-entropy with the student's log-probabilities --------------------------


def cls_loss(logits: Float[Tensor, "s b k"], targets: Float[Tensor, "v b k"]) -> Float[Tensor, ""]:
    """Equation 2, -P_t(v)^T log P_s(u): mean over images and the v (s - 1) pairs of a teacher view and **another** student view.

    With two views the paper's symmetric loss, with local crops DINO's.
    """
    log_student = F.log_softmax(logits.float() / STUDENT_TEMPERATURE, dim=-1)
    views = len(targets)
    # for each teacher view the sum over all student views but the same one: targets are multiplied once, not once a pair
    others = log_student.sum(dim=0) - log_student[:views]  # [v, b, k]
    pairs = views * (len(logits) - 1)
    return -(targets * others).sum(dim=-1).mean(dim=-1).sum() / pairs


def patch_loss(logits: Float[Tensor, "m k"], targets: Float[Tensor, "m k"], masks: Masks | None) -> Float[Tensor, ""]:
    """Equation 3, -sum_i m_i P_t(u_i)^T log P_s(u_hat_i): mean over an image's masked patches, then over all images and views.

    Images without masked patches count as zero.
    """
    if masks is None:
        return logits.sum() * 0.0  # zero, and part of the graph
    log_student = F.log_softmax(logits.float() / STUDENT_TEMPERATURE, dim=-1)
    # weight of a patch: 1 / (masked patches of its image x images x views)
    return -(targets * log_student).sum(dim=-1) @ masks.weight


class Losses(NamedTuple):
    """Both losses times their weights, and their sum."""

    total: Float[Tensor, ""]
    cls: Float[Tensor, ""]
    patch: Float[Tensor, ""]


def losses(student: StudentOutput, targets: Targets, masks: Masks | None, cls_weight: float, patch_weight: float) -> Losses:
    """L_CLS + L_MIM; the paper's weights are one."""
    cls = cls_weight * cls_loss(student.cls, targets.cls)
    patch = patch_weight * patch_loss(student.patches, targets.patches, masks)
    return Losses(cls + patch, cls, patch)


def targets_and_losses(
    student: StudentOutput,
    teacher: TeacherOutput,
    centres: "Centres",
    cls_temperature: float | Tensor,
    patch_temperature: float | Tensor,
    masks: Masks | None,
    cls_weight: float,
    patch_weight: float,
) -> tuple[Targets, Losses]:
    """Both halves of H, as one function that can be compiled."""
    targets = center_and_sharpen(teacher, centres, cls_temperature, patch_temperature)
    return targets, losses(student, targets, masks, cls_weight, patch_weight)


def merge_micro_batches(parts: Sequence[tuple[Losses, Targets]]) -> tuple[Losses, Targets]:
    """Losses of several batches of one size as those of one large batch, and the last targets with the means of all."""
    if len(parts) == 1:
        return parts[0]
    losses = Losses(*(torch.stack([part.detach() for part in kind]).mean() for kind in zip(*(p for p, _ in parts), strict=True)))
    cls_mean, patch_mean = (torch.stack([getattr(t, name) for _, t in parts]).mean(dim=0) for name in ("cls_mean", "patch_mean"))
    return losses, parts[-1][1]._replace(cls_mean=cls_mean, patch_mean=patch_mean)


# ---- C and C' ------------------------------------------------------------------------------------


class Centres(nn.Module):
    """C and C': moving averages of the teacher's logits, subtracted before its softmax so that no prototype dominates."""

    def __init__(self, cls_prototypes: int, patch_prototypes: int, patch_momentum: float = CENTRE_MOMENTUM) -> None:
        super().__init__()
        self.patch_momentum = patch_momentum
        self.register_buffer("cls", torch.zeros(1, cls_prototypes))
        self.register_buffer("patch", torch.zeros(1, 1, patch_prototypes))  # the original's shape
        self.cls: Tensor
        self.patch: Tensor

    @torch.no_grad()
    def update_(self, targets: Targets, verdict: Verdict = ACCEPTED) -> None:
        """C = m C + (1 - m) mean(t) with the mean over the batches of all processes; nothing after a refused step."""
        cls_mean, patch_mean = distributed.mean(torch.cat([targets.cls_mean, targets.patch_mean])).split(
            [self.cls.shape[-1], self.patch.shape[-1]]
        )
        updates = ((self.cls, cls_mean[None], CENTRE_MOMENTUM), (self.patch, patch_mean[None, None], self.patch_momentum))
        for centre, mean, momentum in updates:
            centre.lerp_(verdict.select(mean, centre), 1 - momentum)
