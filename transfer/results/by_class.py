"""Numbers of each class as tables: for spreadsheets, and for the page.

k classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from checkpoints import escape

AP = tuple(f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap_50", "ap_75"))
Table = list[list[str]]
"""Head and rows; a number that is not defined is empty."""


class ClassAP(NamedTuple):
    """A class of a detector."""

    name: str
    id: int
    """As in the annotations."""
    images: int
    """Test images with an object of it."""
    objects: int
    """Objects in them; crowds do not count."""
    ap: dict[str, float]
    """`box_ap`, `box_ap_50`, `box_ap_75` and those of masks, in percent; nothing where there are no objects."""


def detection(rows: Sequence[ClassAP]) -> Table:
    """Classes by their own ids: test images, objects, AP in percent. Without objects in the test images a class has no AP."""
    names = [name for name in AP if any(name in row.ap for row in rows)]
    body = [
        [row.name, str(row.id), str(row.images), str(row.objects), *(_percent(row.ap.get(name)) for name in names)]
        for row in rows
    ]
    return [["class", "id", "images", "objects", *names], *body]


def segmentation(counts: Int[np.ndarray, "k k"], classes: Sequence[str], labels: Sequence[int]) -> Table:
    """Classes by their own labels: pixels in the truth and in the answers, IoU and accuracy (recall) in percent.

    A class that occurs in neither has no IoU and is left out of mIoU; one that occurs in answers alone has 0; one that does not
    occur in the truth has no accuracy.
    """
    right, truth, answers = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    body = []
    for k, (name, label) in enumerate(zip(classes, labels, strict=True)):
        union = truth[k] + answers[k] - right[k]
        iou, accuracy = (100 * float(right[k]) / float(of) if of else None for of in (union, truth[k]))
        body.append([name, str(label), str(truth[k]), str(answers[k]), _percent(iou), _percent(accuracy)])
    return [["class", "label", "pixels", "predicted_pixels", "iou", "acc"], *body]


def confusion(counts: Int[np.ndarray, "k k"], classes: Sequence[str]) -> str:
    """CSV of pixels: a row for each true class, a column for each answer."""
    return escape.csv_text([["truth", *classes], *([name, *row] for name, row in zip(classes, counts.tolist(), strict=True))])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
