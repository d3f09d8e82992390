"""ViTDet's simple feature pyramid (Li et al. 2022, arXiv 2203.16527, section 3): all levels from the last map of a plain ViT.

Importing this file registers it with MMEngine. b images, c width of the ViT, d width of the levels.
"""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from checkpoints.cli import UserError
from transfer.levels import STRIDES

LEVELS = {"coco": 5, "ade20k": 4}
"""Levels by task: a detector has a further one at a stride of 64, as with FPN."""
WIDTH = 256
"""Of the levels (section 3)."""


@MODELS.register_module()
class SimpleFeaturePyramid(nn.Module):
    """Levels at strides of 4, 8, 16 and 32 from one map of stride `stride` (16 or 8), and further ones by max pooling.

    The map is brought to each resolution by none, one or two deconvolutions of stride 2 (LayerNorm and GELU between two, each
    halving the width) or by max pooling; then a 1 x 1 and a 3 x 3 convolution to `out_channels`, each followed by LayerNorm.
    """

    def __init__(self, in_channels: int, out_channels: int = WIDTH, num_outs: int = 5, stride: int = 16) -> None:
        super().__init__()
        self.num_outs = num_outs
        self.levels = nn.ModuleList(_level(in_channels, out_channels, stride / wanted) for wanted in STRIDES)

    def forward(self, maps: tuple[Float[Tensor, "b c _ _"], ...]) -> tuple[Float[Tensor, "b d _ _"], ...]:
        """The levels, finest first, of the one map."""
        (last,) = maps
        found = [level(last) for level in self.levels]
        while len(found) < self.num_outs:
            found.append(F.max_pool2d(found[-1], kernel_size=1, stride=2))
        return tuple(found)


def _level(width: int, out_channels: int, factor: float) -> nn.Sequential:
    """From the map to a level of `factor` times its resolution."""
    parts: list[nn.Module] = []
    while factor > 1:
        if parts:
            parts += [LayerNorm2d(width), nn.GELU()]
        parts.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width, factor = width // 2, factor / 2
    if factor < 1:
        parts.append(nn.MaxPool2d(round(1 / factor)))
    parts += [nn.Conv2d(width, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
    parts += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
    return nn.Sequential(*parts)


def use_simple(config: Any, task: str) -> None:
    """Give a config this neck in place of the four taps and, in a detector, of FPN. Raises UserError where there is no place."""
    model = config.model
    if str(model.backbone.get("type")).rpartition(".")[2] != "IBOTBackbone":
        raise UserError("--neck simple is for configs whose backbone is an IBOTBackbone: leave it out")
    if task == "coco":
        if model.get("neck") is None or model.neck.get("type") != "FPN":
            raise UserError("--neck simple takes the place of an FPN, which this config has not: leave it out")
        width, count = model.neck.get("out_channels", WIDTH), model.neck.get("num_outs", LEVELS[task])
    else:
        if model.decode_head.get("type") != "UPerHead":
            raise UserError("--neck simple is for UPerNet: a linear head reads the taps as they are, leave it out")
        width, count = WIDTH, LEVELS[task]
        model.decode_head.in_channels = [width] * count
        if model.get("auxiliary_head") is not None:
            model.auxiliary_head.in_channels = width
    model.neck = {"type": "SimpleFeaturePyramid", "out_channels": width, "num_outs": count}
    model.backbone.pop("levels", None)
    model.backbone.last = True
