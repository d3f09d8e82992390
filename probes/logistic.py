"""Multinomial logistic regression on frozen features: `python -m probes.logistic --ckpt runs/sample`.

Protocol of Table 12: last [CLS] of centre crops, of length one; no intercept; strengths 0.01, 0.1 and 1 of the L2 penalty, the
best of which is reported. What is minimised is the **sum** of the cross-entropies plus strength / 2 times the squared weights
(scikit-learn's, with C = 1 / strength). Users of the original who did not divide the strength by the number of images measured
58.0 in place of 65.9 (its issue 21). Solved by L-BFGS on the device, in blocks, so that any number of images fits.

n images, d width, k classes.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints.cli import UserError, WorkError, parse, run_command
from probes.features.cache import extract
from probes.shared import console, record, ridge
from probes.shared import metrics as metrics_of
from probes.shared.answers import from_logits, quick, several_of
from probes.shared.labelled import EVERY
from probes.shared.metrics import Scores
from probes.shared.subject import (
    Parts,
    Repeated,
    Viewed,
    about_data,
    about_seeds,
    about_view,
    class_count,
    drawn_parts,
    draws_parts,
    in_words,
    labels_of,
    open_subject,
    opened_parts,
    record_path,
    reseeded,
    seeds_of,
    task_of,
)

STRENGTHS = (0.01, 0.1, 1.0)
MOST_STEPS, TOLERANCE = 500, 1e-6
"""Limits of L-BFGS: steps, and the largest gradient component of the mean loss at which it stops."""
BLOCK = 16384


@dataclass(frozen=True)
class LogisticOptions(Repeated):
    """Logistic regression on frozen features for several strengths of its penalty (paper, Table 12)."""

    strength: tuple[float, ...] = STRENGTHS
    """Strengths of the L2 penalty, for the sum over images (C = 1 / strength in scikit-learn)."""


def fit(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"] | Float[Tensor, "n k"],
    classes: int,
    strength: float,
    start: Tensor | None = None,
) -> Float[Tensor, "k d"]:
    """The weights that minimise the penalised loss, in the precision of the features. `start` are weights to begin with.

    Labels of 0 and 1 [n, k]: one binary cross-entropy for each.
    """
    weight = features.new_zeros(classes, features.shape[1]) if start is None else start.clone()
    weight.requires_grad_(True)
    solver = torch.optim.LBFGS(
        [weight],
        max_iter=MOST_STEPS,
        max_eval=2 * MOST_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        total = strength / (2 * len(features)) * weight.square().sum()
        total.backward()
        for block, its in zip(features.split(BLOCK), labels.split(BLOCK), strict=True):
            loss_of = F.cross_entropy if its.ndim == 1 else F.binary_cross_entropy_with_logits
            part = loss_of(block @ weight.T, its, reduction="sum") / len(features)
            part.backward()
            total = total.detach() + part.detach()
        return total.detach()

    solver.step(loss)
    return weight.detach()


class Regressed(NamedTuple):
    """What each strength reaches, the best strength, and all numbers of it."""

    by_strength: dict[float, Scores]
    best: float
    scores: Scores


def measure(subject: Viewed, parts: Parts, options: LogisticOptions) -> Regressed:
    """The strongest penalty is fitted first, and each is the start of the next; values are fitted by ridge regression.

    Raises WorkError naming a strength with which the weights are not finite.
    """
    train, val = (extract(subject.loaded.backbone, images, subject.view, options).cls for images in parts)
    bank, queries = (F.normalize(torch.tensor(part, device=subject.device), dim=1) for part in (train, val))
    task, name = task_of(parts), metrics_of.MAIN[task_of(parts)]
    if task == "regression":
        found = ridge.measure(bank.cpu().numpy(), queries.cpu().numpy(), parts, options.strength)
        best = max(found, key=lambda strength: found[strength][name].value)
        return Regressed(found, best, found[best])
    several = task == "multi-label"
    classes = len(parts.train.classes) if several else class_count(parts)
    labels = several_of(parts.train) if several else labels_of(parts.train)
    some: dict[float, Scores] = {}
    logits: dict[float, Tensor] = {}
    weight: Tensor | None = None
    for strength in console.steps("logistic regression", sorted(options.strength, reverse=True), len(options.strength)):
        weight = fit(bank, labels.to(subject.device), classes, strength, weight)
        if not weight.isfinite().all():
            raise WorkError(
                f"logistic regression with --strength {strength:g} ended with weights that are not finite: leave it out"
            )
        answers = (queries @ weight.T).cpu()
        some[strength] = quick(answers, parts)
        if strength == max(some, key=lambda one: some[one][name].value):
            logits = {strength: answers}
    ((best, answers),) = logits.items()
    return Regressed(some, best, from_logits(answers, parts))


def about(options: LogisticOptions) -> dict[str, Any]:
    """Fields of a record's protocol."""
    return {"strength": sorted(options.strength)}


def main(arguments: Sequence[str]) -> None:
    options = parse(LogisticOptions, arguments, prog="python -m probes.logistic")
    if not options.strength or min(options.strength) <= 0:
        raise UserError("--strength must be greater than 0")
    began = time.perf_counter()
    with open_subject(options) as subject:
        out = record_path(options, subject, "logistic")
        every = opened_parts(options, subject.loaded.backbone.shape, EVERY)
        several: list[Regressed] = []
        for seed in seeds_of(options, drawn=draws_parts(options)):
            parts = drawn_parts(every, replace(options, seed=seed), EVERY)
            several.append(measure(reseeded(subject, options, seed) if several else subject, parts, options))
        found, name = several[0], metrics_of.MAIN[task_of(parts)]
        names, digits = list(found.by_strength[found.best]), metrics_of.digits(name)
        rows = [
            [f"{strength:g}", *(f"{one[column].value:.{digits}f}" for column in names)]
            for strength, one in sorted(found.by_strength.items())
        ]
        what = "ridge regression" if task_of(parts) == "regression" else "logistic regression, %"
        console.table(
            f"{what} on {parts.val.name}: {subject.loaded.path}{in_words(subject.view)}",
            ["strength", *(metrics_of.NAMES[n] for n in names)],
            rows,
        )
        seconds = time.perf_counter() - began
        best = found.scores[name]
        console.say(
            f"best: {best.shown(digits)} (strength {found.best:g})   {metrics_of.line(found.scores, (name,))}   {seconds:.0f} s"
        )
        repeats = metrics_of.over_seeds([one.scores for one in several])
        if len(several) > 1:
            console.say(f"mean of {len(several)} seeds: {repeats.line()}")
        record.write(
            out,
            probe="logistic",
            table="T12_semi_protocols",
            loaded=subject.loaded,
            data=about_data(parts),
            protocol=about_view(options, subject.view) | about(options) | about_seeds(several),
            metrics=repeats.record()
            | {"best_strength": found.best}
            | {f"{name}_strength{strength:g}": one[name].value for strength, one in found.by_strength.items()},
            intervals=metrics_of.intervals(repeats.scores),
            seconds=seconds,
            device=subject.device.type,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
