"""Heads of comparisons: one linear layer on patches (BEiT), and layers that [CLS] and patches do not share.

Both have `Head`'s three methods: `bottleneck` returns the part of [CLS] and the part of patches concatenated, and `cls` and
`patches` each take their part of it. d width, z bottleneck, k prototypes.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.method.heads import Head
from pretrain.models.init import initialise_linear_

LAYERS = 3
"""Number of layers of the head before the prototypes."""


class CodesHead(Head):
    """[CLS] as in iBOT; patches by one linear layer on the backbone's token (BEiT)."""

    def __init__(self, in_dim: int, *, patch_out_dim: int, **values: Any) -> None:
        super().__init__(in_dim, patch_out_dim=patch_out_dim, **values | {"shared": True})
        self.patch_out_dim, self._cut = patch_out_dim, values["bottleneck_dim"]
        self.last_layer2 = nn.Identity()  # type: ignore[assignment]
        self.codes = nn.Linear(in_dim, patch_out_dim)
        initialise_linear_(self.codes, values.get("init", "original"))

    def bottleneck(self, tokens: Float[Tensor, "... d"]) -> Float[Tensor, "... _"]:
        return torch.cat([super().bottleneck(tokens), tokens.float()], dim=-1)

    def cls(self, bottleneck: Float[Tensor, "... _"]) -> Float[Tensor, "... k"]:
        return self.last_layer(bottleneck[..., : self._cut])

    def patches(self, bottleneck: Float[Tensor, "... _"]) -> Float[Tensor, "... k"]:
        return self.codes(bottleneck[..., self._cut :])


class SplitHead(Head):
    """The last `separate` of the three layers and the prototypes once for [CLS], once for patches (App. E, Table 17).

    `mlp` are all layers of [CLS] under their usual names, so that a teacher with a shared head can average them.
    """

    def __init__(self, in_dim: int, *, separate: int, **values: Any) -> None:
        super().__init__(in_dim, **values | {"shared": False})
        self._shared = 2 * (LAYERS - separate)  # with the GELU behind each
        sizes = [in_dim, values["hidden_dim"], values["hidden_dim"], values["bottleneck_dim"]][LAYERS - separate :]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.patch_mlp = nn.Sequential(*layers[:-1])
        initialise_linear_(self.patch_mlp, values.get("init", "original"))

    def bottleneck(self, tokens: Float[Tensor, "... d"]) -> Float[Tensor, "... _"]:
        common = self.mlp[: self._shared](tokens)
        parts = (self.mlp[self._shared :](common), self.patch_mlp(common))
        return torch.cat([F.normalize(part.float(), dim=-1) for part in parts], dim=-1)

    def cls(self, bottleneck: Float[Tensor, "... _"]) -> Float[Tensor, "... k"]:
        return self.last_layer(bottleneck[..., : bottleneck.shape[-1] // 2])

    def patches(self, bottleneck: Float[Tensor, "... _"]) -> Float[Tensor, "... k"]:
        return self.last_layer2(bottleneck[..., bottleneck.shape[-1] // 2 :])
