"""A probe's numbers from its answers, computed by scikit-learn, with 95 % intervals by the bootstrap over the test images.

Resampling images with replacement is a multinomial draw of how often each comes: where a number depends on counts alone, the
counts are drawn themselves, so that 50,000 images cost no more than 500. n images, k classes, b resamples.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn import metrics as sk

RESAMPLES, SEED = 1000, 0
PERCENTILES = (2.5, 97.5)
FEWEST, WORK, MOST = 200, 4e7, 500_000
"""Of numbers that need the order of scores: fewest resamples, resamples x images x classes, and images x classes beyond which
they have no interval."""
MOST_SCORES = 1 << 28
"""Images x classes beyond which no scores are looked at."""
NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "auroc": "AUROC",
    "mean_ap": "mean AP",
    "r2": "R2",
    "mae": "MAE",
}
MAIN = {"classes": "top1", "multi-label": "mean_ap", "regression": "r2"}
"""The number by which settings are compared, by task; larger is better."""


class Score(NamedTuple):
    """A number and its interval; None where it has none."""

    value: float
    low: float | None = None
    high: float | None = None

    def shown(self, digits: int = 1) -> str:
        """`73.2 [70.1, 76.0]`."""
        return f"{self.value:.{digits}f}" + ("" if self.low is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]")


Scores = Mapping[str, Score]


def of_share(percent: float, images: int) -> Score:
    """A percentage of images: of resampled ones it is binomial."""
    right = round(percent * images / 100)
    drawn = np.random.default_rng(SEED).binomial(images, right / images, size=RESAMPLES)
    return _with(percent, 100 * drawn / images)


def _with(value: float, resampled: np.ndarray) -> Score:
    if not np.isfinite(resampled).any():
        return Score(value)
    low, high = np.nanpercentile(resampled, PERCENTILES)
    return Score(value, float(low), float(high))


def of_classes(answers: Int[np.ndarray, "n a"], labels: Int[np.ndarray, " n"], shares: Float[np.ndarray, "n k"] | None) -> Scores:
    """Percentages from answers, best first, and from each class's share of the votes or probability.

    Means over classes are over those that have a test image (macro F1: or an answer, as scikit-learn). AUROC is one against the
    rest.
    """
    first = answers[:, 0]
    top1, top5 = (100 * float((answers[:, :top] == labels[:, None]).any(axis=1).mean()) for top in (1, 5))
    found = {"top1": of_share(top1, len(labels)), "top5": of_share(top5, len(labels))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of answers that no image has as its class
        balanced, f1 = sk.balanced_accuracy_score(labels, first), sk.f1_score(labels, first, average="macro")
    resampled = _of_counts(labels, first)
    found["balanced_accuracy"] = _with(100 * float(balanced), resampled[0])
    found["macro_f1"] = _with(100 * float(f1), resampled[1])
    if shares is None or shares.size > MOST_SCORES:
        return found
    return found | _of_order(shares, labels[:, None] == np.arange(shares.shape[1]))


def _of_counts(labels: Int[np.ndarray, " n"], answers: Int[np.ndarray, " n"]) -> Float[np.ndarray, "2 b"]:
    """Balanced accuracy and macro F1 in percent, of resampled counts of (class, answer)."""
    classes, numbers = np.unique(np.concatenate([labels, answers]), return_inverse=True)
    truth, said = numbers[: len(labels)], numbers[len(labels) :]
    cells, counts = np.unique(truth * len(classes) + said, return_counts=True)
    row, column = np.divmod(cells, len(classes))
    place, one = np.arange(len(cells)), np.ones(len(cells))
    of_truth, of_answer, of_right = (
        sparse.csr_array((weight, (place, where)), shape=(len(cells), len(classes)))
        for where, weight in ((row, one), (column, one), (row, (row == column).astype(float)))
    )
    generator, found = np.random.default_rng(SEED), []
    block = max(1, min(RESAMPLES, int(2e6) // len(cells)))
    for start in range(0, RESAMPLES, block):
        drawn = generator.multinomial(len(labels), counts / len(labels), size=min(block, RESAMPLES - start)).astype(float)
        own, said_, right = drawn @ of_truth, drawn @ of_answer, drawn @ of_right
        with np.errstate(invalid="ignore"):
            found.append([np.nanmean(right / own, axis=1), np.nanmean(2 * right / (own + said_), axis=1)])
    return 100 * np.concatenate(found, axis=1)


def of_several(scores: Float[np.ndarray, "n k"], truth: Int[np.ndarray, "n k"], middle: float) -> Scores:
    """Percentages for several labels an image; F1 of those whose score is at least `middle`.

    Means over labels are over those that some test images have and others lack.
    """
    truth, said = truth > 0, scores >= middle
    found = _of_order(scores, truth)
    used = truth.any(axis=0) & ~truth.all(axis=0)
    if not used.any():
        return found
    macro, micro = (
        100 * float(sk.f1_score(truth[:, used], said[:, used], average=how, zero_division=0)) for how in ("macro", "micro")
    )
    drawn = [_f1(weights, truth[:, used], said[:, used]) for weights in _weights(len(truth), _resamples(truth.size))]
    resampled = np.concatenate(drawn, axis=1) if drawn else np.full((2, 1), np.nan)
    return {**found, "macro_f1": _with(macro, resampled[0]), "micro_f1": _with(micro, resampled[1])}


def _f1(weights: np.ndarray, truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    right, all_ = (weights @ one.astype(np.float32) for one in (truth & said, truth.astype(np.float32) + said))
    macro = np.where(all_ > 0, 2 * right / np.maximum(all_, 1), 0).mean(axis=1)
    return 100 * np.stack([macro, 2 * right.sum(axis=1) / np.maximum(all_.sum(axis=1), 1)])


def mean_ap(scores: Float[np.ndarray, "n k"], truth: Int[np.ndarray, "n k"]) -> float:
    """Mean average precision in percent, over labels that some images have and others lack; 0 where there is none."""
    found, truth = _usable(scores, truth > 0)
    return 100 * float(sk.average_precision_score(truth, found)) if truth.shape[1] else 0.0


def _usable(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns of classes that some images have and others lack."""
    used = truth.any(axis=0) & ~truth.all(axis=0)
    return scores[:, used], truth[:, used]


def _of_order(scores: np.ndarray, truth: Bool[np.ndarray, "n k"]) -> dict[str, Score]:
    """AUROC and mean AP, means over classes, in percent."""
    scores, truth = _usable(scores, truth)
    if not truth.shape[1]:
        return {}
    auroc, precision = (
        100 * float(np.mean([measure(truth[:, k], scores[:, k]) for k in range(truth.shape[1])]))
        for measure in (sk.roc_auc_score, sk.average_precision_score)
    )
    resampled = [
        _means(np.stack([by_order(scores[:, k], truth[:, k], weights) for k in range(truth.shape[1])]))
        for weights in _weights(len(truth), _resamples(truth.size))
    ]
    drawn = 100 * np.concatenate(resampled, axis=1) if resampled else np.full((2, 1), np.nan)
    return {"auroc": _with(auroc, drawn[0]), "mean_ap": _with(precision, drawn[1])}


def _means(values: Float[np.ndarray, "k 2 b"]) -> Float[np.ndarray, "2 b"]:
    """Means over classes, without those that a resample lacks."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def _resamples(size: int) -> int:
    """How many can be afforded for so many images times classes."""
    return 0 if size > MOST else int(np.clip(WORK / size, FEWEST, RESAMPLES))


def _weights(images: int, resamples: int) -> Iterator[Float[np.ndarray, "b n"]]:
    """How often each image comes in each resample, a block of resamples at a time."""
    generator, block = np.random.default_rng(SEED), max(1, int(2e6) // images)
    for start in range(0, resamples, block):
        yield generator.multinomial(images, np.full(images, 1 / images), size=min(block, resamples - start)).astype(np.float32)


def by_order(scores: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "b n"]) -> np.ndarray:
    """AUROC and average precision [2, b] of weighted images, as scikit-learn has them for `sample_weight`.

    Images of one score count together. NaN where a resample has no image with, or none without the label.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, drawn = scores[order], weights[:, order].astype(np.float64)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    with_it = np.cumsum(drawn * truth[order], axis=1)[:, ends]
    seen = np.cumsum(drawn, axis=1)[:, ends]
    without = seen - with_it
    new, new_without = np.diff(with_it, axis=1, prepend=0), np.diff(without, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (new_without * (with_it - new / 2)).sum(axis=1) / (with_it[:, -1] * without[:, -1])
        precision = (new * with_it / np.maximum(seen, 1e-12)).sum(axis=1) / with_it[:, -1]
    both = (with_it[:, -1] > 0) & (without[:, -1] > 0)
    return np.where(both, np.stack([area, precision]), np.nan)


def of_values(predicted: Float[np.ndarray, " n"], targets: Float[np.ndarray, " n"]) -> Scores:
    """R2, and the mean absolute error in the unit of the labels."""
    error = predicted - targets
    moments = np.stack([targets, targets**2, error**2, np.abs(error)], axis=1)
    blocks = [weights @ moments / len(targets) for weights in _weights(len(targets), RESAMPLES)]
    mean, square, wrong, absolute = np.concatenate(blocks).T
    with np.errstate(invalid="ignore", divide="ignore"):
        r2 = 1 - wrong / (square - mean**2)
    r2[~np.isfinite(r2)] = np.nan
    return {
        "r2": _with(float(sk.r2_score(targets, predicted)), r2),
        "mae": _with(float(sk.mean_absolute_error(targets, predicted)), absolute),
    }


def r2(predicted: Float[np.ndarray, " n"], targets: Float[np.ndarray, " n"]) -> float:
    """Share of the variance that is explained."""
    return float(sk.r2_score(targets, predicted))


def digits(name: str) -> int:
    """Decimals to show: percentages have one."""
    return 3 if name in ("r2", "mae") else 1


def line(scores: Scores, without: Sequence[str] = ()) -> str:
    """The numbers and their intervals in words."""
    return "   ".join(f"{NAMES[name]} {one.shown(digits(name))}" for name, one in scores.items() if name not in without)


def intervals(scores: Scores) -> dict[str, tuple[float, float]]:
    """For a record: the intervals of those that have one."""
    return {name: (one.low, one.high) for name, one in scores.items() if one.low is not None and one.high is not None}


def values(scores: Scores) -> dict[str, float]:
    """For a record: the numbers alone."""
    return {name: one.value for name, one in scores.items()}


class Repeats(NamedTuple):
    """Means over seeds, of numbers and of their bounds, and the sample standard deviation between seeds."""

    scores: Scores
    spread: Mapping[str, float]

    def record(self) -> dict[str, float]:
        """The numbers for a record: means, and `NAME_std`."""
        return values(self.scores) | {f"{name}_std": one for name, one in self.spread.items()}

    def line(self) -> str:
        """One line on all."""
        return "   ".join(
            f"{NAMES.get(name, name)} {one.shown(digits(name))} \N{PLUS-MINUS SIGN} {self.spread[name]:.{digits(name)}f}"
            for name, one in self.scores.items()
        )


def over_seeds(several: Sequence[Scores]) -> Repeats:
    """Mean and spread of what every seed has measured."""
    means: dict[str, Score] = {}
    spread: dict[str, float] = {}
    for name in several[0]:
        every = [one[name] for one in several if name in one]
        bounds = [(one.low, one.high) for one in every if one.low is not None and one.high is not None]
        low, high = np.mean(bounds, axis=0).tolist() if bounds else (None, None)
        means[name] = Score(float(np.mean([one.value for one in every])), low, high)
        if len(several) > 1:
            spread[name] = float(np.std([one.value for one in every], ddof=1)) if len(every) > 1 else 0.0
    return Repeats(means, spread)
