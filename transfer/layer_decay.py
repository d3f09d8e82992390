"""Layer-wise learning-rate decay for MMDetection and MMSegmentation: the optimizer constructor `IBOTLayerDecay`.

Importing this file registers it. A parameter of layer i of a backbone with n blocks learns with lr x decay^(n + 1 - i): 0 is the
embedding, i the i-th block, n + 1 everything behind them; in a network of stages that is not iBOT's own, i is the i-th of four
stages, the stem with the first. Biases and one-dimensional tensors are not decayed (App. C).
"""

from types import SimpleNamespace
from typing import Any

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import param_groups_layer_decay
from torch import nn

from checkpoints.cli import UserError

BACKBONE = "backbone.net."
"""Under the model; what it adds to make a pyramid counts as what stands behind."""


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
        optimizer = OPTIMIZERS.build({**self.optimizer, "params": self.groups(model)})
        return OPTIM_WRAPPERS.build(self.wrapper, default_args={"optimizer": optimizer})

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups as torch's optimizers take them, by timm: it asks a model for its parameters and for their layers."""
        backbone: Any = model.backbone
        behind = backbone.layout.num_layers + 1

        def layer(name: str) -> int:
            return backbone.layer(name.removeprefix(BACKBONE)) if name.startswith(BACKBONE) else behind

        asked: Any = SimpleNamespace(named_parameters=model.named_parameters, group_matcher=lambda coarse: layer)
        groups = param_groups_layer_decay(asked, self.optimizer.get("weight_decay", 0.0), layer_decay=self.decay)
        return [group | {"lr": self.optimizer["lr"] * group["lr_scale"]} for group in groups]
