"""Revisited Oxford and Paris: their ground truth, and mAP and mP@k by their rules.

Source: Radenovic et al., Revisiting Oxford and Paris (arXiv 1803.11285), section 4. q queries, t images of the database.

    python -m probes.retrieval.revisited roxford5k/gnd_roxford5k.pkl

writes `gnd_roxford5k.json` beside it, which is read from then on: the published pickle can be deleted.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Int

from checkpoints import plain_numpy, plain_pickle, reading, store, terminal
from checkpoints.cli import DONE, UserError, parse, run_command

KS = (1, 5, 10)
SETTINGS = {"medium": (("easy", "hard"), ("junk",)), "hard": (("hard",), ("junk", "easy"))}
"""For each setting the lists that count as positive, and those that are ignored."""
RELEVANCE = ("easy", "hard", "junk")
LARGEST = 1 << 26
"""Bytes of a ground truth; the published ones have less than a hundredth."""


class Truth(NamedTuple):
    """Names of the database and of the queries; of each query the numbers of its easy, hard and junk images."""

    names: list[str]
    queries: list[str]
    relevant: list[dict[str, np.ndarray]]


class Precision(NamedTuple):
    """Mean average precision and precisions at ranks, from 0 to 1."""

    mean_average: float
    at: dict[int, float]
    """Mean precision among the first k."""


@dataclass(frozen=True)
class RevisitedOptions:
    """Convert a ground truth of revisited Oxford or Paris from the published pickle to JSON."""

    truth: Annotated[Path, tyro.conf.Positional]
    """gnd_roxford5k.pkl or gnd_rparis6k.pkl."""
    out: Path | None = None
    """The file to write (default: the same name with .json)."""


def find_truth(path: Path) -> Truth:
    """The ground truth called `path` but for its ending: JSON where there is one, else the published pickle, read as data."""
    converted = path.with_suffix(".json")
    return read_truth(converted if converted.is_file() else path.with_suffix(".pkl"))


def read_truth(path: Path) -> Truth:
    """`gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, read as data, or what `convert` made of one. Raises UserError for all else."""
    if not path.is_file():
        raise UserError(f"there is no ground truth {path}: fetch it from the authors of revisited Oxford and Paris")
    try:
        content = reading.content(path, LARGEST)
        truth = _truth(json.loads(content) if path.suffix == ".json" else plain_pickle.loads(content, plain_numpy.names))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no ground truth of revisited Oxford or Paris: {store.first_line(error)}") from error
    relevant = truth.relevant
    numbers = np.concatenate([one[kind] for one in relevant for kind in one] or [np.zeros(0, dtype=np.int64)])
    if len(relevant) != len(truth.queries) or (len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(truth.names)):
        raise UserError(f"{path} does not agree with itself: {len(truth.queries)} queries, {len(relevant)} answers")
    return truth


def _truth(content: Any) -> Truth:
    """The ground truth from plain values. Raises ValueError."""
    if not isinstance(content, dict) or not isinstance(content.get("gnd"), list):
        raise ValueError("it has no list `gnd`")
    if not all(isinstance(one, dict) and one.keys() >= set(RELEVANCE) for one in content["gnd"]):
        raise ValueError("an entry of `gnd` has no lists of easy, hard and junk images")
    relevant = [{kind: _numbers(one[kind]) for kind in RELEVANCE} for one in content["gnd"]]
    return Truth(_words(content.get("imlist")), _words(content.get("qimlist")), relevant)


def _numbers(values: Any) -> Int[np.ndarray, " n"]:
    """A list or an array of whole numbers. Raises ValueError."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        raise ValueError(f"it has a {type(values).__name__} in place of a list of images")
    array = np.asarray(values).ravel()
    if len(array) and (array.dtype.kind not in "iuf" or not (np.abs(array) < 1 << 31).all() or (array % 1).any()):
        raise ValueError("a list of images holds something else than their numbers")
    return array.astype(np.int64)


def _words(values: Any) -> list[str]:
    """Names of pictures, each a plain file name. Raises ValueError."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        raise ValueError("it has no lists `imlist` and `qimlist` of names")
    words = [value.decode("latin1") if isinstance(value, bytes) else value for value in values]
    if not all(isinstance(word, str) for word in words):
        raise ValueError("a picture's name is no text")
    return [str(word) for word in words]


def plain_truth(truth: Truth) -> dict[str, Any]:
    """Plain values in the published files' layout, without the queries' boxes, which are not used."""
    relevant = [{kind: numbers.tolist() for kind, numbers in one.items()} for one in truth.relevant]
    return {"imlist": truth.names, "qimlist": truth.queries, "gnd": relevant}


def convert(options: RevisitedOptions) -> int:
    """Write the JSON; an exit code."""
    truth, out = read_truth(options.truth), options.out or options.truth.with_suffix(".json")
    if out.suffix != ".json":
        raise UserError(f"--out {out}: give a name that ends with .json")
    try:
        store.write_bytes(out, json.dumps(plain_truth(truth)).encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give another --out") from error
    terminal.say(f"{out}: {len(truth.names)} pictures, {len(truth.queries)} queries")
    return DONE


def main(arguments: Sequence[str]) -> int:
    """Run a command line; returns an exit code."""
    return convert(parse(RevisitedOptions, arguments, prog="python -m probes.retrieval.revisited"))


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


if __name__ == "__main__":
    sys.exit(run_command(main))
