"""Pictures of what is lost when patches are dropped or shuffled: curves (paper, Fig. 9 and 10), and what the network saw."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from checkpoints import fonts
from checkpoints.architecture import Architecture
from checkpoints.figures import Figure
from pretrain.images.source import Images
from probes.linear.head import View, batches
from probes.robustness.occlusion import Curve
from probes.visualize import gallery

NAMES = {"random": "any patches dropped", "salient": "salient ones dropped", "non_salient": "all others dropped"}
SHOWN = 4
Change = Callable[[Tensor, Sequence[int]], Tensor]
"""Normalised crops [b, 3, s, s] and their numbers -> what becomes of them."""


def draw_curves(curves: Mapping[str, Curve], title: str) -> Figure:
    """Accuracy over the share that is lost."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    panel = figure.subplots()
    for number, (kind, points) in enumerate(curves.items()):
        lost, right = zip(*sorted(points), strict=True)
        panel.plot(
            lost,
            right,
            marker="os^"[number],
            markersize=4,
            color=gallery.unit_colours(3)[number],
            label=NAMES[kind],
        )
    panel.set_xlabel("share of the picture that is lost")
    panel.set_ylabel("top-1, %")
    panel.legend(fontsize=8)
    figure.suptitle(fonts.label(title), fontsize=8)
    return figure


def draw_grids(numbers: Mapping[str, float], title: str) -> Figure:
    """Accuracy over the number of cells."""
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    panel = figure.subplots()
    panel.plot(
        [name.removeprefix("grid_") for name in numbers], [*numbers.values()], marker="o", color=gallery.unit_colours(1)[0]
    )
    panel.set_xlabel("cells that were shuffled")
    panel.set_ylabel("top-1, %")
    figure.suptitle(fonts.label(title), fontsize=8)
    return figure


def draw_examples(shape: Architecture, images: Images, view: View, change: Mapping[str, Change], title: str) -> Figure:
    """A few images as the network saw them, a column for each change."""
    numbers, crops = next(batches(images, view, shape, SHOWN, "examples"))
    figure, axes = gallery.panels(len(numbers) * len(change), title, columns=len(change), side=1.4)
    for column, (name, make) in enumerate(change.items()):
        levels = make(crops, numbers).permute(0, 2, 3, 1) * torch.tensor(shape.std) + torch.tensor(shape.mean)
        for row, image in enumerate((levels * 255).round().clamp(0, 255).to(torch.uint8).numpy()):
            gallery.picture(axes[row * len(change) + column], np.asarray(image), name if row == 0 else "")
    return figure
