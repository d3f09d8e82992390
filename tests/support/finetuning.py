"""Small things that fine-tune."""

from typing import Any

import torch

from checkpoints.architecture import SwinSize, swin_shape, timm_shape
from pretrain.engine.precision import Precision
from pretrain.models.backbone import make
from probes.finetune import train as finetune_train
from probes.finetune.checkpoint import Network
from probes.finetune.model import Classifier
from probes.finetune.options import FinetuneOptions, settled, with_recipe
from tests.support.networks import VIT

TINY = VIT._replace(depth=3)
SHAPES = {
    "vit": TINY,
    "swin": swin_shape("swin", SwinSize(32, (2, 1, 2), 1), 4, 32, 4, 3),
    "timm": timm_shape("vit_tiny_patch16_224", 32, 3),
}


def options_for(recipe: str = "small", **changes: Any) -> FinetuneOptions:
    return settled(with_recipe(recipe, **changes), TINY.embed_dim, TINY.image_size)


def network_of(kind: str = "vit", ema: float = 0.0) -> Network:
    torch.manual_seed(0)
    model = Classifier(make(SHAPES[kind], maskable=False), 4)
    average = finetune_train.ModelEmaV3(model, decay=ema) if ema else None
    return Network(model, torch.optim.SGD(model.parameters(), lr=0.1), Precision("fp32", torch.device("cpu")).scaler, average)
