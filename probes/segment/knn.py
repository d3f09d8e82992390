"""Patches by their nearest patches of the training images (`--head knn`), as `probes.knn` classifies images.

b images, n patches, d width of the features, t patches of the bank, k classes, s side of a window.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints.cli import WorkError
from pretrain.evaluate import knn
from pretrain.models.backbone import Backbone
from probes.segment.data import Labelled, Set, label_view
from probes.segment.features import seen, windows_of_labels
from probes.segment.held_out import held_out
from probes.segment.options import SegmentOptions
from probes.segment.scores import Confusion, Measured, Scores, add_whole
from probes.shared import memory
from probes.shared.label_rule import NOTHING

PATCHES_OF_AN_IMAGE = 64
"""Number of an image's patches in the bank."""


class Bank(NamedTuple):
    """Patches with a class, of length one and on the CPU, their classes, and the image of each."""

    tokens: Float[Tensor, "t d"]
    classes: Int[Tensor, " t"]
    image: Int[Tensor, " t"]

    def without(self, images: Sequence[int]) -> "Bank":
        """The patches of the other images."""
        others = ~torch.isin(self.image, torch.tensor(images))
        return Bank(*(one[others] for one in self))


def by_neighbours(backbone: Backbone, data: Set, options: SegmentOptions, classes: int) -> Measured:
    """Each patch by the votes of the nearest patches; of several k the best on held-out training images.

    Raises WorkError where no patch has a class.
    """
    held = sorted(held_out(len(data.train.pixels), options))
    with bank_of(backbone, data, options, classes) as bank:
        tried = dict[str, float]()
        if held:
            others = bank.without(held)
            every = [partial(scores, others, k, classes) for k in options.k]
            found = _counted(backbone, data, data.train, held, options, every, classes)
            tried = {f"k {k}": one.metrics()["miou"] for k, one in zip(options.k, found, strict=True)}
        best = max(options.k, key=lambda k: tried.get(f"k {k}", -1.0))
        one = [partial(scores, bank, best, classes)]
        confusion = _counted(backbone, data, data.val, range(len(data.val.pixels)), options, one, classes)[0]
    return Measured(f"k {best}", confusion, tried)


@contextmanager
def bank_of(backbone: Backbone, data: Set, options: SegmentOptions, classes: int) -> Iterator[Bank]:
    """PATCHES_OF_AN_IMAGE of each training image, drawn by the seed; a patch has the class of most of its pixels.

    Says how much they take before they are computed. Raises WorkError where there is no room, or no patch has a class.
    """
    generator, images = torch.Generator().manual_seed(options.seed), len(data.train.pixels)
    first = seen(data.train, 0, backbone, data.size, options.batch_size)
    shape = (images * PATCHES_OF_AN_IMAGE, first.features.shape[2])
    what = f"{PATCHES_OF_AN_IMAGE} patches of each of {images} training images"
    with memory.arrays(what, [(shape, np.float32)], "give fewer --images") as held:
        tokens, of_tokens, owners = torch.from_numpy(held[0]), list[Tensor](), list[Tensor]()
        filled = 0
        for number in range(images):
            one = seen(data.train, number, backbone, data.size, options.batch_size) if number else first
            labels = windows_of_labels(data.train, number, one.where, data.size, data.rule)
            its = patch_labels(labels, round(one.features.shape[1] ** 0.5), classes).flatten()
            known = (its != NOTHING).nonzero()[:, 0]
            chosen = known[torch.randperm(len(known), generator=generator)[:PATCHES_OF_AN_IMAGE]]
            features = one.features.flatten(0, 1)[chosen.to(one.features.device)]
            tokens[filled : filled + len(chosen)] = F.normalize(features, dim=1).cpu()
            of_tokens.append(its[chosen])
            owners.append(torch.full((len(chosen),), number))
            filled += len(chosen)
        if not filled:
            raise WorkError("no patch of the training images has a label: there is nothing to learn")
        yield Bank(tokens[:filled], torch.cat(of_tokens), torch.cat(owners))


def scores(bank: Bank, k: int, classes: int, features: Float[Tensor, "w n d"]) -> Float[Tensor, "w k side side"]:
    """1 for the class of each patch by its nearest of the bank, else 0."""
    side = round(features.shape[1] ** 0.5)
    queries = F.normalize(features.flatten(0, 1), dim=1)
    answers = knn.vote(queries, bank.tokens, bank.classes, classes, (k,))[k][:, 0]
    return F.one_hot(answers.long(), classes).float().view(len(features), side, side, classes).permute(0, 3, 1, 2)


def _counted(
    backbone: Backbone,
    data: Set,
    part: Labelled,
    images: Sequence[int],
    options: SegmentOptions,
    every: Sequence[Scores],
    classes: int,
) -> list[Confusion]:
    """What each way of scoring says of these images."""
    found = [Confusion(classes) for _ in every]
    for number in images:
        one, labels = (
            seen(part, number, backbone, data.size, options.batch_size),
            label_view(part.labels[number], None, data.rule),
        )
        for confusion, way in zip(found, every, strict=True):
            add_whole(confusion, one, labels, way, data.size, "nearest")
    return found


def patch_labels(labels: Int[Tensor, "b s s"], side: int, classes: int) -> Int[Tensor, "b n"]:
    """The class of most pixels of each patch; NOTHING where most have none."""
    one_hot = F.one_hot(torch.where(labels == NOTHING, classes, labels), classes + 1).permute(0, 3, 1, 2).float()
    most = F.adaptive_avg_pool2d(one_hot, side).flatten(2).argmax(dim=1)
    return torch.where(most == classes, NOTHING, most)
