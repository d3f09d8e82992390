"""Builds student and teacher from the options."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.architecture import Architecture
from checkpoints.store import first_line
from pretrain.engine import distributed
from pretrain.method.ibot import Student, Teacher
from pretrain.models.backbone import Backbone, make
from pretrain.setup.objective import head_of
from pretrain.setup.plan import Plan


def compile_blocks(network: nn.Module, samples: Sequence[Tensor]) -> str:
    """Compile every block of the backbone for the shapes of its inputs; returns why not, or an empty string.

    `network` has a `backbone`; `samples` are one batch of each crop size, passed through once to test the compiled blocks.
    """
    backbone: Any = network.backbone
    blocks: Any = backbone.blocks
    for block in blocks:
        block.compile(dynamic=False)
    learns = any(parameter.requires_grad for parameter in network.parameters())
    try:
        with torch.set_grad_enabled(learns), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on itself
            for sample in samples:
                tokens = backbone(sample)
                if learns:
                    tokens.float().sum().backward()
            network.zero_grad(set_to_none=True)
    except Exception as error:  # compilers fail in many ways, and none of them should stop a run
        for block in blocks:
            block._compiled_call_impl = None  # torch has no public way back from `Module.compile`
        return f"the blocks are not compiled ({first_line(error)})"
    return ""


def whole_backbone(teacher: Teacher) -> Backbone:
    """The teacher's backbone, gathered on every process if it is sharded; all processes must call this together."""
    if not distributed.is_sharded(teacher):
        return teacher.backbone
    backbone = make(teacher.backbone.shape, maskable=False)
    backbone.load_state_dict(distributed.full_tensor(teacher.backbone.state_dict()))
    return backbone.to(teacher.centres.cls.device)


def build(plan: Plan, shape: Architecture, *, fused: bool = True, patch_prototypes: int | None = None) -> tuple[Student, Teacher]:
    """Student and teacher with the same initial weights, drawn from the seed. `patch_prototypes`: see `head_of`."""
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
    return student, teacher


def compile_networks(plan: Plan, device: torch.device, student: Student, teacher: Teacher) -> list[str]:
    """Compile the blocks of both networks if the plan says so; returns notes on failures."""
    if not plan.compiles(device):
        return []
    crops, count, channels = plan.options.crops, plan.options.optimisation.batch_size_per_gpu, plan.architecture.channels
    kinds = ((crops.global_crops_number, crops.global_crops_size), (crops.local_crops_number, crops.local_crops_size))
    samples = [torch.zeros(views * count, channels, size, size, device=device) for views, size in kinds if views]
    notes = (compile_blocks(network, inputs) for network, inputs in ((student, samples), (teacher, samples[:1])))
    return [note for note in notes if note]
