"""Full checkpoints of the original iBOT in our layout: student, teacher, both heads, both centres, strictly.

The published files carry an `argparse.Namespace` and a few numpy numbers next to their tensors. These, and nothing
else, are allowed through torch's safe reader.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from checkpoints.command import UserError
from checkpoints.store import read_torch

_SCALAR = np.float64(0).__reduce__()[0]

ALLOWED: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "b1")},
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
]
"""What may stand in a published file besides tensors and plain values: the names of numpy 1 and of numpy 2."""


class Published(NamedTuple):
    """A published file's parts. `student` and `teacher` have keys `backbone.*` and `head.*`."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    centres: dict[str, Tensor]
    """`cls` [1, k] and `patch` [1, 1, k]."""
    optimizer: dict[str, Any]
    epoch: int
    args: dict[str, Any]
    """The original's command line."""


def is_published(content: Mapping[str, Any]) -> bool:
    """Whether a file's dict has the original's layout."""
    return "ibot_loss" in content and "student" in content and "teacher" in content


def read(path: Path) -> Published:
    """A full checkpoint of the original (its `checkpoint.pth`).

    Raises UserError when the file is missing, is something else, lacks a part, or holds anything but data.
    """
    return from_published(read_torch(path, ALLOWED), path)


def read_any(path: Path) -> "Published | dict[str, Any]":
    """A full checkpoint of the original in our names, any other torch file as the dict it is."""
    content = read_torch(path, ALLOWED)
    return from_published(content, path) if is_published(content) else content


def from_published(content: Any, path: Path) -> Published:
    """The original's dict in our names. `path` is for messages."""
    if not isinstance(content, dict) or not is_published(content):
        raise UserError(f"{path} is not a full checkpoint of the original iBOT: it has no student, teacher and ibot_loss")
    missing = sorted({"optimizer", "epoch", "args"} - content.keys())
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    return Published(
        student=_weights(content["student"], path, "student"),
        teacher=_weights(content["teacher"], path, "teacher"),
        centres=_centres(content["ibot_loss"], path),
        optimizer=content["optimizer"],
        epoch=int(content["epoch"]),
        args=dict(vars(content["args"])),
    )


def _weights(state: Mapping[str, Tensor], path: Path, who: str) -> dict[str, Tensor]:
    weights = {name.removeprefix("module."): weight for name, weight in state.items()}
    strangers = [name for name in weights if not name.startswith(("backbone.", "head."))]
    if strangers or not weights:
        raise UserError(f"{path}: the {who} has keys that are neither backbone nor head: {', '.join(strangers) or 'none at all'}")
    return weights


def _centres(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    if set(state) != {"center", "center2"}:
        raise UserError(f"{path}: ibot_loss should hold center and center2, it holds {', '.join(sorted(state)) or 'nothing'}")
    return {"cls": state["center"], "patch": state["center2"]}
