"""ImageNet-9: dependence of predictions on the background (paper, Table 8).

The top class of a linear head for all of ImageNet's classes is mapped to one of nine (or to none, which is wrong).

b images, k classes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints.cli import UserError
from pretrain.images import folders
from pretrain.images.source import Images
from pretrain.sample.shifts import IN9
from probes.linear.head import Classifier, Head, View, batches, columns

NONE = -1


def open_variants(root: Path) -> dict[str, Images]:
    """`VARIANT/val/CLASS/*` of all eight. Raises UserError naming those that are missing."""
    absent = [variant for variant in IN9 if not (root / variant / "val").is_dir()]
    if absent:
        raise UserError(
            f"{root} has no {', '.join(f'{variant}/val' for variant in absent)}: give --data the folder of ImageNet-9's variants"
        )
    return {variant: folders.said(root / variant / "val") for variant in IN9}


def labels_of(images: Images, count: int) -> Int[Tensor, " b"]:
    """Superclass numbers: what the folders' names begin with (`00_dog`). Raises UserError where they do not."""
    numbers = [re.match(r"(\d+)_", name) for name in images.classes]
    found = np.array([int(number[1]) if number else NONE for number in numbers])
    if images.labels is None or found.min() < 0 or found.max() >= count:
        names = ", ".join(images.classes[:3])
        raise UserError(f"{images.name}: folders of ImageNet-9 are called 00_dog to {count - 1:02d}_fish, these {names}, ...")
    return torch.from_numpy(found[images.labels])


def superclass_of(head: Head, members: Mapping[str, Sequence[str]]) -> Int[Tensor, " k"]:
    """The superclass of each of the head's classes, NONE for those without."""
    found = torch.full((len(head.classes),), NONE)
    for number, (name, own) in enumerate(members.items()):
        found[columns(head, own, f"members of {name}")] = number
    return found


def right(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"], superclass: Int[Tensor, " k"]) -> Int[Tensor, ""]:
    """Number of images whose top class belongs to their superclass."""
    return (superclass[logits.argmax(dim=1)] == labels).sum()


def measure(
    classifier: Classifier, variants: Mapping[str, Images], members: Mapping[str, Sequence[str]], view: View, batch_size: int
) -> dict[str, float]:
    """Percent right of each variant, and `bg_gap`, the difference of mixed_same and mixed_rand."""
    superclass, found = superclass_of(classifier.head, members), {}
    for name, images in variants.items():
        labels, hits = labels_of(images, len(members)), 0
        for numbers, crops in batches(images, view, classifier.backbone.shape, batch_size, name):
            hits += int(right(classifier.logits(crops), labels[list(numbers)], superclass))
        found[name] = 100 * hits / len(images)
    return found | {"bg_gap": found["mixed_same"] - found["mixed_rand"]}
