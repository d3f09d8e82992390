"""Diagnostics of a run for its log: entropies of targets, use of prototypes, rank of features; and alarms in words.

v global views, b images, k prototypes, m masked patches, d width. Entropies are in nats: log k is uniform, 0 one prototype.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.engine import distributed
from pretrain.method.ibot import STUDENT_TEMPERATURE, Centres, Losses, StudentOutput, Targets, TeacherOutput


class Diagnostics(NamedTuple):
    """One step's measurements, scalars on the device."""

    target_entropy: Tensor
    """Mean entropy of a [CLS] target."""
    mean_target_entropy: Tensor
    """Entropy of the mean [CLS] target: near 0 when all images share a prototype."""
    patch_target_entropy: Tensor
    mean_patch_target_entropy: Tensor
    student_entropy: Tensor
    """Mean entropy of the student's [CLS] distributions."""
    kl_divergence: Tensor
    """Of the student from the teacher: unweighted [CLS] loss less target_entropy; what can still be learnt."""
    prototype_usage: Tensor
    """Share of the [CLS] prototypes that are the argmax of some target in this step; at most v b / k."""
    patch_prototype_usage: Tensor
    centre_norm: Tensor
    patch_centre_norm: Tensor
    effective_rank: Tensor
    """Of the teacher's [CLS] tokens in this step (RankMe, arXiv 2210.02885): exp of the entropy of their normalised singular
    values; at most min(v b, d)."""
    teacher_distance: Tensor
    """Norm of the difference of student's and teacher's weights, over the norm of the teacher's."""


def diagnostics_of(
    student: nn.Module,
    teacher: nn.Module,
    losses: Losses,
    student_output: StudentOutput,
    teacher_output: TeacherOutput,
    targets: Targets,
    cls_weight: float,
) -> Diagnostics:
    """All of them; NaN for patches where none is masked, and for the rank in all processes but the main one, which logs."""
    cls, centres = targets.cls.flatten(0, 1), teacher.centres  # [v b, k]
    assert isinstance(centres, Centres) and teacher_output.features is not None
    entropy = entropy_of(cls).mean()
    difference, norm = distance(teacher, student)
    features = teacher_output.features.flatten(0, 1)  # [v b, d]
    return Diagnostics(
        target_entropy=entropy,
        mean_target_entropy=entropy_of(cls.mean(0)),
        patch_target_entropy=entropy_of(targets.patches).mean(),
        mean_patch_target_entropy=entropy_of(targets.patches.mean(0)),
        student_entropy=entropy_of((student_output.cls.detach().float() / STUDENT_TEMPERATURE).softmax(dim=-1)).mean(),
        kl_divergence=losses.cls.detach() / cls_weight - entropy if cls_weight else torch.full_like(entropy, math.nan),
        prototype_usage=prototype_usage(cls),
        patch_prototype_usage=prototype_usage(targets.patches),
        centre_norm=centres.cls.norm(),
        patch_centre_norm=centres.patch.norm(),
        effective_rank=effective_rank(features) if distributed.is_main() else torch.full_like(entropy, math.nan),
        teacher_distance=difference / norm,
    )


def distance(teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
    """Norm of the difference of both networks' weights, and norm of the teacher's."""
    student_weights = dict(student.named_parameters())
    shared = {name: weight.detach() for name, weight in teacher.named_parameters() if name in student_weights}
    differences = [student_weights[name].detach() - weight for name, weight in shared.items()]
    return distributed.norms(differences).norm(), distributed.norms([*shared.values()]).norm()


def entropy_of(probabilities: Float[Tensor, "... k"]) -> Float[Tensor, "..."]:
    """Entropy of each distribution, in nats."""
    return torch.special.entr(probabilities).sum(dim=-1)


def prototype_usage(probabilities: Float[Tensor, "x k"]) -> Float[Tensor, ""]:
    """Share of the prototypes that are the argmax of some row."""
    chosen = torch.zeros(probabilities.shape[1], device=probabilities.device)
    return chosen.index_fill_(0, probabilities.argmax(dim=1), 1.0).mean()


def effective_rank(features: Float[Tensor, "x d"]) -> Float[Tensor, ""]:
    """exp of the entropy of the normalised singular values, which are roots of the Gram matrix's eigenvalues.

    NaN where features are not finite. Waits for the device, once: the small matrix is solved on the CPU, as CUDA's own solvers
    wait several times and raise an error for NaN.
    """
    exact = features.double() if len(features) > features.shape[1] else features.double().T
    gram = (exact.T @ exact).cpu()  # [min(x, d), min(x, d)]
    if not bool(gram.isfinite().all()):  # LAPACK raises an error for them
        return features.new_full((), math.nan)
    values = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    return entropy_of(values / values.sum().clamp(min=1e-12)).exp().float().to(features.device)


LEAST_RANK = 1.5


class Alarms:
    """Sentences for a run that is about to collapse; each once, until the value has recovered."""

    def __init__(self, prototypes: int, patience: int) -> None:
        """The first `patience` log lines are not checked: every run starts with uniform targets."""
        self._uniform, self._patience = math.log(prototypes), patience
        self._sounding: set[str] = set()

    def check(self, values: dict[str, float]) -> list[str]:
        """Sentences on what is newly wrong with the logged values."""
        self._patience -= 1
        if self._patience >= 0:
            return []
        wrong = self._wrong(values)
        new = [text for name, text in wrong.items() if name not in self._sounding]
        self._sounding = set(wrong)
        return new

    def _wrong(self, values: dict[str, float]) -> dict[str, str]:
        """A sentence for each rule that is broken, by its name."""
        wrong, uniform = {}, self._uniform
        entropy, mean_entropy, rank = values["target_entropy"], values["mean_target_entropy"], values["effective_rank"]
        if entropy > 0.99 * uniform:
            wrong["uniform"] = (
                f"the teacher's targets are uniform (entropy {entropy:.2f} of {uniform:.2f}): it says the same of every image; "
                "lower --teacher-temp, or for a narrow network give --init fan_in"
            )
        if entropy < 0.001 * uniform:
            wrong["certain"] = (
                f"the teacher's targets are single prototypes (entropy {entropy:.4f}): raise --teacher-temp, or warm it up longer"
            )
        if mean_entropy < 0.1 * uniform:
            wrong["collapsed"] = (
                f"all images share a few prototypes (entropy of the mean target {mean_entropy:.2f} of {uniform:.2f}): the run "
                "has collapsed; begin again with a higher --momentum-teacher, a lower --lr or a higher --teacher-temp"
            )
        if rank < LEAST_RANK:
            wrong["rank"] = (
                f"the features of all images point the same way (effective rank {rank:.2f}): the run has collapsed; begin again "
                "with a lower --lr"
            )
        return wrong
