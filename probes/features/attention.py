"""Self-attention of the [CLS] token: maps of the last block's heads, and the patches that hold most of their mass.

b images, n patches.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from checkpoints.cli import UserError
from pretrain.evaluate import finite
from pretrain.models.backbone import Backbone
from pretrain.models.measured import Measured, require
from pretrain.models.vit import ViT


def require_attention(backbone: Backbone) -> ViT | Measured:
    """Returns the backbone. Raises UserError if it has no [CLS] attention that can be read."""
    if isinstance(backbone, Measured):
        require(backbone, "attention")
        return backbone
    if not isinstance(backbone, ViT):
        kind = (
            "Swin has no [CLS] token"
            if backbone.shape.kind == "swin"
            else f"{backbone.shape.arch} is computed by timm, which keeps it"
        )
        raise UserError(f"the attention of [CLS] cannot be read ({kind}): give a checkpoint of a plain ViT")
    return backbone


def cls_attention(backbone: ViT | Measured, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads n"]:
    """Attention weights of [CLS] to each patch in the last block, without its weight to itself.

    Raises WorkError where it is not finite.
    """
    with torch.inference_mode():
        return finite.checked(
            backbone.get_last_selfattention(images)[:, :, 0, 1:].float(), backbone, finite.of_batch, "attention maps"
        )


def most_of_the_mass(attention: Float[Tensor, "*b n"], share: float) -> Bool[Tensor, "*b n"]:
    """The fewest patches that hold more than `share` of the attention, as the original's threshold has it.

    Patches are taken away from the least up while what is gone is at most 1 - share.
    """
    ordered, places = attention.sort(dim=-1)
    gone = (ordered / ordered.sum(dim=-1, keepdim=True)).cumsum(dim=-1)
    return torch.zeros_like(attention, dtype=torch.bool).scatter(-1, places, gone > 1 - share)
