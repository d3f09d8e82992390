"""Student and teacher as the options ask for them."""

import torch

from pretrain.backbone import Shape, ViT, starting_weights
from pretrain.config import Config
from pretrain.head import Head
from pretrain.ibot import Student, Teacher


def build(config: Config, shape: Shape, *, fused: bool = True) -> tuple[Student, Teacher]:
    """Student and teacher with the same weights, drawn from the seed."""
    torch.manual_seed(config.seed)

    def head(shared: bool) -> Head:
        return Head(
            shape.embed_dim,
            out_dim=config.out_dim,
            patch_out_dim=config.patch_out_dim,
            hidden_dim=config.head_hidden_dim,
            bottleneck_dim=config.head_bottleneck_dim,
            shared=shared,
            norm_last_layer=config.norm_last_layer,
            init=config.init,
        )

    student = Student(ViT(shape, maskable=True, drop_path=config.drop_path, fused=fused), head(config.shared_head))
    teacher = Teacher(ViT(shape, maskable=False, fused=fused), head(config.shared_head or config.shared_head_teacher))
    if config.init_from is not None:
        student.backbone.load_state_dict(student.backbone.state_dict() | starting_weights(config.init_from, shape))
    teacher.copy(student)
    return student, teacher
