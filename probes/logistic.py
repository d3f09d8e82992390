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
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints.cli import UserError, WorkError, parse, run_command
from pretrain.evaluate import knn
from probes.features.cache import extract
from probes.shared import console, record
from probes.shared.subject import (
    Parts,
    Probed,
    Viewed,
    about_data,
    about_view,
    class_count,
    labelled_parts,
    labels_of,
    open_subject,
    record_path,
)

STRENGTHS = (0.01, 0.1, 1.0)
MOST_STEPS, TOLERANCE = 500, 1e-6
"""Limits of L-BFGS: steps, and the largest gradient component of the mean loss at which it stops."""
BLOCK = 16384


@dataclass(frozen=True)
class LogisticOptions(Probed):
    """Logistic regression on frozen features for several strengths of its penalty (paper, Table 12)."""

    strength: tuple[float, ...] = STRENGTHS
    """Strengths of the L2 penalty, for the sum over images (C = 1 / strength in scikit-learn)."""


def fit(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int, strength: float, start: Tensor | None = None
) -> Float[Tensor, "k d"]:
    """The weights that minimise the penalised loss, in the precision of the features. `start` are weights to begin with."""
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
            part = F.cross_entropy(block @ weight.T, its, reduction="sum") / len(features)
            part.backward()
            total = total.detach() + part.detach()
        return total.detach()

    solver.step(loss)
    return weight.detach()


def measure(subject: Viewed, parts: Parts, options: LogisticOptions) -> dict[float, tuple[float, float]]:
    """Top-1 and top-5 percent by strength, the strongest fitted first and each the start of the next.

    Raises WorkError naming a strength with which the weights are not finite.
    """
    train, val = (extract(subject.loaded.backbone, images, subject.view, options).cls for images in parts)
    bank, queries = (F.normalize(torch.tensor(part, device=subject.device), dim=1) for part in (train, val))
    labels, classes = labels_of(parts.train).to(subject.device), class_count(parts)
    found: dict[float, tuple[float, float]] = {}
    weight: Tensor | None = None
    for strength in console.steps("logistic regression", sorted(options.strength, reverse=True), len(options.strength)):
        weight = fit(bank, labels, classes, strength, weight)
        if not weight.isfinite().all():
            raise WorkError(
                f"logistic regression with --strength {strength:g} ended with weights that are not finite: leave it out"
            )
        answers = (queries @ weight.T).topk(min(knn.TOP, classes), dim=1).indices
        top1, top5 = (knn.accuracy(answers, labels_of(parts.val), top) for top in (1, knn.TOP))
        found[strength] = (top1, top5)
    return found


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
        parts = labelled_parts(options, subject.loaded.backbone.shape)
        found = measure(subject, parts, options)
        best = max(found, key=lambda strength: found[strength][0])
        rows = [[f"{strength:g}", *(f"{value:.1f}" for value in found[strength])] for strength in sorted(found)]
        title = f"logistic regression, % on {parts.val.name}: {subject.loaded.path}"
        console.table(title, ["strength", "top-1", "top-5"], rows)
        seconds = time.perf_counter() - began
        console.say(f"best: {found[best][0]:.1f} (strength {best:g})   {seconds:.0f} s")
        record.write(
            out,
            probe="logistic",
            table="T12_semi_protocols",
            loaded=subject.loaded,
            data=about_data(parts),
            protocol=about_view(options, subject.view) | about(options),
            metrics={"top1": found[best][0], "top5": found[best][1], "best_strength": best}
            | {f"top1_strength{strength:g}": top1 for strength, (top1, _) in found.items()},
            seconds=seconds,
            device=subject.device.type,
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
