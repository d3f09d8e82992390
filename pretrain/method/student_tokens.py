"""The tokens that the student's losses read: [CLS] of every crop, and masked patches.

x packed tokens, d width, c crops of all sizes, m masked patches.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pretrain.batches.masking import Masks
from pretrain.engine import distributed
from pretrain.models.drop_path import Group
from pretrain.models.vit import ViT


def cls_and_masked(
    backbone: Any, groups: Sequence[tuple[Tensor, Masks | None]], *, rows_only: bool
) -> tuple[Float[Tensor, "c d"], Float[Tensor, "m d"]]:
    """[CLS] tokens of all crops, and the masked patches in the order of `Masks.indices`, group by group.

    `groups`: crops of one size `[b, c, h, w]` with their masks. `rows_only`: the last block computes these tokens only, which
    gives the same up to the order of additions (a ViT of this project; others compute all).
    """
    inputs = [(crops, masks and masks.grid.flatten(0, 1)) for crops, masks in groups]
    if rows_only and isinstance(backbone, ViT) and not distributed.is_sharded(backbone.blocks[-1]):
        crops = sum(len(images) for images, _ in groups)
        tokens = backbone.forward_rows(inputs, partial(rows, masks=[masks for _, masks in groups], device=groups[0][0].device))
        return tokens[:crops], tokens[crops:]
    found = backbone.forward_multi(inputs)
    patches = [gather_masked(tokens[:, 1:].flatten(0, 1), masks) for tokens, (_, masks) in zip(found, groups, strict=True)]
    return torch.cat([tokens[:, 0] for tokens in found]), torch.cat(patches)


def gather_masked(patches: Float[Tensor, "x d"], masks: Masks | None) -> Float[Tensor, "m d"]:
    """The masked ones of all patches of a batch, in the order of `masks.indices`; none without masks."""
    return patches[:0] if masks is None else patches.index_select(0, masks.indices)


def rows(sizes: Sequence[Group], masks: Sequence[Masks | None], device: torch.device) -> Int[Tensor, " r"]:
    """Where these tokens stand among the packed ones of groups of these sizes."""
    cls_rows, patch_rows, start = [], [], 0
    for (images, tokens), mask in zip(sizes, masks, strict=True):
        cls_rows.append(torch.arange(start, start + images * tokens, tokens, device=device))
        if mask is not None:
            patches = tokens - 1
            patch_rows.append(start + mask.indices // patches * tokens + 1 + mask.indices % patches)
        start += images * tokens
    return torch.cat([*cls_rows, *patch_rows])
