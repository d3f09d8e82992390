"""The test of a fine-tuned network: the recipe's view of the test images, and the network's predictions.

b images, c channels, h w pixels, n test images, a predictions.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from checkpoints.architecture import Architecture
from pretrain.batches.loader import NumberedLoader
from pretrain.engine import bad_images, distributed
from pretrain.engine.bad_images import Bad
from pretrain.engine.precision import Precision
from pretrain.images.decode import BadImage
from pretrain.images.source import Images
from probes.finetune.checkpoint import Network, Tested
from probes.finetune.data import Data
from probes.finetune.dataset import picture, workers
from probes.finetune.model import Classifier
from probes.finetune.options import FinetuneOptions
from probes.finetune.watch import CURE, Diverged

CROP_SHARE, CROPPED_FROM = 224 / 256, 160
TEST_BATCH = 64
BEST_ANSWERS = 5


class Labelled(NamedTuple):
    """Images to test on, with their numbers."""

    images: Float[Tensor, "b c h w"]
    numbers: Int[np.ndarray, " b"]
    bad: Sequence[Bad] = ()
    """Images that could not be read: they are tested as black ones."""


def crop_share(options: FinetuneOptions, size: int) -> float:
    """Ratio of the crop to the resized side: 1 below 160 pixels and from `whole_from` up."""
    whole = size < CROPPED_FROM or (options.whole_from is not None and size >= options.whole_from)
    return 1.0 if whole else CROP_SHARE


def resized_side(options: FinetuneOptions, shape: Architecture) -> int:
    """Pixels of a test image's shorter side before the crop: 256 for 224, in proportion for others."""
    size = options.input_size or shape.image_size
    return math.floor(size / crop_share(options, size))


def evaluation_view(options: FinetuneOptions, shape: Architecture) -> Any:
    """Shorter side to `resized_side`, then the central crop."""
    size = options.input_size or shape.image_size
    share = crop_share(options, size)
    return create_transform(size, interpolation=options.interpolation, crop_pct=share, mean=shape.mean, std=shape.std)


class Evaluation(Dataset[Labelled]):
    """The test images of this process, TEST_BATCH at a time."""

    def __init__(self, images: Images, shape: Architecture, options: FinetuneOptions) -> None:
        self.images, self._view, self._size = images, evaluation_view(options, shape), options.input_size or shape.image_size
        self._numbers = np.arange(distributed.rank(), len(images), distributed.world_size())

    def __len__(self) -> int:
        return math.ceil(len(self._numbers) / TEST_BATCH)

    def __getitem__(self, number: int) -> Labelled:
        numbers = self._numbers[number * TEST_BATCH : (number + 1) * TEST_BATCH]
        pictures, bad = [], []
        for index in numbers:
            try:
                found = picture(self.images[int(index)])
            except BadImage as error:
                bad.append(Bad(int(index), self.images.where(int(index)), str(error)))
                found = Image.new("RGB", (self._size, self._size))
            pictures.append(self._view(found))
        return Labelled(torch.stack(pictures), numbers, bad)


class Evaluator:
    """The test images, and how they are put to a network. `bad` takes down those that cannot be read."""

    def __init__(
        self, data: Data, options: FinetuneOptions, shape: Architecture, precision: Precision, bad: bad_images.BadImages
    ) -> None:
        self._questions, self._precision, self._bad = Evaluation(data.test, shape, options), precision, bad
        self._labels, self._workers = torch.as_tensor(data.test.labels)[:, None], workers(options)

    def of(self, network: Network, epoch: int) -> tuple[Tested, Int[Tensor, "n a"]]:
        """Top-1 and top-5 percent, and the predictions: the classes with the highest scores of every image, best first.

        Raises Diverged if a score is not finite.
        """
        answers = self._answers(network.model, f"after epoch {epoch}")
        right = answers == self._labels
        top1, top5 = (100 * right[:, :count].any(dim=1).double().mean().item() for count in (1, BEST_ANSWERS))
        if network.ema is None:
            return Tested(epoch, top1, top5), answers
        averaged = self._answers(network.ema.module, f"by the averaged weights after epoch {epoch}")[:, :1] == self._labels
        return Tested(epoch, top1, top5, 100 * averaged.double().mean().item()), answers

    def _answers(self, model: Classifier, when: str) -> Int[Tensor, "n a"]:
        """Predictions of all test images, gathered from all processes."""
        was_training, device = model.training, model.head.weight.device
        model.eval()
        found: list[tuple[int, list[int]]] = []
        without: list[int] = []
        with torch.inference_mode():
            for images, numbers, bad in NumberedLoader(self._questions, 0, len(self._questions), self._workers, device):
                with self._precision.autocast():
                    scores = model(images.to(device, non_blocking=True)).float()
                best = scores.topk(min(BEST_ANSWERS, scores.shape[1]), dim=1).indices
                without += numbers[~scores.isfinite().all(dim=1).cpu().numpy()].tolist()
                found += zip(numbers.tolist(), best.tolist(), strict=True)
                self._bad.add(bad)
        model.train(was_training)
        without = sorted(distributed.gathered(without))
        if without:
            image = self._questions.images.where(without[0])
            raise Diverged(f"{when} the scores of {len(without)} test images are not finite, {image} for one: {CURE}")
        return torch.tensor([answers for _, answers in sorted(distributed.gathered(found))])
