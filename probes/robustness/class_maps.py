"""Classes of ImageNet in each test set: `probes/robustness/class_maps.json`, which names its sources."""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo

from checkpoints import reading
from checkpoints.cli import UserError

FILE = Path(__file__).with_name("class_maps.json")


@cache
def shipped() -> dict[str, Any]:
    """`in9`: members of each of nine classes; `imagenet_a`, `imagenet_r`: 200 each. Synsets."""
    content: dict[str, Any] = json.loads(FILE.read_text())
    return content


@cache
def imagenet() -> tuple[str, ...]:
    """ImageNet's thousand synsets in the order of its classes, from timm."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


def superclasses(file: Path | None) -> dict[str, list[str]]:
    """Members of each superclass, in order: the shipped map of ImageNet-9, or a file.

    A file is the original's `in_to_in9.json` ({"151": 0, ...}: number of the class, number of the superclass, -1 for none) or
    {"classes": {superclass: [class, ...]}}. Raises UserError for anything else.
    """
    if file is None:
        members: dict[str, list[str]] = shipped()["in9"]["classes"]
        return members
    try:
        content = reading.values(file)
        if "classes" in content:
            return {str(name): [str(one) for one in own] for name, own in content["classes"].items()}
        found: dict[str, list[str]] = {str(number): [] for number in sorted(set(content.values())) if number >= 0}
        for number, superclass in content.items():
            if superclass >= 0:
                found[str(superclass)].append(imagenet()[int(number)])
        return found
    except (OSError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} is no map of classes: give the in_to_in9.json of ImageNet-9") from error


def name(file: Path | None) -> str:
    """Name of a map of superclasses, for records."""
    return "ImageNet-9's" if file is None else os.path.abspath(file)


def missing(suite: str, classes: Sequence[str]) -> list[str]:
    """Classes of a suite (`imagenet_a`, `imagenet_r`) that a data set lacks."""
    return sorted(set(shipped()[suite]["classes"]) - set(classes))
