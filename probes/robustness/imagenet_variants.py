"""ImageNet-A, -R and -Sketch: natural adversaries, renditions, drawings. A and R ask for 200 classes: other logits are left out.

b images, k classes of the head.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints.cli import UserError
from pretrain.images import folders
from pretrain.images.source import Images
from probes.linear.head import Classifier, View, batches, columns
from probes.robustness import class_maps

NAMES = {"ina": "imagenet_a", "inr": "imagenet_r", "sketch": "imagenet_sketch"}


def open_folder(suite: str, root: Path) -> Images:
    """`CLASS/*`. Raises UserError where classes of the data set are missing (folders named by synsets)."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give --data the folder of {NAMES[suite]}, which holds a folder a class")
    images = folders.said(root)
    if images.labels is None:
        raise UserError(f"{root} has no class folders: give --data the folder of {NAMES[suite]}")
    known = class_maps.imagenet() if suite == "sketch" else class_maps.shipped()[NAMES[suite]]["classes"]
    absent = sorted(set(known) - set(images.classes))
    if len(absent) < len(known) and absent:
        raise UserError(
            f"{root} lacks {len(absent)} of {len(known)} classes, the first is {absent[0]}: fetch {NAMES[suite]} again"
        )
    return images


def right(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"], asked: Sequence[int]) -> Int[Tensor, ""]:
    """Number of images whose top class among those `asked` (columns of the head) is right. `labels` are indices into `asked`."""
    return (logits[:, list(asked)].argmax(dim=1) == labels).sum()


def measure(suite: str, classifier: Classifier, images: Images, view: View, batch_size: int) -> dict[str, float]:
    """Percent right among the classes of the data set, and, as `SUITE_all_classes_top1`, among all that the head knows."""
    asked, labels = columns(classifier.head, images.classes, images.name), torch.as_tensor(images.labels)
    among, of_all, column = 0, 0, torch.tensor(asked)
    for numbers, crops in batches(images, view, classifier.backbone.shape, batch_size):
        logits, own = classifier.logits(crops), labels[list(numbers)]
        among += int(right(logits, own, asked))
        of_all += int((logits.argmax(dim=1) == column[own]).sum())
    return {f"{suite}_top1": 100 * among / len(images), f"{suite}_all_classes_top1": 100 * of_all / len(images)}
