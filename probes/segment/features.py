"""Frozen features of an image's windows, and of all windows of many images, which are held outside the device's memory.

w windows, n patches, d width of the features, s side of a window.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from checkpoints.cli import WorkError
from pretrain.evaluate import finite
from pretrain.models.backbone import Backbone
from probes.segment.data import Labelled, Set, label_view, resized, view
from probes.shared import memory, windows
from probes.shared.label_rule import Rule

BLOCKS = 4


class Seen(NamedTuple):
    """An image's windows: features, where they lie, and the size of the resized image."""

    features: Float[Tensor, "w n d"]
    where: list[tuple[int, int]]
    height: int
    width: int


def seen(part: Labelled, number: int, backbone: Backbone, size: int, count: int) -> Seen:
    """Features of all windows of an image, `count` at a time. Raises WorkError naming an image whose are not finite."""
    whole = view(part.pixels[number], backbone, size).to(next(backbone.parameters()).device)
    where = windows.corners(whole.shape[1], whole.shape[2], size)
    crops = torch.stack([whole[:, upper : upper + size, left : left + size] for upper, left in where])
    features = torch.cat([patch_features(backbone, some) for some in crops.split(count)])
    return Seen(finite.checked(features, backbone, lambda _: part.name(number)), where, whole.shape[1], whole.shape[2])


@torch.no_grad()
def patch_features(backbone: Backbone, crops: Float[Tensor, "b c s s"]) -> Float[Tensor, "b n d"]:
    """Normed patch tokens of the last blocks side by side; Swin's last stage has fewer than four blocks of one width."""
    blocks = backbone.last_blocks(crops, BLOCKS)
    return torch.cat([tokens[:, 1:] for tokens in blocks if tokens.shape == blocks[-1].shape], dim=-1).float()


def windows_of_labels(
    part: Labelled, number: int, where: Sequence[tuple[int, int]], size: int, rule: Rule
) -> Int[Tensor, "w s s"]:
    """The labels of an image's windows."""
    labels = label_view(part.labels[number], size, rule)
    return torch.stack([labels[upper : upper + size, left : left + size] for upper, left in where])


class Kept(NamedTuple):
    """All windows of all training images, on the CPU: `rows[i]` are those of image i, which is resized to `sizes[i]`."""

    features: Float16[Tensor, "w n d"]
    labels: UInt8[Tensor, "w s s"]
    rows: list[range]
    sizes: list[tuple[int, int]]

    def of_image(self, number: int, size: int, device: torch.device) -> Seen:
        """One image's windows, on the device, in float16 as they are held."""
        rows, (height, width) = self.rows[number], self.sizes[number]
        features = self.features[rows.start : rows.stop].to(device)
        return Seen(features, windows.corners(height, width, size), height, width)


@contextmanager
def kept(backbone: Backbone, data: Set, count: int) -> Iterator[Kept]:
    """Features of the training images in float16 and their labels, in memory or in a temporary file (`probes/shared/memory.py`).

    Says how much they take before they are computed. Raises WorkError where there is no room, or features are beyond float16.
    """
    sizes = [resized(data.train, number, data.size) for number in range(len(data.train.pixels))]
    ends = np.cumsum([len(windows.corners(height, width, data.size)) for height, width in sizes]).tolist()
    rows = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    first = seen(data.train, 0, backbone, data.size, count)
    what = f"features of the {ends[-1]} windows of {len(rows)} training images"
    shapes = [((ends[-1], *first.features.shape[1:]), np.float16), ((ends[-1], data.size, data.size), np.uint8)]
    with memory.arrays(what, shapes, "give fewer --images, or a smaller --size") as held:
        features, labels = map(torch.from_numpy, held)
        for number, its in enumerate(rows):
            one = seen(data.train, number, backbone, data.size, count) if number else first
            features[its.start : its.stop] = _halved(one.features).cpu()
            labels[its.start : its.stop] = windows_of_labels(data.train, number, one.where, data.size, data.rule)
        yield Kept(features, labels, rows, sizes)


def _halved(features: Tensor) -> Tensor:
    halved = features.half()
    if not halved.isfinite().all():
        raise WorkError(
            f"patch features up to {features.abs().max():.3g} are beyond float16, in which they are held: give --head knn"
        )
    return halved
