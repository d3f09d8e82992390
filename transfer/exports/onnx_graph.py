"""A backbone as an ONNX graph: images [batch, channels, height, width] of any size in, tokens [batch, 1 + patches, width] out."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim

from transfer.exports.reload import needed

OPSET = 18
CUBIC = -0.75
"""The parameter of torch's bicubic kernel."""


class ViTGraph(nn.Module):
    """A ViT whose position embeddings are resized by matrix products, which a graph can do for a size it does not know yet."""

    def __init__(self, backbone: Any, offset: float) -> None:
        super().__init__()
        self.backbone, self.offset = backbone, offset

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        network = self.backbone
        patches = network.patch_embed.proj(images)
        x = patches.flatten(2).transpose(1, 2) + self.position(*patches.shape[2:])
        cls_token = (network.cls_token + network.pos_embed[:, :1]).expand(images.shape[0], -1, -1)
        x = torch.cat([cls_token, x], dim=1)
        for block in network.blocks:
            x = block(x)
        return network.norm(x)

    def position(self, rows: int | torch.SymInt, columns: int | torch.SymInt) -> Float[Tensor, "n d"]:
        """The backbone's own rule: as they are on their own grid, else bicubic by scale factor."""
        side = self.backbone.patch_embed.grid_size[0]
        places = [torch.arange(count).float() for count in (rows, columns)]
        counts = [place[-1] + 1 for place in places]  # as tensors: the graph learns them only when it runs
        own = (counts[0] == side) & (counts[1] == side)
        sources = [(place + 0.5) * (side / (count + self.offset)) - 0.5 for place, count in zip(places, counts, strict=True)]
        down, across = (bicubic(torch.where(own, place, source), side) for place, source in zip(places, sources, strict=True))
        grid = self.backbone.pos_embed[0, 1:].unflatten(0, (side, side))
        return torch.einsum("is,jt,std->ijd", down, across, grid).flatten(0, 1)


def bicubic(source: Float[Tensor, " n"], side: int) -> Float[Tensor, "n side"]:
    """Weights of `side` samples at the places `source`, as torch's bicubic interpolation has them; edges are repeated."""
    base = source.floor()
    t, found = source - base, torch.zeros(1, side)
    for step in (-1, 0, 1, 2):
        distance = (t - step).abs()
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
        far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
        weight = torch.where(distance <= 1, near, far)
        place = (base + step).clamp(0, side - 1)
        found = found + weight[:, None] * (place[:, None] == torch.arange(side)[None]).float()
    return found


def write(network: nn.Module, images: Float[Tensor, "b c h w"], path: Path) -> None:
    """Trace the network on `images` and write its graph; batch and size stay open."""
    needed("onnxscript", "export")
    open_axes = dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's remarks on itself
        torch.onnx.export(
            network.eval(),
            (images,),
            path,
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["tokens"],
            dynamic_shapes=(open_axes,),
            verbose=False,
        )
