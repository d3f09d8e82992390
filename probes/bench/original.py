"""The original's own modules, to be timed: from a clone of its repository that the command line names. None of its code is here.

That code is imported, and so run, only because `--against original PATH` says so, and only in the process that times it.
"""

import importlib
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from checkpoints.cli import UserError, WorkError
from checkpoints.store import first_line
from pretrain.batches.dataset import Batch
from pretrain.engine.precision import Precision
from pretrain.method.schedule import ScheduleValues
from pretrain.options.groups import CropOptions
from pretrain.setup.plan import Plan

FILES = ("main_ibot.py", "utils.py", "loader.py", "models/__init__.py", "models/head.py")
"""Of a clone, by which it is known."""
UNTIMED = {"tensorboardX": "SummaryWriter", "evaluation.unsupervised.unsup_cls": "eval_pred"}
"""Modules that its training script imports for its log alone: empty ones stand in for them."""


def check(clone: Path) -> None:
    """Raise UserError where this is no clone of the original."""
    lacking = [name for name in FILES if not (clone / name).is_file()]
    if lacking:
        raise UserError(
            f"--against original {clone}: this is no clone of the original's repository (it has no {lacking[0]}): "
            "give the folder that holds main_ibot.py"
        )


def script(clone: Path) -> Any:
    """Its training script as a module. Raises WorkError where it cannot be imported."""
    for name, member in UNTIMED.items():
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            sys.modules[".".join(parts[:count])] = types.ModuleType(".".join(parts[:count]))
        setattr(sys.modules[name], member, None)
    sys.path.insert(0, os.fspath(clone.resolve()))
    try:
        return importlib.import_module("main_ibot")
    except Exception as error:
        raise WorkError(f"the original in {clone} cannot be imported ({first_line(error)})") from error
    finally:
        sys.path.pop(0)


def augmentation(clone: Path, crops: CropOptions) -> Callable[[Any], Any]:
    """From one picture of Pillow's to its crops."""
    return script(clone).DataAugmentationiBOT(
        crops.global_crops_scale, crops.local_crops_scale, crops.global_crops_number, crops.local_crops_number
    )


def step(
    clone: Path, plan: Plan, batch: Batch, now: ScheduleValues, precision: Precision, device: torch.device
) -> tuple[Callable[[], torch.Tensor], Any]:
    """A step in the order of its loop, and its student. Its loss reduces over processes: a group of one is made for it."""
    main, options = script(clone), plan.options
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    student, teacher = (_network(main, plan, student=student).to(device) for student in (True, False))
    teacher.load_state_dict(student.state_dict(), strict=False)
    teacher.requires_grad_(False)
    loss_of = _loss(main, plan).to(device)
    optimizer = torch.optim.AdamW(main.utils.get_params_groups(student))
    count, epoch = options.crops.global_crops_number, options.teacher.warmup_teacher_temp_epochs
    images, masks = [*batch.crops, *(batch.local_crops if options.crops.local_crops_number else [])], list(batch.masks.grid)

    def take() -> torch.Tensor:
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = now.lr
            if number == 0:
                group["weight_decay"] = now.weight_decay
        with precision.autocast():
            seen = teacher(images[:count])
            answered = student(images[:count], mask=masks)
            student.backbone.masked_im_modeling = False
            local = student(images[count:])[0] if len(images) > count else None
            student.backbone.masked_im_modeling = True
            loss = loss_of(answered, seen, local, masks, epoch)["loss"]
        if not math.isfinite(loss.item()):
            raise WorkError("the original's loss is not finite")
        optimizer.zero_grad()
        precision.scaler.scale(loss).backward()
        precision.scaler.unscale_(optimizer)
        main.utils.clip_gradients(student, plan.loss_weights.clip_grad)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        _follow(teacher, student, now.momentum)
        return loss

    return take, student


def _network(main: Any, plan: Plan, *, student: bool) -> Any:
    """Backbone and head, as its script puts them together."""
    options, shape, head = plan.options, plan.architecture, plan.student_head
    kind: dict[str, Any] = {"window_size": options.model.window} if "swin" in shape.arch else {"patch_size": shape.patch_size}
    if student:
        kind |= {"masked_im_modeling": True, "drop_path_rate": options.model.drop_path}
    elif "swin" in shape.arch:
        kind["drop_path_rate"] = 0.0
    backbone = getattr(main.models, shape.arch)(return_all_tokens=True, **kind)
    width = backbone.num_features if "swin" in shape.arch else backbone.embed_dim
    shared = head.shared if student else plan.teacher_head.shared
    norm = {"norm_last_layer": head.norm_last_layer} if student else {}
    top = main.iBOTHead(width, head.out_dim, patch_out_dim=head.patch_out_dim, act="gelu", shared_head=shared, **norm)
    return main.utils.MultiCropWrapper(backbone, top).train()


def _loss(main: Any, plan: Plan) -> Any:
    head, teacher, crops = plan.teacher_head, plan.options.teacher, plan.options.crops
    epochs = max(plan.options.optimisation.epochs, teacher.warmup_teacher_temp_epochs + 1)
    return main.iBOTLoss(
        head.out_dim,
        head.out_dim if head.shared else head.patch_out_dim,
        crops.global_crops_number,
        crops.local_crops_number,
        teacher.warmup_teacher_temp,
        teacher.teacher_temp,
        teacher.warmup_teacher_patch_temp,
        teacher.teacher_patch_temp,
        teacher.warmup_teacher_temp_epochs,
        epochs,
        lambda1=plan.loss_weights.cls,
        lambda2=plan.loss_weights.patch,
    )


@torch.no_grad()
def _follow(teacher: Any, student: Any, momentum: float) -> None:
    """One weight after the other, as its loop does."""
    mine = dict(teacher.named_parameters())
    for name, weight in student.named_parameters():
        if name in mine:
            mine[name].mul_(momentum).add_((1 - momentum) * weight.detach())
