"""What a run's log says of its health: how targets are spread, how features are, and alarms in words.

v global views, b images, k prototypes, m masked patches, d width. Entropies are in nats: log k is uniform, 0 one prototype.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.engine import distributed
from pretrain.method.ibot import STUDENT_TEMPERATURE, Centres, Losses, StudentOutput, Targets, TeacherOutput


class Vitals(NamedTuple):
    """One step's signs of life."""

    entropy: Tensor
    """Mean entropy of a [CLS] target."""
    spread: Tensor
    """Entropy of the mean [CLS] target: near 0 when all images share a prototype."""
    patch_entropy: Tensor
    patch_spread: Tensor
    student_entropy: Tensor
    """Mean entropy of the student's [CLS] answers."""
    divergence: Tensor
    """Of the student from the teacher: [CLS] loss (its weight out) less the targets' entropy; what can still be learnt."""
    prototypes_used: Tensor
    """Share of the [CLS] prototypes that are the first choice of some target in this step; at most v b / k."""
    patch_prototypes_used: Tensor
    centre_norm: Tensor
    patch_centre_norm: Tensor
    rank: Tensor
    """Effective rank of the teacher's [CLS] tokens in this step (RankMe, arXiv 2210.02885): exp of the entropy of their
    singular values; at most min(v b, d)."""
    teacher_distance: Tensor
    """Between student and teacher, as a share of the teacher's length."""


def diagnostics_of(
    student: nn.Module,
    teacher: nn.Module,
    losses: Losses,
    logits: StudentOutput,
    answer: TeacherOutput,
    targets: Targets,
    cls_weight: float,
) -> Vitals:
    """Everything at once, on the device (NaN for patches where none is masked)."""
    cls, centres = targets.cls.flatten(0, 1), teacher.centres
    assert isinstance(centres, Centres) and answer.features is not None
    entropy = entropy_of(cls).mean()
    apart, length = distance(teacher, student)
    return Vitals(
        entropy=entropy,
        spread=entropy_of(cls.mean(0)),
        patch_entropy=entropy_of(targets.patches).mean(),
        patch_spread=entropy_of(targets.patches.mean(0)),
        student_entropy=entropy_of((logits.cls.detach() / STUDENT_TEMPERATURE).softmax(dim=-1)).mean(),
        divergence=losses.cls.detach() / cls_weight - entropy if cls_weight else torch.full_like(entropy, math.nan),
        prototypes_used=used(cls),
        patch_prototypes_used=used(targets.patches),
        centre_norm=centres.cls.norm(),
        patch_centre_norm=centres.patch.norm(),
        rank=effective_rank(answer.features.flatten(0, 1)),
        teacher_distance=apart / length,
    )


def distance(teacher: nn.Module, student: nn.Module) -> tuple[Tensor, Tensor]:
    """Between the weights of both, and the length of the teacher's."""
    mine, theirs = (dict(network.named_parameters()) for network in (teacher, student))
    names = [name for name in mine if name in theirs]
    weights = [mine[name].detach() for name in names]
    ways = [theirs[name].detach() - weight for name, weight in zip(names, weights, strict=True)]
    return distributed.lengths(ways).norm(), distributed.lengths(weights).norm()


def entropy_of(probabilities: Float[Tensor, "... k"]) -> Float[Tensor, "..."]:
    return torch.special.entr(probabilities).sum(dim=-1)


def used(probabilities: Float[Tensor, "x k"]) -> Float[Tensor, ""]:
    """Share of the prototypes that are somebody's first choice."""
    chosen = torch.zeros(probabilities.shape[1], device=probabilities.device)
    return chosen.index_fill_(0, probabilities.argmax(dim=1), 1.0).mean()


def effective_rank(features: Float[Tensor, "x d"]) -> Float[Tensor, ""]:
    """Effective rank; NaN where features are not finite."""
    if features.device.type == "cpu" and not bool(features.isfinite().all()):  # LAPACK refuses them
        return features.new_full((), math.nan)
    values = torch.linalg.svdvals(features.float())
    return entropy_of(values / values.sum().clamp(min=1e-12)).exp()


LEAST_RANK = 1.5


class Alarms:
    """Says in words when a run is about to be lost; each alarm once, until the value has recovered."""

    def __init__(self, prototypes: int, patience: int) -> None:
        """`patience` log lines are let pass first: every run begins uniform."""
        self._uniform, self._patience = math.log(prototypes), patience
        self._sounding: set[str] = set()

    def check(self, values: dict[str, float]) -> list[str]:
        """What is newly wrong with the logged values."""
        self._patience -= 1
        if self._patience >= 0:
            return []
        wrong = self._wrong(values)
        new = [text for name, text in wrong.items() if name not in self._sounding]
        self._sounding = set(wrong)
        return new

    def _wrong(self, values: dict[str, float]) -> dict[str, str]:
        found, uniform = {}, self._uniform
        entropy, spread, rank = values["entropy"], values["spread"], values["rank"]
        if entropy > 0.99 * uniform:
            found["uniform"] = (
                f"the teacher's targets are uniform (entropy {entropy:.2f} of {uniform:.2f}): it says the same of every image; "
                "lower --teacher-temp, or for a narrow network give --init fan_in"
            )
        if entropy < 0.001 * uniform:
            found["certain"] = (
                f"the teacher's targets are single prototypes (entropy {entropy:.4f}): raise --teacher-temp, or warm it up longer"
            )
        if spread < 0.1 * uniform:
            found["collapsed"] = (
                f"all images share a few prototypes (entropy of the mean target {spread:.2f} of {uniform:.2f}): the run has "
                "collapsed; begin again with a higher --momentum-teacher, a lower --lr or a higher --teacher-temp"
            )
        if rank < LEAST_RANK:
            found["rank"] = (
                f"the features of all images point the same way (effective rank {rank:.2f}): the run has collapsed; begin again "
                "with a lower --lr"
            )
        return found
