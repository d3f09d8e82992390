"""Student and teacher as the options ask for them."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints.architecture import Architecture
from checkpoints.store import first_line
from pretrain.config import Config
from pretrain.engine import distributed
from pretrain.method.ibot import Student, Teacher
from pretrain.models.backbone import Backbone, make
from pretrain.setup.objective import head_of


def compile_blocks(network: nn.Module, samples: Sequence[Tensor]) -> str:
    """Compile every block of the backbone for the shapes that it will see; nothing, or why it stays as it was.

    `network` has a `backbone`; `samples` are a batch of each size of crop, sent through once to know that it works.
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
            block._compiled_call_impl = None
        return f"the blocks are not compiled ({first_line(error)})"
    return ""


def whole_backbone(teacher: Teacher) -> Backbone:
    """The teacher's backbone, put together where it is spread over processes; all of them must call this."""
    if not distributed.is_sharded(teacher):
        return teacher.backbone
    backbone = make(teacher.backbone.shape, maskable=False)
    backbone.load_state_dict(distributed.full_tensor(teacher.backbone.state_dict()))
    return backbone.to(teacher.centres.cls.device)


def build(
    config: Config, shape: Architecture, *, fused: bool = True, patch_prototypes: int | None = None
) -> tuple[Student, Teacher]:
    """Student and teacher with the same weights, drawn from the seed. `patch_prototypes`: as many as the targets have."""
    torch.manual_seed(config.seed)
    heads = (head_of(config, shape.embed_dim, teacher=who, patch_prototypes=patch_prototypes) for who in (False, True))
    deep = make(shape, maskable=True, fused=fused, drop_path=config.drop_path, checkpointed=config.checkpoint_activations)
    student = Student(deep, next(heads))
    teacher = Teacher(make(shape, maskable=False, fused=fused), next(heads), config.patch_centre_momentum)
    teacher.copy(student)
    return student, teacher
