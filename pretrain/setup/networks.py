"""Builds student and teacher from the options."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from checkpoints.architecture import Architecture
from pretrain.batches import masking
from pretrain.batches.dataset import Batch, Placed
from pretrain.engine import distributed
from pretrain.engine.precision import Precision
from pretrain.method.compiled import compile_method
from pretrain.method.ibot import Student, Teacher
from pretrain.method.objective import Objective, forward_and_losses
from pretrain.models.backbone import Trainable, make
from pretrain.models.compiling import compile_blocks
from pretrain.setup.objective import head_of
from pretrain.setup.plan import Plan


def whole_backbone(teacher: Teacher) -> Trainable:
    """The teacher's backbone, gathered on every process if it is sharded; all processes must call this together."""
    if not distributed.is_sharded(teacher):
        return teacher.backbone
    backbone = make(teacher.backbone.shape, maskable=False)
    backbone.load_state_dict(distributed.full_tensor(teacher.backbone.state_dict()))
    return backbone.to(teacher.centres.cls.device)


def build(
    plan: Plan,
    shape: Architecture,
    *,
    fused: bool = True,
    residual: torch.dtype | None = None,
    patch_prototypes: int | None = None,
) -> tuple[Student, Teacher]:
    """Student and teacher with the same initial weights, drawn from the seed. `patch_prototypes`: see `head_of`. `residual`: the
    type of the blocks' sums while they train under autocast."""
    options = plan.options
    head = partial(head_of, in_dim=shape.embed_dim, patch_prototypes=patch_prototypes)
    checkpointed = options.machine.checkpoint_activations
    torch.manual_seed(
        options.run.seed
    )  # the order of the draws is part of the numbers: backbone, then head, of the student first
    deep = make(shape, maskable=True, fused=fused, drop_path=options.model.drop_path, checkpointed=checkpointed)
    student = Student(deep, head(plan.student_head))
    plain = make(shape, maskable=False, fused=fused)
    teacher = Teacher(plain, head(plan.teacher_head), options.loss.patch_centre_momentum)
    teacher.copy(student)
    for network in (student, teacher):
        network.backbone.residual = residual
    return student, teacher


def compile_networks(
    plan: Plan, device: torch.device, precision: Precision, student: Student, teacher: Teacher, objective: Objective
) -> list[str]:
    """Compile the blocks of both networks, and heads and losses, if the plan says so.

    Returns a note on each: what was compiled, or why nothing was.
    """
    if not plan.compiles(device):
        return []
    crops, count, channels = plan.options.crops, plan.options.optimisation.batch_size_per_gpu, plan.architecture.channels
    kinds = ((crops.global_crops_number, crops.global_crops_size), (crops.local_crops_number, crops.local_crops_size))
    kind = precision.low if device.type == "cuda" else None
    samples = [torch.zeros(views * count, channels, size, size, device=device) for views, size in kinds if views]
    bound = masking.bound(plan.masks, crops.global_crops_number * count, plan.grid[0] * plan.grid[1])
    seen = (("student", student, samples), ("teacher", teacher, samples[:1]))
    notes = [
        f"{name}: {compile_blocks(network, partial(forward_as_trained, network, inputs, precision), kind)}"
        for name, network, inputs in seen
    ]
    trial = partial(loss_as_trained, plan, device, precision, student, teacher, objective)
    return [*notes, compile_method(student, teacher, objective, bound, trial)]


def forward_as_trained(network: Student | Teacher, samples: Sequence[Tensor], precision: Precision) -> Tensor:
    """All tokens of the backbone, as a step computes them, of one batch of each crop size: `[n]`."""
    with precision.autocast():
        tokens = network.backbone.forward_multi([(images, None) for images in samples])
    return torch.cat([group.flatten() for group in tokens])


def loss_as_trained(
    plan: Plan, device: torch.device, precision: Precision, student: Student, teacher: Teacher, objective: Objective
) -> Tensor:
    """The loss of a batch of black images, as a step computes it."""
    crops, count, channels = plan.options.crops, plan.options.optimisation.batch_size_per_gpu, plan.architecture.channels
    views = crops.global_crops_number
    seen = torch.zeros(views, count, channels, crops.global_crops_size, crops.global_crops_size, device=device)
    local = torch.zeros(crops.local_crops_number, count, channels, *[crops.local_crops_size] * 2, device=device)
    masks = masking.draw(np.random.default_rng(0), plan.masks, views, count, *plan.grid).to(device)
    placed = Placed(torch.ones(views, count, 4, device=device), torch.zeros(views, count, dtype=torch.bool, device=device))
    schedule = plan.schedule(1, 1)
    now = schedule.at(schedule.total_steps - 1)  # when patches are masked, if they ever are
    batch, weights = Batch(seen, masks, local, (), placed), plan.loss_weights
    return forward_and_losses(student, teacher, batch, now, precision, objective, weights.cls, weights.patch).losses.total
