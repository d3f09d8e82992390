"""ImageNet-C: errors under nineteen corruptions, from its folders or made on the fly.

Two numbers: the mean error over all nineteen, not normalised, which the original prints as "mCE" (paper, Table 8); and mCE as it
is defined (Hendrycks and Dietterich, arXiv 1903.12261, section 4): errors over the fifteen standard corruptions, summed over the
severities, each divided by AlexNet's. h w pixels.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from checkpoints.cli import UserError
from pretrain.evaluate.views import evaluation_box
from pretrain.images import folders
from pretrain.images.source import Content, Images
from pretrain.sample.corruptions import EXTRA, NAMES, SEVERITIES, STANDARD, corrupt
from probes.linear.head import Classifier, View, batches, columns

_FIRST_TEN = (88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360, 86.6816, 82.6572, 81.9324)
ALEXNET = dict(zip(STANDARD, (*_FIRST_TEN, 56.4592, 85.3204, 64.6056, 71.7840, 60.6500), strict=True))
"""Mean errors of AlexNet over the severities, percent, as the authors of ImageNet-C published them (hendrycks/robustness)."""
RESIZE, CROP = 256, 224
"""Preprocessing of ImageNet-C's pictures before corruption; smaller ones are corrupted as they are."""

Errors = Mapping[str, Mapping[int, float]]
"""Percent, by corruption and severity."""


class Corrupted(Images):
    """The pictures of a source, corrupted; the same each time."""

    def __init__(self, images: Images, name: str, severity: int, seed: int = 0) -> None:
        self._images, self._what, self._seed = images, (name, severity), seed
        self.name, self.labels, self.classes = f"{images.name}, {name} {severity}", images.labels, images.classes

    def __len__(self) -> int:
        return len(self._images)

    def content(self, index: int) -> Content:
        return corrupt(cut(self._images[index]), *self._what, (self._seed, index))

    def where(self, index: int) -> str:
        return self._images.where(index)


def cut(pixels: np.ndarray) -> np.ndarray:
    """Shorter side 256, centre 224, where a picture is larger than that."""
    if min(pixels.shape[:2]) <= CROP:
        return pixels
    size, left, upper = evaluation_box(pixels.shape[1], pixels.shape[0], RESIZE, CROP)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))[upper : upper + CROP, left : left + CROP]


def open_layout(root: Path) -> Callable[[str, int], Images]:
    """`CORRUPTION/SEVERITY/CLASS/*` of all. Raises UserError naming what is missing."""
    absent = [f"{name}/{severity}" for name in NAMES for severity in SEVERITIES if not (root / name / str(severity)).is_dir()]
    if absent:
        raise UserError(
            f"{root} lacks {len(absent)} of {len(NAMES) * len(SEVERITIES)} folders of ImageNet-C, the first is {absent[0]}"
        )
    return lambda name, severity: folders.said(root / name / str(severity), one_of_many=True)


def error(classifier: Classifier, images: Images, view: View, batch_size: int) -> float:
    """Percent wrong."""
    column = torch.tensor(columns(classifier.head, images.classes, images.name))[torch.as_tensor(images.labels)]
    hits = 0
    for numbers, crops in batches(images, view, classifier.backbone.shape, batch_size):
        hits += int((classifier.logits(crops).argmax(dim=1) == column[list(numbers)]).sum())
    return 100 * (1 - hits / len(images))


def mean_error(errors: Errors) -> float:
    """Over all nineteen corruptions, not normalised: the original's number."""
    return float(np.mean([np.mean(list(errors[name].values())) for name in NAMES]))


def mean_corruption_error(errors: Errors) -> float:
    """mCE: over the fifteen, each divided by AlexNet's, percent."""
    return float(np.mean([100 * np.mean(list(errors[name].values())) / ALEXNET[name] for name in STANDARD]))


def summary(errors: Errors) -> dict[str, float]:
    """Both numbers, then the mean error of each corruption and of each severity."""
    found = {"mean_error": mean_error(errors), "mce": mean_corruption_error(errors)}
    found |= {f"{name}_error": float(np.mean(list(errors[name].values()))) for name in (*STANDARD, *EXTRA)}
    return found | {
        f"severity_{severity}_error": float(np.mean([errors[name][severity] for name in NAMES])) for severity in SEVERITIES
    }
