"""The projection head: tokens to a bottleneck, the bottleneck to prototypes of [CLS] and of patches.

d width, z bottleneck, k prototypes.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from checkpoints import checked
from checkpoints.cli import UserError
from checkpoints.resolve import loaded_strictly
from pretrain.models.init import initialise_linear_


class Prototypes(nn.Module):
    """Weight-normalised linear layer without bias: its rows are `weight_g * weight_v / |weight_v|`.

    `weight_g` [k, 1] starts at one; `frozen_gain` keeps it there, so that every prototype has length one.
    """

    def __init__(self, bottleneck_dim: int, count: int, *, frozen_gain: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=not frozen_gain)
        self.weight_v = nn.Parameter(torch.empty(count, bottleneck_dim))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self, x: Float[Tensor, "... z"]) -> Float[Tensor, "... k"]:
        return F.linear(x, F.normalize(self.weight_v, dim=1, eps=0.0) * self.weight_g)


class Head(nn.Module):
    """Three layers to a bottleneck of length one, then prototypes (paper section 3.2, App. E).

    `shared`: [CLS] and patches have the same prototypes. The layers before them are always shared, as in the original.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        out_dim: int,
        patch_out_dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        shared: bool,
        norm_last_layer: bool,
        init: str = "original",
    ) -> None:
        super().__init__()
        self.out_dim, self.patch_out_dim = out_dim, out_dim if shared else patch_out_dim
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        initialise_linear_(self.mlp, init)
        self.last_layer = Prototypes(bottleneck_dim, out_dim, frozen_gain=norm_last_layer)
        self.last_layer2 = self.last_layer if shared else Prototypes(bottleneck_dim, patch_out_dim, frozen_gain=norm_last_layer)

    def bottleneck(self, tokens: Float[Tensor, "... d"]) -> Float[Tensor, "... z"]:
        """Tokens -> vectors of length one, float32."""
        return F.normalize(self.mlp(tokens).float(), dim=-1)

    def cls(self, bottleneck: Float[Tensor, "... z"]) -> Float[Tensor, "... k"]:
        """Bottleneck of [CLS] tokens -> logits over the [CLS] prototypes."""
        return self.last_layer(bottleneck)

    def patches(self, bottleneck: Float[Tensor, "... z"]) -> Float[Tensor, "... k"]:
        """Bottleneck of patch tokens -> logits over the patch prototypes."""
        return self.last_layer2(bottleneck)


def of_weights(weights: Mapping[str, Tensor], path: Path) -> Head:
    """The head of a checkpoint's weights (names without `head.`), in evaluation mode and without gradients.

    A head with [CLS] prototypes only (DINO's) uses them for patches too. Raises UserError for a head of another kind.
    """
    if "patch_mlp.0.weight" in weights or "codes.weight" in weights:
        raise UserError(f"{path} has a head of a comparison (--targets codes, --separate-layers): this needs iBOT's own")
    first = {name: weight for name, weight in weights.items() if name.startswith("last_layer.")}
    all_weights = {name.replace("last_layer.", "last_layer2."): weight for name, weight in first.items()} | dict(weights)
    names = ("mlp.0.weight", "mlp.4.weight", "last_layer.weight_v", "last_layer2.weight_v")
    layer, bottleneck, cls, patches = (checked.part(all_weights, name, path, None, None) for name in names)
    build = partial(
        Head,
        layer.shape[1],
        out_dim=len(cls),
        patch_out_dim=len(patches),
        hidden_dim=len(layer),
        bottleneck_dim=len(bottleneck),
        shared=False,
        norm_last_layer=False,
    )
    return loaded_strictly(build, all_weights, path).eval().requires_grad_(False)
