"""k-means codes of patches: of a backbone's patch tokens, or of the raw pixels, in a file that stands alone.

x crops, c channels, h w pixels, gh gw patches, n = gh * gw, d width, k codes. A safetensors file holds `centroids` [k, d], for
tokens the backbone's weights, and under `about` the fields of `About`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints import checked, store
from checkpoints.architecture import MOST, MOST_STAGES, Architecture, stored_architecture
from checkpoints.cli import UserError
from checkpoints.resolve import backbone_part, load_strictly
from pretrain.models.backbone import Backbone, agreed, make
from pretrain.tokenizers.base import Tokenizer

KIND = "kmeans"
COLOURS = (("mean", -1e6), ("std", 1e-6))
"""And the least that they can be."""


class About(NamedTuple):
    """Metadata of a tokenizer's file."""

    kind: str
    """`tokens` or `pixels`."""
    patch_size: int
    """Pixels of the square that has one code."""
    codes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation that pixels are normalised by first."""
    shape: dict[str, Any] | None
    """The backbone's, for tokens."""
    made: dict[str, Any]
    """Provenance: data, images, patches, seed, checkpoint. Nothing is computed from it."""


def tokens(backbone: Backbone, crops: Float[Tensor, "x c h w"]) -> Float[Tensor, "x n d"]:
    """Patch tokens of the last block after the final norm, of length one."""
    return F.normalize(backbone(crops)[:, 1:].float(), dim=-1)


def patches(crops: Float[Tensor, "x c h w"], side: int) -> Float[Tensor, "x n d"]:
    """The values of each patch, channel by channel."""
    cut = crops.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def nearest(points: Float[Tensor, "x n d"], centroids: Float[Tensor, "k d"]) -> Int[Tensor, "x n"]:
    """The nearest centroid of each: |p - c|^2 is least where p.c - |c|^2 / 2 is greatest, which is one matrix product."""
    return (points @ centroids.T - centroids.square().sum(dim=1) / 2).argmax(dim=-1)


class KMeans(Tokenizer):
    """The nearest centroid of each patch, in the crop as its file's images were: normalised by its mean and std."""

    factor: Tensor
    shift: Tensor
    centroids: Tensor

    def __init__(
        self, about: About, centroids: Tensor, backbone: Backbone | None, mean: Sequence[float], std: Sequence[float], name: str
    ) -> None:
        super().__init__(mean, std)
        self.about, self.name, self.vocabulary = about, name, len(centroids)
        self.backbone = backbone
        ours, theirs = zip(mean, std, strict=True), zip(about.mean, about.std, strict=True)
        pairs = [(s / their_s, (m - their_m) / their_s) for (m, s), (their_m, their_s) in zip(ours, theirs, strict=True)]
        for place, part in enumerate(("factor", "shift")):
            self.register_buffer(part, torch.tensor([pair[place] for pair in pairs])[:, None, None], persistent=False)
        self.register_buffer("centroids", centroids.float(), persistent=False)

    def check(self, height: int, width: int, grid: tuple[int, int]) -> None:
        """Raise UserError unless the grid is that of the file's patches."""
        side = self.about.patch_size
        if (height, width) != (grid[0] * side, grid[1] * side):
            raise UserError(
                f"{self.name} has codes for patches of {side} x {side} pixels, which give crops of {height} x {width} no grid "
                f"of {grid[0]} x {grid[1]}: pretrain with patches of {side} pixels (--patch-size), or make another tokenizer"
            )

    def encode(self, crops: Float[Tensor, "x c h w"], grid: tuple[int, int]) -> Int[Tensor, "x gh gw"]:
        crops = crops * self.factor + self.shift
        points = patches(crops, self.about.patch_size) if self.backbone is None else tokens(self.backbone, crops)
        return nearest(points, self.centroids).unflatten(1, grid)


def save(path: Path, about: About, centroids: Float[Tensor, "k d"], backbone: Backbone | None) -> None:
    """Write the file, whole or not at all."""
    weights = {"centroids": centroids}
    if backbone is not None:
        weights |= {f"backbone.{name}": w for name, w in backbone.state_dict().items() if name != "masked_embed"}
    store.save_backbone(path, weights, {"tokenizer": KIND, **about._asdict()})


def open_kmeans(path: Path, mean: Sequence[float], std: Sequence[float]) -> KMeans:
    """The tokenizer that `save` wrote. Raises UserError for other files, and for other channels than its own."""
    weights, metadata = store.read_safetensors(path)
    values = metadata.get("about", {})
    if values.get("tokenizer") != KIND:
        kind = values.get("tokenizer")
        cure = f"open it as {kind}:{path}" if kind else "make one with python -m pretrain.tokenizers kmeans, or patches"
        raise UserError(f"{path} holds no k-means codes: {cure}")
    about = _about(values, path)
    checked.network(weights, str(path))
    if len(about.mean) != len(mean):
        raise UserError(f"{path} takes images of {len(about.mean)} channels, not {len(mean)}: make one from your images")
    backbone = None if about.shape is None else _backbone(stored_architecture(about.shape, str(path)), weights, path)
    width = len(mean) * about.patch_size**2 if backbone is None else backbone.shape.embed_dim
    if backbone is None and len(weights) > 1:
        raise UserError(f"{path} has weights besides its centroids, of which codes of pixels have no use: take another copy")
    centroids = checked.part(weights, "centroids", path, about.codes, width)
    return KMeans(about, centroids, backbone, mean, std, str(path))


def _about(values: Mapping[str, Any], path: Path) -> About:
    """Raises UserError where a field is missing, unknown or cannot be."""
    where = f"{path}: about"
    fields = {name: value for name, value in checked.mapping(values, where, About._fields).items() if name in About._fields}
    about = About(**fields)
    checked.one_of(about.kind, f"{where}: kind", ("tokens", "pixels"))
    checked.count(about.patch_size, f"{where}: patch_size", 1, MOST["patch_size"] * 2**MOST_STAGES)
    checked.count(about.codes, f"{where}: codes", 1)
    channels = len(checked.listed(about.mean, f"{where}: mean"))
    mean, std = (checked.colours(getattr(about, name), f"{where}: {name}", channels, least) for name, least in COLOURS)
    if (about.shape is None) != (about.kind == "pixels"):
        raise UserError(f"{where}: codes of {about.kind} {'without' if about.shape is None else 'with'} the shape of a backbone")
    return about._replace(mean=mean, std=std)


def _backbone(shape: Architecture, weights: Mapping[str, Tensor], path: Path) -> Backbone:
    own = backbone_part({name: w for name, w in weights.items() if name != "centroids"})
    backbone = make(agreed(shape, own, path), maskable=False)
    load_strictly(backbone, own, path)
    return backbone.eval().requires_grad_(False)
