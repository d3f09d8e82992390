"""The batch of any step of fine-tuning: timm's augmentation, mixup and repeated augmentation, addressed by seed and step.

b images, c channels, h w pixels, k classes.
"""

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from timm.data import Mixup, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.mixup import mixup_target
from torch import Tensor
from torch.utils.data import Dataset

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError, WorkError
from checkpoints.store import first_line
from pretrain.batches.feeding import default_workers
from pretrain.engine import distributed
from pretrain.engine.bad_images import Bad, too_many
from pretrain.images.decode import BadImage, Pixels
from pretrain.images.source import Images
from probes.finetune.options import FinetuneOptions

ORDER, CHANGES = 0, 1
BITS = 8
"""Bits of a channel."""
COLOUR_JITTER = 0.4
"""timm leaves it out where there is RandAugment, so it is the paper's flag but not its augmentation."""
TRAINING_INTERPOLATION = "bicubic"


class Batch(NamedTuple):
    """One process's share of a forward."""

    images: Float[Tensor, "b c h w"]
    targets: Float[Tensor, "b k"]
    """Each row sums to one."""
    bad: Sequence[Bad] = ()
    """Images that others had to stand in for."""


@contextlib.contextmanager
def drawn_from(*seed: int) -> Iterator[None]:
    """Context in which the three generators that timm's augmentation uses are seeded; restores their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = [int(word) for word in np.random.SeedSequence(seed).generate_state(3)]
    random.seed(words[0])
    np.random.seed(words[1])  # timm draws from this one
    torch.default_generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def training_view(options: FinetuneOptions, shape: Architecture) -> Any:
    """timm's augmentation of one picture. Raises UserError for a --randaugment that timm does not know."""
    try:
        view = create_transform(
            options.input_size or shape.image_size,
            is_training=True,
            scale=options.crop_scale,
            color_jitter=COLOUR_JITTER,
            auto_augment=options.randaugment or None,
            interpolation=TRAINING_INTERPOLATION,
            mean=shape.mean,
            std=shape.std,
            re_prob=options.erasing or 0.0,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError, IndexError) as error:  # timm asserts what it knows
        if not options.randaugment:
            raise
        cure = "give one such as rand-m9-mstd0.5-inc1"
        raise UserError(f"--randaugment {options.randaugment}: timm has no such ({first_line(error)}), {cure}") from error
    for operation in operations_of(view):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = posterized
    return view


def operations_of(view: Any) -> Iterator[Any]:
    """The operations that timm's RandAugment or AutoAugment draws from, if there is one."""
    for part in view.transforms:
        yield from getattr(part, "ops", ())
        for several in getattr(part, "policy", ()):
            yield from several


def posterized(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keeps the highest bits of each channel; black with 0 bits, timm's strongest, which Pillow refuses since version 13."""
    if bits >= BITS:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def picture(pixels: Pixels) -> Image.Image:
    """Pixels as the picture that timm's augmentation takes."""
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels * 255 + 0.5).clip(0, 255).astype(np.uint8))


def sampler_of(images: int, repeats: int) -> RepeatAugSampler:
    """Every image `repeats` times in a row, dealt out to the processes; cut to an epoch's length."""
    return RepeatAugSampler(range(images), distributed.world_size(), distributed.rank(), num_repeats=repeats)


def epoch_of(images: int, repeats: int) -> int:
    """Draws in an epoch of so many images, over all processes; repeated augmentation rounds them down to a multiple of 256."""
    return len(sampler_of(images, repeats)) * distributed.world_size() if repeats > 1 else images


def steps_in(images: int, options: FinetuneOptions) -> int:
    """Whole steps in such an epoch."""
    return epoch_of(images, options.repeats) // options.batch_size


class StepDataset(Dataset[Batch]):
    """Batches by their number: `accumulate` of them make a step of this process."""

    def __init__(self, images: Images, classes: int, shape: Architecture, options: FinetuneOptions, most_bad: int) -> None:
        """Raises UserError where the processes cannot share a step, or the images are fewer than one."""
        self.images, self.classes, self.most_bad = images, classes, most_bad
        self.seed, self.repeats, self.smoothing, self.accumulate = (
            options.seed,
            options.repeats,
            options.smoothing,
            options.accumulate,
        )
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.batch_size, rest = divmod(options.batch_size, self.world_size * options.accumulate)
        if rest or not self.batch_size:
            raise UserError(
                f"--batch-size {options.batch_size} cannot be shared by {self.world_size} processes in {options.accumulate} parts"
            )
        if (options.mixup or options.cutmix) and self.batch_size % 2:
            raise UserError(f"mixup needs an even number of images in a forward, not {self.batch_size}: change --batch-size")
        self.steps_per_epoch = steps_in(len(images), options)
        if not self.steps_per_epoch:
            few = f"{images.name}: {len(images)} images, fewer than one step of {options.batch_size}"
            raise UserError(f"{few}: lower --batch-size (and --lr with it)")
        self._view = training_view(options, shape)
        mixes = {"mixup_alpha": options.mixup, "cutmix_alpha": options.cutmix}
        mixing = bool(options.mixup or options.cutmix)
        self._mix = Mixup(**mixes, label_smoothing=options.smoothing, num_classes=classes) if mixing else None
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))

    def order(self, epoch: int) -> Int[np.ndarray, " n"]:
        """The images of an epoch that are this process's, one batch after the other."""
        if self.repeats > 1:
            sampler = sampler_of(len(self.images), self.repeats)
            sampler.set_epoch(epoch + (self.seed << 20))
            return np.fromiter(sampler, dtype=int)
        whole = self.images.order(np.random.default_rng([self.seed, ORDER, epoch]))
        return whole[: len(whole) // self.world_size * self.world_size].reshape(-1, self.world_size)[:, self.rank]

    def chosen(self, number: int) -> Int[np.ndarray, " b"]:
        """The images of a batch."""
        epoch, position = divmod(number, self.steps_per_epoch * self.accumulate)
        if self._order[0] != epoch:
            self._order = epoch, self.order(epoch)
        return self._order[1][position * self.batch_size : (position + 1) * self.batch_size]

    def __getitem__(self, number: int) -> Batch:
        bad: list[Bad] = []
        with drawn_from(self.seed, CHANGES, number, self.rank):
            found = [self._picture(int(index), bad) for index in self.chosen(number)]
            images = torch.stack([self._view(one) for one, _ in found])
            labels = torch.tensor([label for _, label in found])
            if self._mix is None:
                return Batch(images, mixup_target(labels, self.classes, smoothing=self.smoothing), bad)
            images, targets = self._mix(images, labels)
            return Batch(images, targets, bad)

    def _picture(self, index: int, bad: list[Bad]) -> tuple[Image.Image, int]:
        """The image, or the next good one, and its class. Raises WorkError when too many are bad."""
        assert self.images.labels is not None
        for _ in range(self.most_bad + 1):
            try:
                return picture(self.images[index]), int(self.images.labels[index])
            except BadImage as error:
                bad.append(Bad(index, self.images.where(index), str(error)))
                index = (index + 1) % len(self.images)
        raise WorkError(too_many(bad, self.most_bad))


def workers(options: FinetuneOptions) -> int:
    """Worker processes that help more than they take from the training's own threads."""
    return default_workers() if options.workers is None else options.workers
