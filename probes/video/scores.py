"""DAVIS-2017's scores of a mask: region similarity J, boundary measure F, and their statistics over a clip.

Source: Pont-Tuset et al., The 2017 DAVIS Challenge (arXiv 1704.00675), sections 4 and 5; Perazzi et al., CVPR 2016.

f frames, h w pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import distance_transform_edt

TOLERANCE = 0.008
"""Largest distance of matching boundaries, as a share of the picture's diagonal (rounded up to pixels)."""
VOID = 255
"""Pixels of an annotation that count for nothing."""
BINS = 4


class Statistics(NamedTuple):
    """Statistics of one object over the frames of a clip, from 0 to 1."""

    mean: float
    recall: float
    """Share of frames above a half."""
    decay: float
    """Mean of the first quarter of frames less that of the last."""


class Scores(NamedTuple):
    """Scores of one object."""

    region: Statistics
    boundary: Statistics


def region_similarity(said: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """J: intersection over union; 1 where both are empty."""
    union = (said | true).sum()
    return float((said & true).sum() / union) if union else 1.0


def boundary_measure(said: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """F: harmonic mean of the shares of each boundary that lie within TOLERANCE of the other (two empty ones: 1)."""
    edges = boundary(said), boundary(true)
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    reach = math.ceil(TOLERANCE * math.hypot(*said.shape))
    precision, recall = ((distances_to(other)[own] <= reach).mean() for own, other in (edges, edges[::-1]))
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose right, lower or lower right neighbour is of the other kind; at the edge only neighbours inside count."""
    inner = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, across = inner[:-1, 1:], inner[1:, :-1], inner[1:, 1:]
    return (mask != right) | (mask != below) | (mask != across)


def distances_to(edge: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Pixels from each place to the nearest one of `edge`."""
    return distance_transform_edt(~edge)


def statistics(values: Sequence[float]) -> Statistics:
    """Over the frames of one object."""
    frames = np.asarray(values)
    ends = np.round(np.linspace(1, len(frames), BINS + 1) + 1e-10).astype(int) - 1
    first, last = frames[ends[0] : ends[1] + 1], frames[ends[-2] : ends[-1] + 1]
    return Statistics(float(frames.mean()), float((frames > 0.5).mean()), float(first.mean() - last.mean()))


def objects(mask: UInt8[np.ndarray, "h w"]) -> Int[np.ndarray, " o"]:
    """The numbers of the objects in a mask; they may have gaps."""
    numbers = np.unique(mask).astype(np.int64)
    return numbers[(numbers > 0) & (numbers != VOID)]


def score_clip(said: UInt8[np.ndarray, "f h w"], true: UInt8[np.ndarray, "f h w"]) -> list[Scores]:
    """Scores of every object of the first frame; that frame, which is given, and the last one do not count."""
    return [_score_object(said[1:-1], true[1:-1], int(number)) for number in objects(true[0])]


def _score_object(said: UInt8[np.ndarray, "f h w"], true: UInt8[np.ndarray, "f h w"], number: int) -> Scores:
    known = true != VOID
    pairs = list(zip((said == number) & known, true == number, strict=True))
    return Scores(
        statistics([region_similarity(*pair) for pair in pairs]), statistics([boundary_measure(*pair) for pair in pairs])
    )


def summary(scores: Sequence[Scores]) -> dict[str, float]:
    """Percent, the mean over all objects of all clips: J, F, and J&F, the mean of both means."""
    found: dict[str, float] = {}
    for letter, kind in (("j", [one.region for one in scores]), ("f", [one.boundary for one in scores])):
        names = ("m", "recall", "decay")
        found |= {
            f"{letter}_{name}": 100 * float(np.mean(column)) for name, column in zip(names, zip(*kind, strict=True), strict=True)
        }
    return {"jf_m": (found["j_m"] + found["f_m"]) / 2} | found
