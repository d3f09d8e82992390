"""The config that follows from a checkpoint, where none is given: the paper's recipe for the nearest size of network.

Widths, depth, patch size and window are the checkpoint's; rates, schedule and head are the recipe's. Plain networks of other
libraries get a ViT's recipe, those of stages Swin-T's.
"""

from typing import Any, Literal

from checkpoints.architecture import SIZES, Architecture
from checkpoints.cli import UserError

Head = Literal["upernet", "linear"]
PATCH = 16
"""Patch size for which the configs give grids of position embeddings."""


def recipe_for(task: str, head: Head, shape: Architecture, *, plain: bool = True) -> str:
    """Name of the config for a network of this shape, `plain` as a ViT or of stages. Raises UserError where there is none."""
    if shape.depths or not plain:
        if head == "linear":
            raise UserError("--head linear is for ViTs: leave it out, or give a --config")
        return {"coco": "cascade_swint_1x", "ade20k": "upernet_swint"}[task]
    size = next((name for name in ("vit_small", "vit_base") if shape.embed_dim <= SIZES[name].embed_dim), "vit_large")
    letter = size.removeprefix("vit_")[0]
    return f"cascade_vit{letter}16_1x" if task == "coco" else f"{head}_vit{letter}16"


def follow(config: Any, shape: Architecture, *, plain: bool = True) -> None:
    """Leave to the checkpoint what a recipe says of its own network: architecture, widths, the grid of other patch sizes.

    Only iBOT's own ViTs have a grid: other libraries interpolate positions by rules of their own.
    """
    model = config.model
    for name in ("arch", "patch_size", "window"):
        model.backbone.pop(name, None)
    grid = model.backbone.get("grid")
    if shape.kind == "timm":
        model.backbone.pop("grid", None)
    elif grid is not None and shape.patch_size != PATCH:
        model.backbone.grid = tuple(round(side * PATCH / shape.patch_size) for side in grid)
    for part in ("neck", "decode_head", "auxiliary_head"):
        if part in model:
            model[part].pop("in_channels", None)
    if "decode_head" in model and model.backbone.get("type") == "IBOTBackbone" and plain and not shape.depths:
        model.decode_head.pop("channels", None)
