"""Revisited Oxford and Paris: their ground truth, and mAP and mP@k by their rules.

Source: Radenovic et al., Revisiting Oxford and Paris (arXiv 1803.11285), section 4. q queries, t images of the database.
"""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from checkpoints.command import UserError
from checkpoints.store import first_line

KS = (1, 5, 10)
SETTINGS = {"medium": (("easy", "hard"), ("junk",)), "hard": (("hard",), ("junk", "easy"))}
"""What counts as found, and what is looked through as if it were not there."""
PLAIN = {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("builtins", "bytes"),
    ("__builtin__", "bytes"),
}
"""What may stand in a ground truth besides plain values: arrays and numbers of numpy, bytes of old Python."""


class Truth(NamedTuple):
    """Names of the database and of the queries; of each query the numbers of its easy, hard and junk images."""

    names: list[str]
    queries: list[str]
    relevant: list[dict[str, np.ndarray]]


class Precision(NamedTuple):
    """From 0 to 1."""

    mean_average: float
    at: dict[int, float]
    """Mean precision among the first k."""


class _DataOnly(pickle.Unpickler):
    """Reads plain values and numpy's arrays; anything else that a pickle could call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it holds code ({module}.{name}), which is never run")
        return super().find_class(module, name)


def read_truth(path: Path) -> Truth:
    """`gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, no code in it being run. Raises UserError for anything else."""
    if not path.is_file():
        raise UserError(f"there is no ground truth {path}: fetch it from the authors of revisited Oxford and Paris")
    try:
        content = _DataOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        relevant = [
            {kind: np.asarray(one[kind], dtype=np.int64).ravel() for kind in ("easy", "hard", "junk")} for one in content["gnd"]
        ]
        truth = Truth([str(name) for name in content["imlist"]], [str(name) for name in content["qimlist"]], relevant)
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{path} is no ground truth of revisited Oxford or Paris: {first_line(error)}") from error
    numbers = np.concatenate([one[kind] for one in relevant for kind in one] or [np.zeros(0, dtype=np.int64)])
    if len(relevant) != len(truth.queries) or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(truth.names)):
        raise UserError(f"{path} does not agree with itself: {len(truth.queries)} queries, {len(relevant)} answers")
    return truth


def average_precision(ranks: Sequence[int], count: int) -> float:
    """Area under precision and recall by trapezoids. `ranks` (from 0, rising) of the found among `count` positives."""
    area = 0.0
    for found, rank in enumerate(ranks):
        before = found / rank if rank else 1.0
        area += (before + (found + 1) / (rank + 1)) / 2 / count
    return area


def precision(ranking: Int[np.ndarray, "q t"], relevant: Sequence[dict[str, np.ndarray]], setting: str) -> Precision:
    """Over the queries that have positives. `ranking` is the database, best first; junk is taken out of it.

    Precision at k looks at no more images than it takes to find all positives. Raises UserError where no query has any.
    """
    wanted, ignored = SETTINGS[setting]
    averages, at = [], []
    for ranked, kinds in zip(ranking, relevant, strict=True):
        positives = np.concatenate([kinds[kind] for kind in wanted])
        if not len(positives):
            continue
        left = ranked[~np.isin(ranked, np.concatenate([kinds[kind] for kind in ignored]))]
        ranks = np.flatnonzero(np.isin(left, positives))
        averages.append(average_precision(ranks.tolist(), len(positives)))
        depths = [min(int(ranks.max()) + 1, k) for k in KS]
        at.append([(ranks < depth).sum() / depth for depth in depths])
    if not averages:
        raise UserError(f"no query has an image to be found in the {setting} setting")
    return Precision(float(np.mean(averages)), dict(zip(KS, np.mean(at, axis=0).tolist(), strict=True)))
