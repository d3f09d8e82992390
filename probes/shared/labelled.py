"""Labels of a probe's images: which kinds it takes, and parts that share no patient, site or other group."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

from checkpoints.cli import UserError
from pretrain.images.source import Images, Subset, with_labels

CLASSES: tuple[str, ...] = ("classes",)
EVERY: tuple[str, ...] = ("classes", "multi-label", "regression")
FOLDS = 5
"""One fold of so many is tested on, where data has no part of its own for that."""


def without_labels(images: Images, who: str) -> str:
    """What is wrong with images that have no class each."""
    truth = images.truth()
    if truth is None:
        return f"{images.name} has no labels: {who} needs class sub-folders, or a label column"
    kind = "several labels an image" if truth.task == "multi-label" else "numbers to predict"
    return f"{images.name} has {kind}, and {who} needs one class an image: --task classes takes each entry for a class"


def of_tasks(images: Images, tasks: Sequence[str]) -> Images:
    """Those that have a label. Raises UserError where none has, where they are for none of `tasks`, or all alike.

    Of one class only any result is 100 %.
    """
    truth = images.truth()
    if truth is None or truth.task not in tasks:
        raise UserError(without_labels(images, "this probe"))
    if not truth.known.any():
        raise UserError(f"no image of {images.name} has a label: use more of the images")
    known = truth.values[truth.known]
    cure = "use more of the images" if isinstance(images, Subset) else "give the folder that holds the class folders"
    if truth.task == "classes" and len(kinds := np.unique(known)) == 1:
        raise UserError(
            f"{images.name} has one class only ({images.classes[int(kinds[0])]}), and a probe needs two or more: {cure}"
        )
    if truth.task == "multi-label" and (known == known[0]).all():
        raise UserError(f"all images of {images.name} have the same labels, and there is nothing to tell apart: use more of them")
    if truth.task == "regression" and (known == known[0]).all():
        raise UserError(
            f"all images of {images.name} have the value {known[0]:g}, and there is nothing to predict: use more of them"
        )
    return with_labels(images)


def untested(train: Images, val: Images) -> str:
    """A sentence on classes to learn that no test image has, or nothing."""
    known, tested = (_classes(images) for images in (train, val))
    absent = sorted(known - tested)
    if not absent:
        return ""
    names = ", ".join(str(train.classes[number]) for number in absent[:5]) + (", ..." if len(absent) > 5 else "")
    return f"{len(absent)} of {len(known)} classes have no test image in {val.name} ({names}): they are in no number"


def _classes(images: Images) -> set[int]:
    truth = images.truth()
    if truth is None or truth.task == "regression":
        return set()
    known: Any = truth.values[truth.known]
    return set((np.flatnonzero((known > 0).any(axis=0)) if truth.task == "multi-label" else np.unique(known)).tolist())


def divided(images: Images, column: str, seed: int) -> tuple[Images, Images]:
    """Images to learn from and to test on, a fifth, no group on both sides; classes as evenly as that allows.

    Raises UserError for fewer than two groups.
    """
    learnt, tested = division(images, column, seed, 1 / FOLDS)
    return Subset(images, learnt), Subset(images, tested)


def division(images: Images, column: str, seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images on either side, by scikit-learn: StratifiedGroupKFold, or where it cannot, GroupShuffleSplit."""
    groups, labels = images.groups, images.labels
    assert groups is not None
    count = len(np.unique(groups))
    if count < 2:
        raise UserError(
            f"--group {column}: all images of {images.name} are of one group, {groups[0]}, and cannot be divided by it"
        )
    empty = np.zeros(len(groups))
    folds = round(1 / share)
    if labels is not None and count >= folds and np.bincount(labels).max() >= folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes with fewer images than folds
            learnt, tested = next(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(empty, labels, groups))
        if len(tested):
            return learnt, tested
    return next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(empty, groups=groups))


def refuse_shared(train: Images, val: Images, column: str) -> None:
    """Raises UserError where a group is in both parts."""
    assert train.groups is not None and val.groups is not None
    both = sorted(set(train.groups) & set(val.groups))
    if both:
        names = ", ".join(both[:3]) + (", ..." if len(both) > 3 else "")
        raise UserError(
            f"--group {column}: {len(both)} of its values are in both {train.name} and {val.name} ({names}): divide the images "
            "so that none is, or give one file and let --group divide it"
        )
