"""The suites of `probes.retrieval`: options, and each suite's images and ground truth, opened before anything is computed."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from checkpoints import places
from checkpoints.cli import UserError
from pretrain.images.source import Files, Images, InMemory, Subset
from pretrain.models.backbone import Backbone
from pretrain.models.measured import require
from pretrain.sample import retrieval
from probes.retrieval import copydays, descriptors, revisited
from probes.retrieval.descriptors import Describe
from probes.retrieval.revisited import Truth
from probes.shared.subject import Frozen, made_ready, paper_crop

PAPER_SIZE = 512
"""Pixels of the longer side for landmarks."""


@dataclass(frozen=True)
class RetrievalOptions(Frozen):
    """Find the same place, or the original of a copy (paper, Table 16). --data: `sample`, the folder that holds roxford5k/ and
    rparis6k/, or Copydays' folder."""

    suite: Literal["roxford5k", "rparis6k", "copydays"] = "roxford5k"
    """Benchmark."""
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
    """Queries, images to search, and the ground truth."""

    suite: str
    database: Images
    queries: Mapping[str, Images]
    truth: Any
    """Landmarks: `Truth`; copies: of each block the numbers of the originals, copy by copy."""
    how: Describe
    protocol: dict[str, Any]


def open_task(options: RetrievalOptions, backbone: Backbone) -> Task:
    """Raises UserError naming what is missing of a data set."""
    return _copies(options, backbone) if options.suite == "copydays" else _landmarks(options, backbone)


def _landmarks(options: RetrievalOptions, backbone: Backbone) -> Task:
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


def _copies(options: RetrievalOptions, backbone: Backbone) -> Task:
    blocks = copydays.open_blocks(options.data)
    require(backbone, "patches")
    size = options.size or paper_crop(backbone)
    if size % backbone.shape.stride:
        raise UserError(f"--size {size} is not divisible by {backbone.shape.stride}, the pixels of a token's side")
    made_ready(backbone, size)
    originals = blocks[copydays.ORIGINAL]
    truth = {name: copydays.positives(block, originals)[: options.limit] for name, block in blocks.items()}
    queries = {name: Subset(block.images, np.arange(len(truth[name]))) for name, block in blocks.items()}
    how = functools.partial(descriptors.copy, size=size)
    return Task(
        options.suite, originals.images, queries, truth, how, {"size": size, "gem": descriptors.POWER, "top": copydays.TOP}
    )
