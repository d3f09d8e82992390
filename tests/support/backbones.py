"""Small backbones of every kind, drawn from a seed, and the files that hold them."""

from pathlib import Path

import torch

from checkpoints import layouts, store
from checkpoints.architecture import Architecture, SwinSize, swin_shape
from pretrain.models.backbone import make

VIT = Architecture("vit", 8, 32, 3, 64, 2, 1)


DEEP = Architecture("vit", 4, 16, 3, 128, 3, 2)


SWIN = swin_shape("swin", SwinSize(16, (2, 2, 2), 2), 4, 48, 3, 3)


SMALL_LAST = swin_shape("swin", SwinSize(16, (2, 2), 2), 4, 24, 4, 3)  # a last stage of 3 x 3 with a window of 4


SHAPES = [VIT, DEEP, SWIN, SMALL_LAST]


def network_of(shape: Architecture) -> torch.nn.Module:
    torch.manual_seed(0)
    network = make(shape, maskable=False).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def saved_backbone(shape: Architecture, path: Path) -> Path:
    """A file of this project with those weights."""
    about = {"method": "iBOT", "key": "teacher", "shape": shape._asdict(), "epoch": 3, "step": 30}
    store.save_backbone(path, network_of(shape).state_dict(), about)
    return path


def theirs(shape: Architecture) -> dict[str, torch.Tensor]:
    """A backbone's weights under the original's names."""
    return layouts.with_indices(layouts.to_original(network_of(shape).state_dict()))


def bare(state: dict, path: Path) -> Path:
    """As DINO publishes backbones, and with a classifier as fine-tuned files have it."""
    torch.save({**state, "head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5)}, path)
    return path
