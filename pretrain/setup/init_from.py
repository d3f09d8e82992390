"""Initialisation from another checkpoint: `--init-from`.

A full checkpoint (ours, the original iBOT's) gives backbones, heads, centres and the optimizer's moments; a backbone alone gives
both backbones, and heads are initialised as ever.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from checkpoints import checked
from checkpoints.cli import UserError
from checkpoints.published import Contents
from checkpoints.resolve import load_strictly, misfits
from pretrain.engine import distributed
from pretrain.method.ibot import Student, Teacher
from pretrain.models.backbone import backbone_of, open_checkpoint, starting_weights

Moments = dict[str, dict[str, Any]]
"""AdamW's state of each of the student's parameters, by name."""


class Start(NamedTuple):
    """The optimizer's moments, to be set once there is an optimizer, and what the user should know."""

    moments: Moments
    notes: list[str]


def init_from(path: Path, student: Student, teacher: Teacher, *, heads: bool) -> Start:
    """Load a checkpoint's weights. `heads`: take heads, centres and moments too, where it has them.

    Raises UserError where something does not fit, with the flag that would make it.
    """
    path, contents = distributed.main_first(partial(open_checkpoint, path, full=True))
    full = {"student", "teacher"} <= contents.networks.keys() and heads
    key = "student" if full and "student" in contents.networks else "teacher"
    _take_backbone(student, contents, key, path)
    teacher.copy(student)
    if full:
        _take_backbone(teacher, contents, "teacher", path)
    if not full or not _has_heads(contents):
        why = "it has none" if heads else "as asked"
        return Start({}, [f"beginning with the backbone of {path} ({contents.layout}); heads begin fresh ({why})"])
    for network, name in ((student, "student"), (teacher, "teacher")):
        _take_head(network, contents.networks[name], path)
    taken = ["heads"]
    if contents.centres.keys() == {"cls", "patch"}:
        load_strictly(teacher.centres, contents.centres, path)
        taken.append("centres")
    moments = moments_by_name(contents)
    if moments:
        taken.append("the optimizer's moments")
    what = f"backbones, {', '.join(taken)}; schedules begin anew"
    return Start(moments, [f"beginning with {path} ({contents.layout}, epoch {contents.epoch}): {what}"])


def _take_backbone(network: Student | Teacher, contents: Contents, key: str, path: Path) -> None:
    """Load the backbone of one network of the checkpoint, and its mask token where both have one."""
    loaded, current = backbone_of(contents, key, path), network.backbone.state_dict()
    taken = starting_weights(loaded, network.backbone.shape, path)
    if "masked_embed" in current and "masked_embed" in loaded.state_dict():
        taken["masked_embed"] = loaded.masked_embed.detach()
    load_strictly(network.backbone, current | taken, path)


def _has_heads(contents: Contents) -> bool:
    """Whether both networks have iBOT's head; heads of a comparison (--targets codes, --separate-layers) are not taken over."""
    networks = contents.networks.values()
    return all("head.last_layer2.weight_v" in weights and "head.patch_mlp.0.weight" not in weights for weights in networks)


def _take_head(network: Student | Teacher, weights: dict[str, Tensor], path: Path) -> None:
    """Load a checkpoint's head. Raises UserError with the flags that would make it fit."""
    head = {name.removeprefix("head."): weight for name, weight in weights.items() if name.startswith("head.")}
    names = ("last_layer.weight_v", "last_layer2.weight_v", "mlp.0.weight", "mlp.4.weight")
    sizes = [len(checked.part(head, name, path, None, None)) for name in names]
    if misfits(network.head, head):
        raise UserError(
            f"the heads of {path} are others: give --out-dim {sizes[0]} --patch-out-dim {sizes[1]} --head-hidden-dim {sizes[2]} "
            f"--head-bottleneck-dim {sizes[3]}, or --init-heads false to begin with fresh ones"
        )
    shared = torch.equal(head["last_layer.weight_v"], head["last_layer2.weight_v"])
    if network.head.last_layer is network.head.last_layer2 and not shared:
        raise UserError(f"the heads of {path} are separate: give --shared-head false --shared-head-teacher false")
    network.head.load_state_dict(head)


def moments_by_name(contents: Contents) -> Moments:
    """The optimizer's state by the student's names; empty where the file's numbers cannot be assigned to names.

    Ours and the original number the parameters alike: those with weight decay in the order of the weights, then those without
    (biases and one dimension); shared prototypes count once, frozen gains (`weight_g`) not at all.
    """
    student, state = contents.networks["student"], contents.optimizer.get("state", {})
    groups = contents.optimizer.get("param_groups", [])
    shared = torch.equal(student["head.last_layer.weight_v"], student["head.last_layer2.weight_v"])
    for fixed in (False, True):
        names = [
            name
            for name in student
            if not (shared and name.startswith("head.last_layer2.")) and not (fixed and name.endswith("weight_g"))
        ]
        plain = [name for name in names if name.endswith(".bias") or student[name].ndim == 1]
        order = [[name for name in names if name not in plain], plain]
        if [len(group["params"]) for group in groups] == [len(part) for part in order]:
            numbered = zip((n for group in groups for n in group["params"]), (n for part in order for n in part), strict=True)
            by_name = {name: state[number] for number, name in numbered if number in state}
            if all(_is_of(student[name], moments) for name, moments in by_name.items()):
                return by_name
    return {}


def _is_of(weight: Tensor, moments: dict[str, Any]) -> bool:
    """Whether a state of AdamW has this weight's shape."""
    averages = (moments.get(name, weight) for name in ("exp_avg", "exp_avg_sq"))
    step = torch.as_tensor(moments.get("step", 0))
    return all(isinstance(average, Tensor) and average.shape == weight.shape for average in averages) and step.numel() == 1


def set_moments(optimizer: torch.optim.Optimizer, student: Student, moments: Moments) -> None:
    """Give AdamW the moments of the parameters that have kept their shape; the others have none."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for name, parameter in student.named_parameters():
        state = moments.get(name, {})
        complete = {"exp_avg", "exp_avg_sq", "step"} <= state.keys() and state["exp_avg"].shape == parameter.shape
        if complete and parameter.requires_grad:
            sharded = {key: distributed.shard(state[key], parameter) for key in ("exp_avg", "exp_avg_sq")}
            here = {key: value.to(parameter.device, parameter.dtype) for key, value in sharded.items()}
            step = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device).clone()
            optimizer.state[parameter] = {"step": step, **here}
