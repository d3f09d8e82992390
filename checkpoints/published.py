"""Converts checkpoints to our layout: our own, the original iBOT's and DINO's whole ones, and backbones of any (`others`).

Nothing in a file is ever run. The original's files carry an `argparse.Namespace` and a few numpy numbers next to their tensors:
these, and nothing else, are allowed through torch's safe reader.
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from checkpoints import checked, layouts, nests, others, plain_numpy, store, terminal
from checkpoints.cli import UserError

ALLOWED: list[Any] = [
    argparse.Namespace,
    (plain_numpy.Dtype, "numpy.dtype"),
    (plain_numpy.scalar, "numpy._core.multiarray.scalar"),
    (plain_numpy.scalar, "numpy.core.multiarray.scalar"),
]
"""Globals allowed in a published file besides tensors and plain values: scalars of numpy 1 and 2, made by ours."""

LOSSES = {"ibot_loss", "dino_loss"}
"""One of which full checkpoints of the original have."""


class Contents(NamedTuple):
    """Content of a checkpoint file."""

    layout: str
    """Whose file it is, in words."""
    networks: dict[str, dict[str, Tensor]]
    """`student` and `teacher`, or `only`; keys `backbone.*` and, where there is a head, `head.*`."""
    centres: dict[str, Tensor] = {}  # noqa: RUF012 (never changed)
    """`cls` [1, k] and `patch` [1, 1, k]."""
    optimizer: dict[str, Any] = {}  # noqa: RUF012
    epoch: int = 0
    step: int | None = None
    args: dict[str, Any] = {}  # noqa: RUF012
    """The command line that made it."""
    shape: dict[str, Any] | None = None
    """The backbone's, where the file says it."""
    arch: str = ""
    """timm's name of it, where neither shape nor weights say it alone."""
    heads: int = 0
    """Attention heads, where neither shape nor weights nor `arch` show them."""
    ignored: tuple[str, ...] = ()
    """Weights that are not part of a backbone or its head: a classifier's, say."""

    def network(self, key: str, path: Path) -> dict[str, Tensor]:
        """The `teacher` or the `student`; a file with one network has it under either name."""
        if "only" in self.networks:
            return self.networks["only"]
        if key not in self.networks:
            raise UserError(f"{path} holds the {' and the '.join(self.networks)} only: give the run's {store.LAST} for the {key}")
        return self.networks[key]

    def parts(self) -> list[str]:
        """Descriptions of its parts."""
        whole = [*self.networks] if "only" not in self.networks else ["one backbone"]
        heads = ["heads"] if any(name.startswith("head.") for net in self.networks.values() for name in net) else []
        return whole + heads + [name for name in ("centres", "optimizer") if getattr(self, name)]

    def lacks(self) -> list[str]:
        """Parts of a full checkpoint that it lacks."""
        full = ["student", "teacher", "heads", "centres", "optimizer"]
        return [part for part in full if part not in self.parts()]


def read(path: Path, arch: str = "") -> Contents:
    """Any checkpoint. `arch` names timm's architecture where the file is of one that its weights do not show.

    Raises UserError when the file is missing, damaged, of something else, lacks a part, or holds anything but data.
    """
    if path.suffix == ".safetensors":
        weights, metadata = store.read_safetensors(path)
        if "about" in metadata:
            return _whole(_our_backbone(weights, metadata["about"], path), path)
        found = _whole(_of_others(weights, path, arch or metadata.get("architecture", "")), path)
    else:
        found = from_content(store.read_torch(path, ALLOWED), path, arch)
    return _say_left_out(found, path)


def from_content(content: dict[str, Any], path: Path, arch: str = "") -> Contents:
    """A torch file's dict in our layout. `path` is for messages."""
    return _whole(_recognised(checked.mapping(content, str(path)), path, arch), path)


def _recognised(content: dict[str, Any], path: Path, arch: str) -> Contents:
    if content.get("format") == store.FORMAT:
        return _our_run(content, path)
    if not LOSSES & content.keys():
        return _of_others(content, path, arch)
    missing = [name for name in ("student", "teacher") if name not in content]
    if missing:
        raise UserError(f"{path} is a full checkpoint that lacks its {missing[0]}: take another copy")
    return _full(content, path)


def _whole(contents: Contents, path: Path) -> Contents:
    """Returns the contents. Raises UserError for anything that is not a weight, or not a finite number."""
    for key, weights in contents.networks.items():
        checked.network(weights, f"{path}: the {'backbone' if key == 'only' else key}")
    checked.centres(contents.centres, f"{path}: centres")
    checked.optimizer(contents.optimizer, f"{path}: optimizer")
    checked.count(contents.epoch, f"{path}: epoch")
    checked.mapping(contents.args, f"{path}: options")
    if contents.step is not None:
        checked.count(contents.step, f"{path}: step")
    if contents.shape is not None:
        checked.mapping(contents.shape, f"{path}: shape")
    return contents


def _our_run(content: dict[str, Any], path: Path) -> Contents:
    checked.run(content, str(path), store.VERSION)
    checked.mapping(content.get("shape"), f"{path}: shape")
    return Contents(
        "a run of this project",
        {key: content[key] for key in ("student", "teacher")},
        content["centres"],
        content["optimizer"],
        content["step"] // content["steps_per_epoch"],
        content["step"],
        content["config"],
        content["shape"],
    )


def _our_backbone(weights: dict[str, Tensor], about: dict[str, Any], path: Path) -> Contents:
    checked.mapping(about, f"{path}: about", ("key", "epoch", "step", "shape"))
    key = checked.one_of(about["key"], f"{path}: key", ("teacher", "student"))
    networks = {key: {f"backbone.{name}": weight for name, weight in weights.items()}}
    epoch, step = (checked.count(about[name], f"{path}: {name}") for name in ("epoch", "step"))
    shape = checked.mapping(about["shape"], f"{path}: shape")
    return Contents("a backbone of this project", networks, epoch=epoch, step=step, shape=shape)


def _full(content: dict[str, Any], path: Path) -> Contents:
    """The original iBOT's or DINO's."""
    name = "ibot_loss" if "ibot_loss" in content else "dino_loss"
    missing = sorted({"optimizer", "epoch", "args"} - content.keys())
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    networks = {key: _parts(checked.tensors(content[key], f"{path}: {key}"), path, key) for key in ("student", "teacher")}
    args = content["args"]
    return Contents(
        f"a full checkpoint of the original {'iBOT' if name == 'ibot_loss' else 'DINO'}",
        networks,
        _centres(checked.tensors(content[name], f"{path}: {name}"), path, name),
        content["optimizer"],
        checked.count(content["epoch"], f"{path}: epoch"),
        args=checked.mapping(vars(args) if isinstance(args, argparse.Namespace) else args, f"{path}: args"),
    )


def _parts(state: Mapping[str, Tensor], path: Path, who: str) -> dict[str, Tensor]:
    weights = {name.removeprefix("module."): weight for name, weight in state.items()}
    strangers = [name for name in weights if not name.startswith(("backbone.", "head."))]
    if strangers or not weights:
        raise UserError(f"{path}: the {who} has keys that are neither backbone nor head: {', '.join(strangers) or 'none at all'}")
    backbone = {name.removeprefix("backbone."): weight for name, weight in weights.items() if name.startswith("backbone.")}
    backbone, _ = layouts.to_ours(backbone)
    heads = {name: weight for name, weight in weights.items() if name.startswith("head.")}
    return {f"backbone.{name}": weight for name, weight in backbone.items()} | heads


def _centres(state: Mapping[str, Tensor], path: Path, name: str) -> dict[str, Tensor]:
    wanted = {"center": "cls", "center2": "patch"} if name == "ibot_loss" else {"center": "cls"}
    if set(state) != set(wanted):
        found = ", ".join(sorted(state)) or "nothing"
        raise UserError(f"{path}: {name} should hold {' and '.join(wanted)}, it holds {found}")
    return {ours: state[theirs] for theirs, ours in wanted.items()}


_said: set[Path] = set()


def _say_left_out(contents: Contents, path: Path) -> Contents:
    """Returns the contents. Says once, in one of several processes, which weights of the file are not used."""
    if contents.ignored and path not in _said and os.environ.get("RANK", "0") == "0":
        terminal.say(f"{path}: {contents.layout}; left out: {nests.summary(contents.ignored)}", error=True)
    _said.add(path)
    return contents


def _of_others(content: Mapping[str, Any], path: Path, arch: str) -> Contents:
    """Backbones alone, or beside heads and optimizers of any framework."""
    found = others.find(content, path, arch)
    epoch = content.get("epoch", 0)
    return Contents(
        found.family.words,
        {key: {f"backbone.{name}": weight for name, weight in weights.items()} for key, weights in found.networks.items()},
        epoch=epoch if isinstance(epoch, int) and not isinstance(epoch, bool) and 0 <= epoch < checked.MOST else 0,
        arch=found.family.arch,
        heads=found.heads,
        ignored=found.ignored,
    )
