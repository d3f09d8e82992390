"""A classifier on a pretrained backbone: how it begins, and at which rate each of its layers learns.

b images, c channels, h w pixels, d width, k classes.
"""

from typing import Any

import torch
from jaxtyping import Float
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from checkpoints import checked
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain.models.backbone import Loaded, Trainable, make, starting_weights
from pretrain.models.layer_index import layer_of
from probes.finetune.options import FinetuneOptions

HEAD_STD = 0.02
EMBEDDINGS = ("pos_embed", "cls_token")
HEAD_LAYER = "head.mlp.0."
BACKBONE = "backbone."


class Classifier(nn.Module):
    """Class scores from [CLS] after the final norm (Swin: the mean token), by a linear layer, maybe behind the layer `kept`."""

    def __init__(self, backbone: Trainable, classes: int, kept: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.kept = nn.Identity() if kept is None else nn.Sequential(kept, nn.GELU())
        self.head = nn.Linear(backbone.shape.embed_dim if kept is None else kept.out_features, classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.kept(self.backbone(images)[:, 0]))

    def group_matcher(self, coarse: bool = False) -> Any:
        """Layers of parameters, for timm's `param_groups_layer_decay`."""
        shape = self.backbone.shape
        behind = shape.depth + 1
        return lambda name: layer_of(name.removeprefix(BACKBONE), shape) if name.startswith(BACKBONE) else behind


def classifier(loaded: Loaded, classes: int, options: FinetuneOptions, *, fused: bool) -> Classifier:
    """The network as it begins, drawn from the seed. Raises UserError where the checkpoint or the size of the input does not fit.

    A ViT's position embeddings are resized to the input once, here, and trained at that size; timm's own ViTs keep theirs and
    resize in the forward, Swin has none.
    """
    pretrained = loaded.backbone.shape
    size = options.input_size or pretrained.image_size
    if size % pretrained.stride:
        raise UserError(
            f"--input-size {size} is not divisible by {pretrained.stride} pixels, the side of a token of {loaded.path}"
        )
    shape = pretrained._replace(image_size=size) if pretrained.kind == "vit" else pretrained
    torch.manual_seed(options.seed)
    backbone = make(
        shape, maskable=False, drop_path=options.drop_path or 0.0, fused=fused, checkpointed=options.checkpoint_activations
    )
    kept = head_layer(loaded, options) if options.keep_head_layer else None
    model = Classifier(backbone, classes, kept)
    if not options.from_scratch:
        begin = starting_weights(loaded.backbone, shape, loaded.path, positions=options.positions or "size")
        backbone.load_state_dict(begin)
    with torch.no_grad():
        model.head.weight.mul_(options.head_scale)
    return model


def head_layer(loaded: Loaded, options: FinetuneOptions) -> nn.Linear:
    """The first layer of the checkpoint's projection head, or a fresh one of its size. Raises UserError where it has none."""
    weights = loaded.contents.network(options.key, loaded.path)
    weight, bias = (weights.get(f"{HEAD_LAYER}{name}") for name in ("weight", "bias"))
    if weight is None or bias is None:
        raise UserError(
            f"{loaded.path} has no projection head: give a run's folder or a full checkpoint, or --keep-head-layer false"
        )
    hidden = len(checked.part(weights, f"{HEAD_LAYER}weight", loaded.path, None, loaded.backbone.shape.embed_dim))
    checked.part(weights, f"{HEAD_LAYER}bias", loaded.path, hidden)
    layer = nn.Linear(weight.shape[1], hidden)
    nn.init.trunc_normal_(layer.weight, std=HEAD_STD)
    nn.init.zeros_(layer.bias)
    if not options.from_scratch:
        layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def parameter_groups(model: Classifier, options: FinetuneOptions) -> list[dict[str, Any]]:
    """A group for each layer, with and without weight decay; `lr_scale` is layer_decay^(n + 1 - i) for block i of n (App. C).

    Biases and one-dimensional tensors have no decay, position and class tokens only where the recipe decays them.
    """
    names = [name for name, _ in model.named_parameters() if name.endswith(EMBEDDINGS) and not options.decay_embeddings]
    return param_groups_layer_decay(
        model, options.weight_decay, no_weight_decay_list=names, layer_decay=options.layer_decay or 1.0
    )


def optimizer_of(model: Classifier, options: FinetuneOptions, lr: float) -> torch.optim.AdamW:
    """AdamW, betas 0.9 and 0.999 (App. C)."""
    return torch.optim.AdamW(parameter_groups(model, options), lr=lr, weight_decay=0.0, fused=True)


def about(shape: Architecture, classes: list[str], options: FinetuneOptions, epoch: int) -> dict[str, Any]:
    """Metadata of a file of fine-tuned weights."""
    return {
        "method": "iBOT, fine-tuned",
        "shape": shape._asdict(),
        "classes": classes,
        "epoch": epoch,
        "input_size": options.input_size,
        "keep_head_layer": options.keep_head_layer,
    }
