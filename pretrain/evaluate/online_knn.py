"""k-NN top-1 during training: the teacher's features of some labelled images."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from checkpoints.cli import UserError
from pretrain.engine import distributed
from pretrain.evaluate import knn, views
from pretrain.images.decode import REDUCTIONS, BadImage
from pretrain.images.open import has_part, open_images
from pretrain.images.source import Images, Subset, aligned, subset, with_labels
from pretrain.models.backbone import Backbone

BANK, QUERIES = 2000, 1000


class OnlineKnn:
    """k-NN accuracy of the teacher on a small part of the run's own labelled data: a curve, not a result."""

    def __init__(self, bank: Images, queries: Images, crop: int, workers: int = 0) -> None:
        self._bank, self._queries, self._crop, self._workers = bank, queries, crop, workers

    def measure(self, backbone: Backbone) -> float:
        """Top-1 percent with k = 10. All processes call it together, each decodes and computes its share."""
        was_training = backbone.training
        backbone.eval()
        bank, queries = (self._features(backbone, images) for images in (self._bank, self._queries))
        backbone.train(was_training)
        bank_labels, labels = torch.as_tensor(self._bank.labels), torch.as_tensor(self._queries.labels)
        classes = int(max(bank_labels.max(), labels.max())) + 1
        return knn.accuracy(knn.vote(queries, bank, bank_labels, classes, ks=(10,))[10], labels)

    def _features(self, backbone: Backbone, images: Images) -> Float[Tensor, "q d"]:
        share = own_share(len(images))
        resize = views.evaluation_resize(self._crop)
        found = knn.features(backbone, Subset(images, share), resize=resize, crop=self._crop, workers=self._workers, reduced=True)
        order, every = (list(parts) for parts in zip(*distributed.gathered([(share, found)]), strict=True))
        return torch.cat(every)[np.concatenate(order).argsort()]


def own_share(count: int) -> np.ndarray:
    """The numbers below `count` that this process sees to."""
    return np.arange(distributed.rank(), count, distributed.world_size())


def online_knn(source: str, images: Images, crop: int, workers: int = 0) -> OnlineKnn | None:
    """A measurement on part of `images`, tested on the source's other part or, where it has none, on held-out ones.

    All processes call it together. None where the images have no labels or one class only. Raises UserError where the classes
    differ, and where the test images have no labels or none of either can be used.
    """
    images = with_labels(images)
    if images.labels is None or len(np.unique(images.labels)) < 2:
        return None
    bank, queries = _bank_and_queries(source, images)
    if not len(bank) or not len(queries):
        raise UserError(
            f"too few images of {images.name} can be used with --channels {images.channels} for the k-NN curve: "
            "give other --knn-data, or --knn-every 0"
        )
    return OnlineKnn(bank, queries, crop, workers)


def _bank_and_queries(source: str, images: Images) -> tuple[Images, Images]:
    if has_part(source, "val"):
        queries = with_labels(aligned(open_images(source, "val", images.channels, images.value_range), images))
        if queries.labels is None:
            raise UserError(
                f"{queries.name} has no labels, which the k-NN curve needs: sort its images into class folders as those to train "
                "on are, or give --knn-data, or --knn-every 0"
            )
        return readable(subset(images, BANK)), readable(subset(queries, QUERIES))
    usable = readable(subset(images, BANK + QUERIES))
    cut = max(1, len(usable) // 3)
    numbers = np.arange(len(usable))
    return Subset(usable, numbers[cut:]), Subset(usable, numbers[:cut])


def readable(images: Images) -> Images:
    """Those that can be decoded; each process looks at its share."""
    own = [int(number) for number in own_share(len(images)) if _decodes(images, int(number))]
    numbers = sorted(distributed.gathered(own))
    return images if len(numbers) == len(images) else Subset(images, np.array(numbers, dtype=int))


def _decodes(images: Images, number: int) -> bool:
    """Small where that can be: only whether it can be decoded is asked."""
    try:
        return images.open(number).pixels(max(REDUCTIONS)).size > 0
    except BadImage:
        return False
