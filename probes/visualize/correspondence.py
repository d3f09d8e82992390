"""Patches that find each other: mutual nearest neighbours in two views of an image, or in two images of a class (paper, Fig. 4).

`python -m probes.visualize correspondence`

n m patches of the two pictures, s side of a view.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from checkpoints import terminal
from checkpoints.cli import UserError
from checkpoints.figures import ConnectionPatch
from pretrain.batches import augment
from pretrain.evaluate import knn
from pretrain.evaluate.views import evaluation_view
from pretrain.images.source import Images, Subset
from pretrain.models.backbone import Backbone
from pretrain.models.vit import ViT
from probes.features.attention import cls_attention
from probes.shared.console import steps
from probes.shared.subject import Subject
from probes.visualize import gallery, inputs
from probes.visualize.gallery import Shown
from probes.visualize.inputs import Drawing

COUNT, EVERY = 8, 1 << 31
SCALE = (0.4, 1.0)
"""Share of the image that a view covers, as the original's picture has it."""
RADIUS = 1
"""Patches by which a match may miss the true place and still count as right."""


@dataclass(frozen=True)
class Correspondence(Drawing):
    """Lines between patches that are each other's nearest."""

    pairs: Literal["views", "class"] = "views"
    """Two views of one image (cut, mirrored, other colours), or two images of one class."""
    lines: int = 12
    """Number of matches to draw: those with the largest [CLS] attention, or similarity for a network without attention."""


class View(NamedTuple):
    """One of the two pictures."""

    name: str
    crop: Float[Tensor, "1 3 s s"]
    image: UInt8[np.ndarray, "s s 3"]
    places: Float[np.ndarray, "n 2"] | None
    """Centres (x, y) of the patches in the image that the views were cut from; None between two images."""


class Matches(NamedTuple):
    """Patches of the first picture and of the second, the likest first."""

    first: Int[Tensor, " k"]
    second: Int[Tensor, " k"]
    similarity: Float[Tensor, " k"]


def mutual(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> Matches:
    """Pairs of which each is the other's nearest by cosine."""
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    there, back = similarity.argmax(dim=1), similarity.argmax(dim=0)
    kept = (back[there] == torch.arange(len(first))).nonzero()[:, 0]
    likest = kept[similarity[kept, there[kept]].argsort(descending=True)]
    return Matches(likest, there[likest], similarity[likest, there[likest]])


def right(matches: Matches, first: View, second: View, patch: float) -> Bool[np.ndarray, " k"]:
    """Correctness of the matches that could be right: within RADIUS patches of the second view from the true position.

    A match could be right where the first patch's centre lies inside the second view. `patch` is its patch's side in the image.
    """
    assert first.places is not None and second.places is not None
    true, said = first.places[matches.first.numpy()], second.places[matches.second.numpy()]
    inside = ((true >= second.places.min(axis=0) - patch / 2) & (true <= second.places.max(axis=0) + patch / 2)).all(axis=1)
    return (np.abs(true - said).max(axis=1) <= (RADIUS + 0.5) * patch)[inside]


def draw(options: Correspondence, subject: Subject) -> Iterator[Shown]:
    """Yields a picture for each pair; for views it shows, and prints, how many matches are right."""
    backbone, source = subject.backbone, inputs.whose(subject, options.key)
    size = inputs.side(backbone, options.size) // backbone.shape.stride * backbone.shape.stride
    generator, answers = np.random.default_rng(options.seed), []
    found = list(_pairs(options, backbone, size, generator))
    for number, (first, second) in enumerate(steps("pairs", found, len(found))):
        matches = mutual(inputs.tokens(backbone, first.crop), inputs.tokens(backbone, second.crop))
        said = f"{len(matches.first)} mutual matches of {(size // backbone.shape.stride) ** 2} patches"
        if first.places is not None and second.places is not None:
            patch = float(np.diff(np.unique(second.places[:, 0].round(6))).min()) if len(second.places) > 1 else float(size)
            answers.append(right(matches, first, second, patch))
            said += f", {answers[-1].mean():.0%} of {len(answers[-1])} checked ones right" if len(answers[-1]) else ""
        figure = _figure(first, second, _strongest(matches, first, backbone, options.lines), backbone.shape.stride, source)
        yield Shown(f"correspondence_{number:03d}", figure, f"{first.name} and {second.name}: {said}. {source}")
    if answers:
        every = np.concatenate(answers)
        terminal.say(
            f"{every.mean():.1%} of {len(every)} mutual matches between two views lie within {RADIUS} patch of the true place"
        )


def _pairs(options: Correspondence, backbone: Backbone, size: int, generator: np.random.Generator) -> Iterator[tuple[View, View]]:
    if options.pairs == "views":
        images = inputs.pictures_of(options, COUNT)
        for number in range(len(images)):
            yield _views(images, number, backbone, size, generator)
        return
    images = inputs.pictures_of(dataclasses.replace(options, limit=None), EVERY)
    if images.labels is None:
        raise UserError(f"{images.name} has no labels: pairs of a class need class sub-folders, or a label column")
    classes, sizes = np.unique(images.labels[images.labels >= 0], return_counts=True)
    if not len(sizes) or sizes.max() < 2:
        raise UserError(f"no class of {images.name} has two images to make a pair of")
    for number in generator.permutation(classes[sizes > 1])[: options.limit or COUNT]:
        members = np.flatnonzero(images.labels == number)
        both = Subset(images, generator.choice(members, size=2, replace=False))
        yield _whole(both, 0, backbone, size), _whole(both, 1, backbone, size)


def _views(images: Images, number: int, backbone: Backbone, size: int, generator: np.random.Generator) -> tuple[View, View]:
    """Two crops, mirrored and coloured by chance as in pretraining."""
    pixels = knn.read(images, number)
    draws = augment.draw(generator, augment.View(size, SCALE, blur=0.0, solarize=0.0), 2, 1)
    boxes = augment.boxes(draws, np.array([pixels.shape[1]]), np.array([pixels.shape[0]]))
    crops = augment.make([pixels], augment.Crops(draws, boxes, size), backbone.shape.mean, backbone.shape.std)[:, 0]
    cells = (np.arange(size // backbone.shape.stride) + 0.5) / (size // backbone.shape.stride)
    views: list[View] = []
    for crop, (left, upper, width, height), flip in zip(crops, boxes[:, 0], draws.flip[:, 0], strict=True):
        x, y = np.meshgrid(left + width * (1 - cells if flip else cells), upper + height * cells)
        name = f"{inputs.called(images, number)}, view {len(views) + 1}"
        views.append(View(name, crop[None], _for_the_eye(crop, backbone), np.stack([x.ravel(), y.ravel()], axis=1)))
    return views[0], views[1]


def _whole(images: Images, number: int, backbone: Backbone, size: int) -> View:
    crop = evaluation_view(knn.read(images, number), size, size, mean=backbone.shape.mean, std=backbone.shape.std)
    return View(inputs.called(images, number), crop[None], _for_the_eye(crop, backbone), None)


def _for_the_eye(crop: Float[Tensor, "3 s s"], backbone: Backbone) -> UInt8[np.ndarray, "s s 3"]:
    levels = crop.permute(1, 2, 0) * torch.tensor(backbone.shape.std) + torch.tensor(backbone.shape.mean)
    return (levels * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _strongest(matches: Matches, first: View, backbone: Backbone, count: int) -> Matches:
    """The matches at the patches with the largest [CLS] attention."""
    if not isinstance(backbone, ViT):
        return Matches(*(values[:count] for values in matches))
    looked_at = cls_attention(backbone, first.crop.to(next(backbone.parameters()).device))[0].mean(dim=0).cpu()
    order = looked_at[matches.first].argsort(descending=True)[:count]
    return Matches(*(values[order] for values in matches))


def _figure(first: View, second: View, matches: Matches, stride: int, source: str) -> gallery.Figure:
    figure, axes = gallery.panels(2, f"{first.name} | {second.name}\n{source}", side=3.2)
    for panel, view in zip(axes, (first, second), strict=True):
        gallery.picture(panel, view.image)
    columns, colours = first.image.shape[1] // stride, gallery.unit_colours(len(matches.first))
    for colour, one, other in zip(colours, matches.first.tolist(), matches.second.tolist(), strict=True):
        ends = [((place % columns + 0.5) * stride - 0.5, (place // columns + 0.5) * stride - 0.5) for place in (one, other)]
        for panel, end in zip(axes, ends, strict=True):
            panel.plot(*end, "o", color=tuple(colour), markersize=4, markeredgecolor="black", markeredgewidth=0.5)
        line = ConnectionPatch(ends[0], ends[1], "data", "data", axesA=axes[0], axesB=axes[1], color=tuple(colour), linewidth=1.2)
        line.set_in_layout(False)
        figure.add_artist(line)
    return figure
