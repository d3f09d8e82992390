"""Retrieval by frozen vectors: revisited Oxford and Paris (paper, Table 16) and Copydays.

`python -m probes.retrieval --ckpt runs/sample --suite roxford5k|rparis6k|copydays`
"""

import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints import terminal
from checkpoints.cli import parse, run_command
from pretrain.images.open import open_images
from pretrain.images.source import Images, InMemory
from pretrain.models.backbone import Backbone
from pretrain.sample import retrieval
from probes.features.search import WAYS, quickest
from probes.retrieval import copydays, descriptors, revisited
from probes.retrieval.revisited import Truth
from probes.retrieval.tasks import RetrievalOptions, Task, open_task
from probes.shared import record
from probes.shared.console import table
from probes.shared.subject import open_frozen, untrained

STRANGERS = 100
"""Number of distractors of the sample's copies."""


def strangers(options: RetrievalOptions) -> Images | None:
    """Images to search besides the originals: --distractors, or the sample's own."""
    if options.suite != "copydays":
        return None
    if options.distractors is not None:
        return open_images(options.distractors, None)
    return InMemory("sample, distractors", retrieval.strangers(STRANGERS)) if options.data == "sample" else None


def measure(backbone: Backbone, task: Task, others: Images | None, whiten: str | None) -> dict[str, float]:
    """Percent."""
    database = descriptors.describe(backbone, task.database, task.how)
    if others is not None:
        database = torch.cat([database, descriptors.describe(backbone, others, task.how)])
    queries = {name: descriptors.describe(backbone, images, task.how) for name, images in task.queries.items()}
    if whiten is not None:
        turn = descriptors.learn_whitening(descriptors.describe(backbone, open_images(whiten, None), task.how))
        database, queries = turn(database), {name: turn(vectors) for name, vectors in queries.items()}
    if isinstance(task.truth, Truth):
        scores = landmark_scores(database, queries["queries"], task.truth)
        return {f"{task.suite}_{name}": value for name, value in scores.items()}
    device = next(backbone.parameters()).device
    found = {name: search(vectors, database, device) for name, vectors in queries.items()}
    return {
        f"map_{name.replace('/', '_')}": 100 * copydays.mean_average_precision(ranking, task.truth[name])
        for name, ranking in found.items()
    }


def landmark_scores(database: Float[Tensor, "t d"], queries: Float[Tensor, "q d"], truth: Truth) -> dict[str, float]:
    """mAP and mP@k, medium and hard, percent."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(database, dim=1).T
    ranking = similarity.argsort(dim=1, descending=True).numpy()
    found: dict[str, float] = {}
    for setting in revisited.SETTINGS:
        scores = revisited.precision(ranking, truth.relevant, setting)
        found[f"{setting}_map"] = 100 * scores.mean_average
        found |= {f"{setting}_mp{k}": 100 * value for k, value in scores.at.items()}
    return found


def search(queries: Float[Tensor, "q d"], database: Float[Tensor, "t d"], device: torch.device) -> Int[np.ndarray, "q top"]:
    """Numbers of the most similar images by cosine, best first, searched on the device."""
    queries, database = (F.normalize(vectors.to(device), dim=1) for vectors in (queries, database))
    count = min(copydays.TOP, len(database))
    return WAYS[quickest(queries, database, count)](queries, database, count).row.cpu().numpy()


def main(arguments: Sequence[str]) -> None:
    options = parse(RetrievalOptions, arguments, prog="python -m probes.retrieval")
    began = time.perf_counter()
    subject = open_frozen(options)
    loaded = subject.loaded
    out = record.place(options.out, loaded, f"retrieval_{options.suite}", options)
    task, others = open_task(options, loaded.backbone), strangers(options)
    rows = {"this checkpoint": measure(loaded.backbone, task, others, options.whiten)}
    if options.baselines:
        rows["the same, untrained"] = measure(untrained(subject, options.seed).backbone, task, others, options.whiten)
    seconds, searched = time.perf_counter() - began, len(task.database) + (len(others) if others is not None else 0)
    table(
        f"{options.suite}, % ({searched} images searched, {options.data}): {loaded.path}",
        ("", *rows),
        ([name, *(f"{row[name]:.1f}" for row in rows.values())] for name in rows["this checkpoint"]),
    )
    record.write(
        out,
        probe="retrieval",
        table="copydays" if options.suite == "copydays" else "T16_retrieval_vos",
        loaded=loaded,
        data={
            "root": options.data,
            "suite": options.suite,
            "database": searched,
            "val_images": sum(map(len, task.queries.values())),
        },
        protocol=task.protocol | {"whiten": options.whiten, "distractors": options.distractors, "key": options.key},
        metrics=rows["this checkpoint"]
        | {f"untrained_{name}": value for name, value in rows.get("the same, untrained", {}).items()},
        seconds=seconds,
        device=subject.device.type,
    )
    terminal.say(f"{seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(run_command(main))
