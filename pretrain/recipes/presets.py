"""Building blocks of recipes: the paper's settings by size of network, and settings for small images."""

from typing import Any, NamedTuple

PAPER: dict[str, Any] = {
    "norm_last_layer": False,
    "shared_head": True,
    "teacher_temp": 0.07,
    "local_crops_number": 10,
    "global_crops_scale": (0.25, 1.0),
    "local_crops_scale": (0.05, 0.25),
    "pred_ratio": (0.0, 0.3),
    "pred_ratio_var": (0.0, 0.2),
}
"""Settings of every pretraining run in the paper (section 3.2)."""

BASE = PAPER | {
    "norm_last_layer": True,
    "global_crops_scale": (0.32, 1.0),
    "local_crops_scale": (0.05, 0.32),
    "freeze_last_layer": 3,
    "clip_grad": 0.3,
    "min_lr": 2e-6,
    "warmup_teacher_temp_epochs": 50,
}
"""ViT-B and ViT-L: what users of the released arguments report."""

RANDOM_MASKS = {"pred_shape": "rand", "pred_ratio": (0.0, 0.7), "pred_ratio_var": (0.0, 0.05)}
TWO_CROPS: dict[str, Any] = {"local_crops_number": 0, "global_crops_scale": (0.14, 1.0)}
"""No local crops; the scale of global crops is the original's default."""

SWIN = PAPER | {"arch": "swin_tiny", "patch_size": 4, "epochs": 300, "batch_size_per_gpu": 32, "pred_start_epoch": 50}
"""Swin-T: masks begin with epoch 50."""

SMALL_WORLD: dict[str, Any] = PAPER | {
    "arch": "vit_tiny",
    "width": 128,
    "depth": 4,
    "patch_size": 8,
    "init": "fan_in",
    "drop_path": 0.0,
    "out_dim": 256,
    "patch_out_dim": 256,
    "head_hidden_dim": 512,
    "head_bottleneck_dim": 128,
    "global_crops_size": 32,
    "local_crops_size": 16,
    "global_crops_scale": (0.4, 1.0),
    "local_crops_scale": (0.1, 0.4),
    "local_crops_number": 2,
    "blur": (0.0, 0.0, 0.0),
    "solarize": (0.0, 0.0, 0.0),
    "lambda_patch": 0.3,
    "batch_size_per_gpu": 64,
    "lr": 4e-3,
    "warmup_epochs": 1,
    "weight_decay_end": 0.1,
    "momentum_teacher": 0.98,
    "warmup_teacher_temp": 0.03,
    "teacher_temp": 0.04,
    "warmup_teacher_patch_temp": 0.03,
    "teacher_patch_temp": 0.04,
    "warmup_teacher_temp_epochs": 4,
    "save_minutes": 2.0,
}
"""For small pictures and a small machine: what learns within minutes (see docs/results.md for what did not)."""

SAMPLE: dict[str, Any] = SMALL_WORLD | {
    "local_crops_number": 6,
    "batch_size_per_gpu": 16,
    "lr": 8e-3,
    "warmup_teacher_temp": 0.04,
    "warmup_teacher_patch_temp": 0.04,
    "epochs": 7,
    "knn_every": 1,
}
"""Small batches, and a teacher that is never cold: [CLS] needs steps before it tells images apart (docs/results.md)."""

SAMPLE_DENSE: dict[str, Any] = SMALL_WORLD | {
    "data": "sample:72",
    "global_crops_size": 48,
    "local_crops_size": 24,
    "epochs": 28,
    "knn_every": 3,
}
"""Things and textures about as large as in the scenes of the sample's dense tasks, and more epochs: patches learn late."""

CIFAR10: dict[str, Any] = SMALL_WORLD | {
    "patch_size": 4,
    "init": "whiten",
    "global_crops_size": 24,
    "local_crops_size": 12,
    "global_crops_scale": (0.5, 1.0),
    "local_crops_scale": (0.2, 0.5),
    "local_crops_number": 4,
    "lambda_patch": 0.5,
    "lr": 2e-3,
    "momentum_teacher": 0.99,
    "warmup_epochs": 0,
    "freeze_last_layer": 0,
    "warmup_teacher_temp_epochs": 0,
    "epochs": 13,
    "knn_every": 1,
}

CIFAR10_GPU: dict[str, Any] = CIFAR10 | {
    "width": 192,
    "depth": 9,
    "global_crops_size": 32,
    "local_crops_size": 16,
    "global_crops_scale": (0.35, 1.0),
    "local_crops_scale": (0.1, 0.35),
    "out_dim": 1024,
    "patch_out_dim": 1024,
    "batch_size_per_gpu": 256,
    "lr": 1e-3,
    "momentum_teacher": 0.994,
    "warmup_epochs": 2,
    "epochs": 70,
    "knn_every": 10,
    "save_minutes": 1.0,
}
"""13,650 steps of 256 images, meant for eight minutes of one H100: a wider and deeper network than two cores can train.
Not measured."""


class Recipe(NamedTuple):
    """Settings, and what is known of them."""

    what: str
    settings: dict[str, Any]
    expected: str
    cost: str = "not published"
    machine: str = "--accumulate 4"
    """Flags with which eight GPUs compute the paper's step."""
    data: str = "IMAGENET"


VITS: dict[str, Any] = PAPER | {"arch": "vit_small", "batch_size_per_gpu": 64}
VITB: dict[str, Any] = BASE | {"arch": "vit_base", "batch_size_per_gpu": 32}
VITL: dict[str, Any] = BASE | {"arch": "vit_large", "batch_size_per_gpu": 16, "drop_path": 0.4}
SHORT_WARM_UP = {"warmup_teacher_temp_epochs": 30}
"""For ImageNet-22K: the original's default; 50 epochs would be all that ViT-L is trained. What else may differ from
ImageNet-1K's settings is not published."""
