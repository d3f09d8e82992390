"""[CLS] tokens of many images on a plane, neighbours kept together (t-SNE by scikit-learn).

`python -m probes.visualize tsne`
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from checkpoints import fonts
from checkpoints.cli import UserError
from checkpoints.figures import Figure
from pretrain.evaluate import knn
from pretrain.evaluate.views import evaluation_resize
from probes.shared.subject import Subject, made_ready, paper_crop
from probes.visualize import gallery, inputs
from probes.visualize.gallery import Shown
from probes.visualize.inputs import Drawing

COUNT, CLASSES = 1000, 20
MARKERS = "os^DPvX*<>"
LEAST = 10


@dataclass(frozen=True)
class Tsne(Drawing):
    """[CLS] of many images on a plane; at most 20 classes have a colour and a sign of their own."""

    perplexity: float = 30.0
    """About how many neighbours each image keeps."""


def draw(options: Tsne, subject: Subject) -> Iterator[Shown]:
    """One picture."""
    images, source = inputs.pictures_of(options, COUNT), inputs.whose(subject, options.key)
    if len(images) < LEAST or not 1 <= options.perplexity < len(images):
        raise UserError(f"{images.name} is too few for --perplexity {options.perplexity:g}: give more images, or a smaller one")
    crop = options.size or paper_crop(subject.backbone)
    if crop % subject.backbone.shape.stride:
        raise UserError(f"--size {crop} is not divisible by {subject.backbone.shape.stride}, the pixels of a token's side")
    made_ready(subject.backbone, crop)
    resize = evaluation_resize(crop)
    features = knn.features(subject.backbone, images, resize=resize, crop=crop, batch_size=options.batch_size).numpy()
    places = plane(features, options.perplexity, options.seed)
    labels = np.zeros(len(images), dtype=int) if images.labels is None else np.asarray(images.labels)
    classes = ["images without labels"] if images.labels is None else list(images.classes)
    if labels.min() < 0:
        labels, classes = np.where(labels < 0, len(classes), labels), [*classes, "images without labels"]
    title = f"{images.name}\n{source}"
    yield Shown("tsne", chart(places, labels, classes, title), f"t-SNE of [CLS], {len(images)} images of {images.name}. {source}")


def plane(features: Float[np.ndarray, "b d"], perplexity: float, seed: int) -> Float[np.ndarray, "b 2"]:
    """Places on the plane, the same for the same seed."""
    from sklearn.manifold import TSNE  # noqa: PLC0415 (slow to import)

    return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features))


def chart(places: Float[np.ndarray, "b 2"], labels: Int[np.ndarray, " b"], classes: Sequence[str], title: str) -> Figure:
    """Points by class: seven colours, and signs that change with every point of the legend."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    panel = figure.subplots()
    colours = gallery.unit_colours(CLASSES)
    for number, name in enumerate(classes[:CLASSES]):
        own = places[labels == number]
        panel.scatter(
            own[:, 0],
            own[:, 1],
            s=14,
            color=colours[number],
            marker=MARKERS[number % len(MARKERS)],
            label=fonts.label(name),
            linewidths=0,
        )
    rest = places[labels >= CLASSES]
    if len(rest):
        panel.scatter(
            rest[:, 0], rest[:, 1], s=6, color="0.7", marker=".", label=f"{len(classes) - CLASSES} more classes", zorder=0
        )
    panel.set_xticks([])
    panel.set_yticks([])
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(fonts.label(title), fontsize=8)
    return figure
