"""A run that begins with another checkpoint: `--init-from`.

A full checkpoint (ours, the original iBOT's) gives backbones, heads, centres and the optimizer's moments; a backbone alone gives
itself, and heads begin fresh.
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
    """What is left to do once there is an optimizer, and what the user should know."""

    moments: Moments
    remarks: list[str]


def begin(path: Path, student: Student, teacher: Teacher, *, heads: bool) -> Start:
    """Put a checkpoint's weights in place. `heads`: take heads, centres and moments too, where it has them.

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
    other, mine = backbone_of(contents, key, path), network.backbone.state_dict()
    taken = starting_weights(other, network.backbone.shape, path)
    if "masked_embed" in mine and "masked_embed" in other.state_dict():
        taken["masked_embed"] = other.masked_embed.detach()
    network.backbone.load_state_dict(mine | taken)


def _has_heads(contents: Contents) -> bool:
    """iBOT's own; those of a comparison (--targets codes, --separate-layers) are not carried over."""
    networks = contents.networks.values()
    return all("head.last_layer2.weight_v" in weights and "head.patch_mlp.0.weight" not in weights for weights in networks)


def _take_head(network: Student | Teacher, weights: dict[str, Tensor], path: Path) -> None:
    head = {name.removeprefix("head."): weight for name, weight in weights.items() if name.startswith("head.")}
    wanted = ("last_layer.weight_v", "last_layer2.weight_v", "mlp.0.weight", "mlp.4.weight")
    sizes = [len(checked.part(head, name, path, None, None)) for name in wanted]
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
    """The optimizer's state by the student's names, or nothing where the file does not show what belongs to what.

    Both layouts number the parameters alike: those with decay in the order of the weights, then those without (biases and one
    dimension); tied prototypes count once, gains of fixed length not at all.
    """
    student, state = contents.networks["student"], contents.optimizer.get("state", {})
    groups = contents.optimizer.get("param_groups", [])
    twice = torch.equal(student["head.last_layer.weight_v"], student["head.last_layer2.weight_v"])
    for fixed in (False, True):
        names = [
            name
            for name in student
            if not (twice and name.startswith("head.last_layer2.")) and not (fixed and name.endswith("weight_g"))
        ]
        plain = [name for name in names if name.endswith(".bias") or student[name].ndim == 1]
        order = [[name for name in names if name not in plain], plain]
        if [len(group["params"]) for group in groups] == [len(part) for part in order]:
            numbered = zip((n for group in groups for n in group["params"]), (n for part in order for n in part), strict=True)
            found = {name: state[number] for number, name in numbered if number in state}
            if all(_is_of(student[name], moments) for name, moments in found.items()):
                return found
    return {}


def _is_of(weight: Tensor, moments: dict[str, Any]) -> bool:
    """Whether a state of AdamW can be this weight's."""
    of_size = (moments.get(name, weight) for name in ("exp_avg", "exp_avg_sq"))
    step = torch.as_tensor(moments.get("step", 0))
    return all(isinstance(one, Tensor) and one.shape == weight.shape for one in of_size) and step.numel() == 1


def set_moments(optimizer: torch.optim.Optimizer, student: Student, moments: Moments) -> None:
    """Give AdamW the moments of the parameters that have kept their shape; the others begin without."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for name, parameter in student.named_parameters():
        found = moments.get(name, {})
        whole = {"exp_avg", "exp_avg_sq", "step"} <= found.keys() and found["exp_avg"].shape == parameter.shape
        if whole and parameter.requires_grad:
            spread = {key: distributed.shard(found[key], parameter) for key in ("exp_avg", "exp_avg_sq")}
            here = {key: value.to(parameter.device, parameter.dtype) for key, value in spread.items()}
            step = torch.as_tensor(found["step"], dtype=torch.float32, device=parameter.device).clone()
            optimizer.state[parameter] = {"step": step, **here}
