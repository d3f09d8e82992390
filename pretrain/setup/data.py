"""What a run reads: its images, and what they add to its plan; the data of its k-NN curve."""

import contextlib
from typing import NamedTuple

import numpy as np
import torch

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain.batches.dataset import StepDataset
from pretrain.engine import bad_images, distributed
from pretrain.evaluate import online_knn as curve
from pretrain.images.decode import BadImage
from pretrain.images.identity import identity
from pretrain.images.open import open_images
from pretrain.images.source import Images, spread_of
from pretrain.method.schedule import Schedule
from pretrain.setup.plan import Plan


class Data(NamedTuple):
    """A run's images, and what only they decide."""

    images: Images
    shape: Architecture
    """The plan's, with the mean and standard deviation that these images are normalised by."""
    steps: StepDataset
    """The batches made of them."""
    schedule: Schedule


def open_data(plan: Plan, device: torch.device) -> Data:
    """Open the images. Raises UserError when there are fewer than one step's, or what is asked for is not there."""
    options, chosen = plan.options, plan.options.images
    images = open_images(chosen.data, "train", chosen.channels, chosen.value_range)
    batch = plan.batch_size * distributed.world_size()
    if len(images) < batch:
        raise UserError(f"{images.name} has {len(images)} images, fewer than one batch of {batch}: lower --batch-size-per-gpu")
    shape = plan.architecture
    if chosen.channels != len(shape.mean):
        shape = shape._replace(**spread_of(images)._asdict())
    steps = StepDataset(
        images,
        plan.views,
        plan.masks,
        plan.grid,
        options.optimisation.batch_size_per_gpu,
        options.run.seed,
        mean=shape.mean,
        std=shape.std,
        accumulate=options.optimisation.accumulate,
        most_bad=bad_images.most_bad(chosen.max_bad, len(images)),
        make_crops=device.type == "cpu",
        local_grid=plan.local_grid,
    )
    return Data(images, shape, steps, plan.schedule(steps.steps_per_epoch, distributed.world_size()))


def identity_of(images: Images) -> dict[str, str]:
    """The identity of a run's images for its checkpoint (`pretrain.images.identity`), computed by the main process for all."""
    local = [identity(images)._asdict() if distributed.is_main() else None]
    return next(values for values in distributed.gathered(local) if values is not None)


LOOKED_AT, DARK = 8, 32
"""Number of images checked before a run starts; the brightest level of 255 below which they count as nearly black."""


def too_dark(images: Images) -> list[str]:
    """A remark on images of three channels that are nearly black: the fixed mean and spread leave them without contrast."""
    if images.channels != 3 or not distributed.is_main():
        return []
    brightest = []
    for index in np.linspace(0, len(images) - 1, LOOKED_AT).astype(int):
        with contextlib.suppress(BadImage):  # it will be named when its turn comes
            pixels = images[int(index)]
            brightest.append(float(pixels.max()) * (1 if pixels.dtype == np.uint8 else 255))
    if not brightest or max(brightest) >= DARK:
        return []
    return [
        f"the images are nearly black (brightest value {max(brightest):.0f} of 255), as 12-bit values in 16-bit files are: "
        "--channels 1 reads grey ones as they are stored and measures their spread; brighten others first"
    ]


def no_curve(plan: Plan, images: Images) -> list[str]:
    """A remark where the k-NN curve would be 100 % whatever is learnt, and so is left out."""
    knn = plan.options.knn
    if knn.knn_data is not None or not knn.knn_every or images.labels is None:
        return []
    if len(np.unique(images.labels[images.labels >= 0])) > 1:
        return []
    return [f"{images.name} has one class only: there is no k-NN curve"]


def online_knn(plan: Plan, images: Images) -> curve.OnlineKnn | None:
    """The k-NN curve's data. Raises UserError for --knn-data without labels."""
    knn, chosen, crop = plan.options.knn, plan.options.images, plan.options.crops.global_crops_size
    workers = plan.workers if torch.cuda.is_available() else 0  # a CPU that trains has no core to spare
    if knn.knn_data is None:
        return curve.online_knn(chosen.data, images, crop, workers)
    known = open_images(knn.knn_data, "train", chosen.channels, chosen.value_range)
    if known.labels is None:
        raise UserError(f"--knn-data {knn.knn_data} has no labels")
    if len(np.unique(known.labels[known.labels >= 0])) < 2:
        raise UserError(f"--knn-data {knn.knn_data} has one class only: give images of two classes or more")
    return curve.online_knn(knn.knn_data, known, crop, workers)
