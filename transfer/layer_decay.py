"""Layer-wise learning-rate decay for MMDetection and MMSegmentation: the optimizer constructor `IBOTLayerDecay`.

Importing this file registers it. A parameter of layer i of a backbone with n blocks learns with lr x decay^(n + 1 - i): 0 is the
embedding, i the i-th block, n + 1 everything behind them. Biases and one-dimensional tensors are not decayed (App. C).
"""

import re
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from checkpoints.cli import UserError


def layer_of(name: str, depths: tuple[int, ...]) -> int:
    """The layer of a parameter by its name under the model. `depths`: blocks of each stage, (n,) for a ViT."""
    behind = sum(depths) + 1
    if not name.startswith("backbone.net."):
        return behind
    name = name.removeprefix("backbone.net.")
    if name.startswith(("cls_token", "pos_embed", "patch_embed")):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    stage = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.", name)
    if stage:  # the merging of patches before a stage goes with the stage's first block
        return sum(depths[: int(stage[1])]) + int(stage[2] or 0) + 1
    return behind


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class IBOTLayerDecay:
    """Builds the optimizer with a group for each layer, with and without weight decay.

    `paramwise_cfg` holds `layer_decay`; 1 means none.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper, self.decay = dict(optim_wrapper_cfg), float((paramwise_cfg or {}).get("layer_decay", 1.0))
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        self.wrapper.setdefault("type", "OptimWrapper")
        if not 0 < self.decay <= 1:
            raise UserError(f"layer_decay {self.decay} must be greater than 0 and at most 1")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, "module", model)
        groups = list(self.groups(model).values())
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": groups})
        return OPTIM_WRAPPERS.build(self.wrapper, default_args={"optimizer": optimizer})

    def groups(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """Parameter groups by name, as torch's optimizers take them."""
        lr, weight_decay = self.optimizer["lr"], self.optimizer.get("weight_decay", 0.0)
        depths: tuple[int, ...] = model.backbone.depths  # type: ignore[union-attr,assignment]
        found: dict[str, dict[str, Any]] = {}
        last = sum(depths) + 1
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = parameter.ndim == 1 or name.endswith(".bias")
            layer = layer_of(name, depths)
            scale = self.decay ** (last - layer)
            key = f"layer_{layer}_{'plain' if plain else 'decayed'}"
            group = found.setdefault(
                key, {"params": [], "lr": lr * scale, "weight_decay": 0.0 if plain else weight_decay, "lr_scale": scale}
            )
            group["params"].append(parameter)
        return found
