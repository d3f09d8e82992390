"""k-NN top-1 during training: the teacher's features of some labelled images."""

import numpy as np
import torch

from checkpoints.cli import UserError
from pretrain.engine import distributed
from pretrain.evaluate import knn, views
from pretrain.images.open import has_part, open_images
from pretrain.images.source import Images, Subset, aligned, subset, usable
from pretrain.models.backbone import Backbone

BANK, QUERIES = 2000, 1000


class OnlineKnn:
    """k-NN accuracy of the teacher on a small part of the run's own labelled data: a curve, not a result."""

    def __init__(self, bank: Images, queries: Images, crop: int) -> None:
        self._bank, self._queries, self._crop = bank, queries, crop

    def measure(self, backbone: Backbone) -> float:
        """Top-1 percent with k = 10."""
        resize = views.evaluation_resize(self._crop)
        was_training = backbone.training
        backbone.eval()
        bank = knn.features(backbone, self._bank, resize=resize, crop=self._crop)
        queries = knn.features(backbone, self._queries, resize=resize, crop=self._crop)
        backbone.train(was_training)
        bank_labels, labels = torch.as_tensor(self._bank.labels), torch.as_tensor(self._queries.labels)
        classes = int(max(bank_labels.max(), labels.max())) + 1
        return knn.accuracy(knn.vote(queries, bank, bank_labels, classes, ks=(10,))[10], labels)


def online_knn(source: str, images: Images, crop: int) -> OnlineKnn | None:
    """A measurement on part of `images`, tested on the source's other part or, where it has none, on held-out ones.

    None where the images have no labels or one class only, and in all processes but the main one. Raises UserError where the
    classes differ, and where the test images have no labels or none of either can be used.
    """
    if images.labels is None or len(np.unique(images.labels)) < 2 or not distributed.is_main():
        return None
    bank, queries = _bank_and_queries(source, images)
    if not len(bank) or not len(queries):
        raise UserError(
            f"too few images of {images.name} can be used with --channels {images.channels} for the k-NN curve: "
            "give other --knn-data, or --knn-every 0"
        )
    return OnlineKnn(bank, queries, crop)


def _bank_and_queries(source: str, images: Images) -> tuple[Images, Images]:
    if has_part(source, "val"):
        queries = aligned(open_images(source, "val", images.channels, images.value_range), images)
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
    """The images that can be decoded."""
    numbers = list(usable(images))
    return images if len(numbers) == len(images) else Subset(images, np.array(numbers, dtype=int))
