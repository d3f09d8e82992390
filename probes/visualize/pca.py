"""Patch tokens by their principal components: the first as lightness, three as red, green and blue.

`python -m probes.visualize pca`
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from checkpoints.cli import UserError
from probes.shared.console import steps
from probes.shared.subject import Subject
from probes.visualize import gallery, inputs
from probes.visualize.gallery import Shown
from probes.visualize.inputs import Drawing, Seen

COUNT = 8
ENDS = (0.02, 0.98)
"""Quantiles that become the darkest and the brightest level."""


@dataclass(frozen=True)
class Pca(Drawing):
    """Patch tokens in colour, by the components of each image's own patches, and by those of all shown images together."""


class Components(NamedTuple):
    """Principal components of patch tokens [n, d], each scaled to 0..1."""

    levels: Float[Tensor, "n 3"]
    explained: Float[Tensor, "3"]
    """Share of the variance."""


def components(tokens: Float[Tensor, "n d"]) -> Components:
    """The first three. A component's sign says nothing; here its longer tail is bright. Raises UserError for too few tokens."""
    if min(tokens.shape) < 3:
        raise UserError("three components need three patches or more: give a larger --size or more images")
    centred = (tokens - tokens.mean(dim=0)).double()
    variance, directions = torch.linalg.eigh(centred.T @ centred)
    scores = centred @ directions[:, -3:].flip(1)
    scores = scores * torch.where((scores**3).mean(dim=0) < 0, -1.0, 1.0)
    low, high = (scores.quantile(share, dim=0) for share in ENDS)
    levels = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return Components(levels.float(), (variance.flip(0)[:3] / variance.sum()).float())


def draw(options: Pca, subject: Subject) -> Iterator[Shown]:
    """A picture an image: itself, its own first component and first three, the first three of all images."""
    backbone, source = subject.backbone, inputs.whose(subject, options.key)
    images, size = inputs.pictures_of(options, COUNT), inputs.side(subject.backbone, options.size)
    all_seen = [inputs.see(images, number, backbone, size) for number in range(len(images))]
    tokens = [inputs.tokens(backbone, seen.crop) for seen in steps("patch tokens", all_seen, len(all_seen))]
    together = components(torch.cat(tokens)).levels.split([len(one) for one in tokens])
    for number, (seen, its_tokens, common) in enumerate(zip(all_seen, tokens, together, strict=True)):
        own = components(its_tokens)
        figure = sheet(seen, own.levels.numpy(), common.numpy(), f"{seen.name}\n{source}")
        shares = ", ".join(f"{share:.0%}" for share in own.explained.tolist())
        yield Shown(f"pca_{number:03d}", figure, f"{seen.name}: its patches' components hold {shares} of the variance. {source}")


def sheet(seen: Seen, own: Float[np.ndarray, "n 3"], common: Float[np.ndarray, "n 3"], title: str) -> gallery.Figure:
    """The image and the levels of its patches."""
    figure, axes = gallery.panels(4, title, side=2.2)
    height, width = seen.image.shape[:2]
    large, large_common = (gallery.blown_up(levels.reshape(*seen.grid, 3), height, width) for levels in (own, common))
    gallery.picture(axes[0], seen.image, "image")
    gallery.picture(axes[1], large[..., 0], "first component", vmin=0, vmax=1)
    gallery.picture(axes[2], large, "first three")
    gallery.picture(axes[3], large_common, "first three of all images")
    return figure
