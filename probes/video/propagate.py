"""Masks carried from frame to frame by frozen patch tokens (paper Table 16, after Jabri et al., arXiv 2006.14613).

Each patch of a frame takes the labels of the patches most like it in the first frame and in the last few, among those close to
its own place. f source frames, n = gh gw patches, d width, o objects with the background, q queries.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from pretrain.batches.color_ops import normalise
from pretrain.evaluate import finite
from pretrain.models.backbone import Backbone
from pretrain.models.measured import patch_tokens

TEMPERATURE = 0.1
"""Temperature of the affinity exp(cosine / TEMPERATURE)."""
MULTIPLE = 64
"""Pixels that the longer side is a multiple of."""
QUERIES = 1024
"""Patches at a time: memory is QUERIES x f x n."""


class Protocol(NamedTuple):
    """Parameters of label propagation."""

    size: int
    """Pixels of the shorter side."""
    context: int
    """Frames before this one, besides the first."""
    radius: int
    """Radius of the search window, in patches."""
    top_k: int
    """Patches that hand on their labels."""


def frame_size(height: int, width: int, size: int, stride: int) -> tuple[int, int]:
    """Size (height, width) of a resized frame: shorter side `size`, longer side a multiple of 64 (or of the patch)."""
    multiple = MULTIPLE if MULTIPLE % stride == 0 else stride
    short = size // stride * stride
    if height > width:
        return int(short * height / width) // multiple * multiple, short
    return short, int(short * width / height) // multiple * multiple


def see(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], backbone: Backbone) -> Float[Tensor, "1 3 a b"]:
    """A frame resized (bilinear, not antialiased, as the original) and normalised."""
    pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False).round()
    return normalise(resized / 255, backbone.shape.mean, backbone.shape.std)


@torch.inference_mode()
def tokens(backbone: Backbone, seen: Float[Tensor, "1 3 a b"], name: str = "a frame") -> Float[Tensor, "n d"]:
    """Patch tokens after the final norm, of length one. Raises WorkError with the frame's name where they are not finite."""
    found = patch_tokens(backbone, seen.to(next(backbone.parameters()).device))[0].float()
    return F.normalize(finite.checked(found, backbone, lambda _: name), dim=1)


def carry(
    queries: Float[Tensor, "n d"],
    sources: Float[Tensor, "f n d"],
    labels: Float[Tensor, "f n o"],
    grid: tuple[int, int],
    protocol: Protocol,
) -> Float[Tensor, "n o"]:
    """Labels of a frame: means of the `top_k` likest source patches' within `radius`, weighted by exp(cosine / 0.1)."""
    flat, flat_labels, places = sources.flatten(0, 1), labels.flatten(0, 1), torch.arange(len(queries), device=queries.device)
    found = []
    for some, at in zip(queries.split(QUERIES), places.split(QUERIES), strict=True):
        near = close(at, places, grid[1], protocol.radius).repeat(1, len(sources))
        similarity = (some @ flat.T).masked_fill(~near, -torch.inf)
        best, which = similarity.topk(min(protocol.top_k, similarity.shape[1]), dim=1)
        found.append(((best / TEMPERATURE).softmax(dim=1)[..., None] * flat_labels[which]).sum(dim=1))
    return torch.cat(found)


def close(at: Int[Tensor, " q"], places: Int[Tensor, " n"], columns: int, radius: int) -> Bool[Tensor, "q n"]:
    """Mask of the grid positions within `radius` rows and columns of each query."""
    rows_apart = (at[:, None] // columns - places // columns).abs()
    columns_apart = (at[:, None] % columns - places % columns).abs()
    return (rows_apart <= radius) & (columns_apart <= radius)


def first_labels(mask: UInt8[np.ndarray, "h w"], grid: tuple[int, int]) -> Float[Tensor, "n o"]:
    """The given mask on the grid of patches, by nearest neighbour; 255 is background."""
    known = np.where(mask == 255, 0, mask).astype(np.uint8)
    small = np.asarray(Image.fromarray(known).resize(grid[::-1], Image.Resampling.NEAREST))
    return F.one_hot(torch.from_numpy(small.copy()).long().flatten(), int(known.max()) + 1).float()


def follow(
    frames: Iterator[Float[Tensor, "n d"]], mask: UInt8[np.ndarray, "h w"], grid: tuple[int, int], protocol: Protocol
) -> Iterator[Float[Tensor, "n o"]]:
    """Labels of every frame after the first. `frames` are patch tokens, `mask` is the first frame's."""
    first = next(frames)
    given = first_labels(mask, grid).to(first.device)
    last: deque[tuple[Tensor, Tensor]] = deque(maxlen=protocol.context)
    for frame in frames:
        sources = [(first, given), *last]
        labels = carry(
            frame, torch.stack([pair[0] for pair in sources]), torch.stack([pair[1] for pair in sources]), grid, protocol
        )
        last.append((frame, labels))
        yield labels


def decide(labels: Float[Tensor, "n o"], grid: tuple[int, int], stride: int, size: Sequence[int]) -> UInt8[np.ndarray, "h w"]:
    """Numbers of objects at the frame's own size (height, width): each object's labels from 0 to 1, then the highest."""
    maps = F.interpolate(labels.T.unflatten(1, grid)[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    spread = torch.where(high > 0, (maps - low) / (high - low), maps)
    best = spread.nan_to_num(0.0).argmax(dim=0).to(torch.uint8).cpu().numpy()  # a map that is the same everywhere says nothing
    return np.asarray(Image.fromarray(best).resize((size[1], size[0]), Image.Resampling.NEAREST))
