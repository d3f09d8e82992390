"""Small networks of every kind, drawn from a seed, the files that hold them, and a batch for those that train."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints import layouts, store
from checkpoints.architecture import Architecture, SwinSize, swin_shape
from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.method.heads import Head
from pretrain.method.ibot import Student, Teacher
from pretrain.models.backbone import Trainable, make
from pretrain.models.vit import ViT

VIT = Architecture("vit", 8, 32, 3, 64, 2, 1)
FAN_IN = VIT._replace(init="fan_in")
"""Its features differ from image to image, as those of a trained network do: what frozen probes look at."""
TRAINED = VIT._replace(arch="vit_tiny", image_size=24)
"""Of `student_and_teacher` and `batch`."""
DEEP = Architecture("vit", 4, 16, 3, 128, 3, 2)
SWIN = swin_shape("swin", SwinSize(16, (2, 2, 2), 2), 4, 48, 3, 3)
TWO_STAGES = swin_shape("swin_tiny", SwinSize(32, (1, 1), 1), 4, 32, 4, 3)
SMALL_LAST = swin_shape("swin", SwinSize(16, (2, 2), 2), 4, 24, 4, 3)  # a last stage of 3 x 3 with a window of 4
SHAPES = [VIT, DEEP, SWIN, SMALL_LAST]


def backbone(shape: Architecture = FAN_IN, seed: int = 0) -> Trainable:
    """As it begins, frozen."""
    torch.manual_seed(seed)
    return make(shape, maskable=False).eval().requires_grad_(False)


def moved(shape: Architecture) -> Trainable:
    """With noise on every weight, so that none is at a value that weights begin with."""
    torch.manual_seed(0)
    network = make(shape, maskable=False).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def _write(network: Trainable, path: Path) -> Path:
    about = {"method": "iBOT", "key": "teacher", "epoch": 3, "step": 30, "shape": network.shape._asdict()}
    store.save_backbone(path, network.state_dict(), about)
    return path


def write(path: Path, shape: Architecture = FAN_IN, seed: int = 0) -> Path:
    """The file of `backbone`, as a run leaves it."""
    return _write(backbone(shape, seed), path)


def write_moved(path: Path, shape: Architecture = VIT) -> Path:
    """The file of `moved`, as a run leaves it."""
    return _write(moved(shape), path)


def original_names(shape: Architecture) -> dict[str, Tensor]:
    """The weights of `moved` under the original's names."""
    return layouts.with_indices(layouts.to_original(moved(shape).state_dict()))


def bare(state: dict[str, Tensor], path: Path) -> Path:
    """As DINO publishes backbones, and with a classifier as fine-tuned files have it."""
    torch.save({**state, "head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}, path)
    return path


def student_and_teacher(**head: Any) -> tuple[Student, Teacher]:
    """Of 12 prototypes, alike."""
    torch.manual_seed(0)
    values: dict[str, Any] = {"out_dim": 12, "patch_out_dim": 12, "hidden_dim": 16, "bottleneck_dim": 8}
    values |= {"shared": True, "norm_last_layer": False}
    student = Student(ViT(TRAINED, maskable=True), Head(64, **{**values, **head}))
    teacher = Teacher(ViT(TRAINED, maskable=False), Head(64, **{**values, **head, "shared": True}))
    teacher.copy(student)
    return student, teacher


def batch(seed: int = 0, local_crops: int = 3) -> Batch:
    """Two global crops of four images, the first crop of the first image without a mask."""
    torch.manual_seed(seed)
    grid = torch.rand(2, 4, 3, 3) < 0.3
    grid[0, 0] = False
    return Batch(torch.randn(2, 4, 3, 24, 24), masking.as_masks(grid), torch.randn(local_crops, 4, 3, 16, 16))
