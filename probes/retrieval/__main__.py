"""Retrieval by frozen vectors: revisited Oxford and Paris (paper, Table 16) and Copydays.

`python -m probes.retrieval --ckpt runs/sample --suite roxford5k|rparis6k|copydays`
"""

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints import places, terminal
from checkpoints.cli import UserError, at_least, parse, run_command
from pretrain.images.open import open_images
from pretrain.images.source import Files, Images, InMemory, Subset
from pretrain.models.backbone import Backbone, make
from pretrain.sample import retrieval
from probes.features.search import by_faiss
from probes.retrieval import copydays, descriptors, revisited
from probes.retrieval.descriptors import Describe
from probes.retrieval.revisited import Truth
from probes.shared import record
from probes.shared.console import table
from probes.shared.frozen import Frozen, subject

PAPER_SIZE = 512
"""Pixels of the longer side for landmarks."""
STRANGERS = 100
"""Of the sample's copies."""


@dataclass(frozen=True)
class Options(Frozen):
    """Find the same place, or the original of a copy (paper, Table 16). --data: `sample`, the folder that holds roxford5k/ and
    rparis6k/, or Copydays' folder."""

    suite: Literal["roxford5k", "rparis6k", "copydays"] = "roxford5k"
    """Which."""
    size: int | None = None
    """Pixels: landmarks' longer side at most (default: 512), copies' side (default: what the checkpoint was trained on)."""
    multi_scale: bool = True
    """Landmarks: the mean over scales of 1, 0.71 and 0.5."""
    whiten: str | None = None
    """A folder of images to learn a whitening from."""
    distractors: str | None = None
    """Copies: a folder of images that are searched as well."""
    baselines: bool = False
    """Also measure the same backbone untrained."""


class Task(NamedTuple):
    """What is asked, what is searched, and who is right."""

    suite: str
    database: Images
    queries: Mapping[str, Images]
    truth: Any
    """Landmarks: `Truth`; copies: of each block the numbers of the originals, copy by copy."""
    how: Describe
    protocol: dict[str, Any]


def open_task(options: Options, backbone: Backbone) -> Task:
    """Raises UserError naming what is missing of a data set."""
    return _copies(options, backbone) if options.suite == "copydays" else _landmarks(options, backbone)


def _landmarks(options: Options, backbone: Backbone) -> Task:
    if options.distractors is not None:
        raise UserError("--distractors is for --suite copydays")
    if options.data == "sample":
        drawn = retrieval.landmarks(seed=retrieval.SEED + (options.suite == "rparis6k"))
        relevant = [{kind: np.array(numbers) for kind, numbers in one.items()} for one in drawn.truth]
        truth = Truth(drawn.names, drawn.query_names, relevant)
        database: Images = InMemory("sample, landmarks", drawn.images)
        queries: Images = InMemory("sample, queries", drawn.queries)
    else:
        root = Path(options.data) / options.suite if (Path(options.data) / options.suite).is_dir() else Path(options.data)
        truth = revisited.find_truth(root / f"gnd_{options.suite}.pkl")
        database, queries = _files(root, truth.names, "database"), _files(root, truth.queries, "queries")
    if options.limit is not None:
        truth = truth._replace(queries=truth.queries[: options.limit], relevant=truth.relevant[: options.limit])
        queries = Subset(queries, np.arange(len(truth.queries)))
    size, scales = options.size or PAPER_SIZE, descriptors.SCALES if options.multi_scale else (1.0,)
    how = functools.partial(descriptors.landmark, size=size, scales=scales)
    return Task(
        options.suite, database, {"queries": queries}, truth, how, {"size": size, "scales": [round(scale, 4) for scale in scales]}
    )


def _files(root: Path, names: Sequence[str], what: str) -> Images:
    cure = "fetch the ground truth from its authors"
    paths = places.listed(root / "jpg", (f"{name}.jpg" for name in names), file=root, cure=cure)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} images of the {what} are missing, the first is {missing[0]}")
    return Files(f"{root.name}, {what}", paths, None)


def _copies(options: Options, backbone: Backbone) -> Task:
    blocks = copydays.open_blocks(options.data)
    size = options.size or backbone.shape.image_size
    if size % backbone.shape.stride:
        raise UserError(f"--size {size} is not divisible by {backbone.shape.stride}, the pixels of a token's side")
    originals = blocks[copydays.ORIGINAL]
    truth = {name: copydays.positives(block, originals)[: options.limit] for name, block in blocks.items()}
    queries = {name: Subset(block.images, np.arange(len(truth[name]))) for name, block in blocks.items()}
    how = functools.partial(descriptors.copy, size=size)
    return Task(
        options.suite, originals.images, queries, truth, how, {"size": size, "gem": descriptors.POWER, "top": copydays.TOP}
    )


def strangers(options: Options) -> Images | None:
    """What is searched besides the originals: --distractors, or the sample's own."""
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
    return {
        f"map_{name.replace('/', '_')}": 100 * copydays.mean_average_precision(search(vectors, database), task.truth[name])
        for name, vectors in queries.items()
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


def search(queries: Float[Tensor, "q d"], database: Float[Tensor, "t d"]) -> Int[np.ndarray, "q top"]:
    """Numbers of the most similar images by cosine, best first, by faiss."""
    found = by_faiss(F.normalize(queries, dim=1), F.normalize(database, dim=1), min(copydays.TOP, len(database)))
    return found.row.numpy()


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, prog="python -m probes.retrieval")
    at_least(1, options, "size")
    began = time.perf_counter()
    loaded, device = subject(options)
    task, others = open_task(options, loaded.backbone), strangers(options)
    rows = {"this checkpoint": measure(loaded.backbone, task, others, options.whiten)}
    if options.baselines:
        torch.manual_seed(options.seed)
        untrained = make(loaded.backbone.shape, maskable=False).to(device).eval()
        rows["the same, untrained"] = measure(untrained, task, others, options.whiten)
    seconds, searched = time.perf_counter() - began, len(task.database) + (len(others) if others is not None else 0)
    table(
        f"{options.suite}, % ({searched} images searched, {options.data}): {loaded.path}",
        ("", *rows),
        ([name, *(f"{row[name]:.1f}" for row in rows.values())] for name in rows["this checkpoint"]),
    )
    out = options.out or record.default_path(loaded, f"retrieval_{options.suite}")
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
        device=device.type,
    )
    terminal.say(f"{seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(run_command(main))
