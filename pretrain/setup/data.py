"""What a run needs before its first step: its images, the data of its k-NN curve, compiled networks."""

import contextlib
import os
from typing import NamedTuple

import numpy as np
import torch

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain import config as options
from pretrain.batches.dataset import StepDataset
from pretrain.config import Config
from pretrain.engine import bad_images, distributed
from pretrain.evaluate import online_knn as curve
from pretrain.images.decode import BadImage
from pretrain.images.identity import identity
from pretrain.images.open import open_images
from pretrain.images.source import Images, spread_of
from pretrain.method.ibot import Student, Teacher
from pretrain.setup.networks import compile_blocks


class Data(NamedTuple):
    """A run's images, the backbone's shape that they ask for, and the batches made of them."""

    images: Images
    shape: Architecture
    steps: StepDataset


def data(config: Config, device: torch.device) -> Data:
    """Open the images. Raises UserError when there are fewer than one step's, or what is asked for is not there."""
    if config.decode == "gpu" and device.type == "cpu":
        raise UserError("--decode gpu needs a GPU: leave it out")
    images = open_images(config.data, "train", config.channels, config.value_range)
    batch = config.batch_size_per_gpu * distributed.world_size() * config.accumulate
    if len(images) < batch:
        raise UserError(f"{images.name} has {len(images)} images, fewer than one batch of {batch}: lower --batch-size-per-gpu")
    shape = options.shape(config)
    side = config.global_crops_size // shape.stride
    if config.channels != len(shape.mean):
        shape = shape._replace(**spread_of(images)._asdict())
    steps = StepDataset(
        images,
        options.views(config),
        options.masks(config),
        (side, side),
        config.batch_size_per_gpu,
        config.seed,
        mean=shape.mean,
        std=shape.std,
        accumulate=config.accumulate,
        most_bad=bad_images.most_bad(config.max_bad, len(images)),
        make_crops=device.type == "cpu",
        device_decodes=config.decode == "gpu",
        local_grid=options.local_grid(config),
    )
    return Data(images, shape, steps)


def identity_of(images: Images) -> dict[str, str]:
    """What a checkpoint remembers of a run's images (`pretrain.images.identity`); the main process looks for all."""
    found = [identity(images)._asdict() if distributed.is_main() else None]
    return next(one for one in distributed.gathered(found) if one is not None)


LOOKED_AT, DARK = 8, 32
"""Images that are looked at before a run begins; levels of 255 that none of them is brighter than, if something is wrong."""


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


def no_curve(config: Config, images: Images) -> list[str]:
    """A remark where the k-NN curve would be 100 % whatever is learnt, and so is left out."""
    if config.knn_data is not None or not config.knn_every or images.labels is None or len(np.unique(images.labels)) > 1:
        return []
    return [f"{images.name} has one class only: there is no k-NN curve"]


def without_effect(config: Config) -> list[str]:
    """A remark for each option that changes nothing in this run, and for what does not come about before its end."""
    remarks = []
    if config.shard and distributed.world_size() == 1:
        remarks.append("--shard spreads weights over processes, and there is one: it has no effect")
    if config.shared_head and config.patch_out_dim not in (config.out_dim, Config.patch_out_dim):
        remarks.append(
            f"--shared-head has the --out-dim {config.out_dim} prototypes for patches too: "
            f"--patch-out-dim {config.patch_out_dim} has no effect"
        )
    if config.window != Config.window and not config.arch.startswith("swin"):
        remarks.append(f"--window {config.window} is a Swin's: {config.arch} has none, it has no effect")
    if not config.init_heads and config.init_from is None:
        remarks.append("--init-heads false says what not to take from --init-from, which is not given: it has no effect")
    if config.steps is None and config.warmup_epochs >= config.epochs:
        remarks.append(f"--warmup-epochs {config.warmup_epochs} is not over before --epochs {config.epochs}: --lr is not reached")
    if config.steps is None and config.use_masked_im_modeling and config.pred_start_epoch >= config.epochs:
        remarks.append(f"--pred-start-epoch {config.pred_start_epoch} is not reached in --epochs {config.epochs}: no masks")
    return remarks


def workers(config: Config) -> int:
    """Worker processes that help more than they take from the training's own threads."""
    return max(1, min(10, (os.cpu_count() or 2) - 1)) if config.workers is None else config.workers


def online_knn(config: Config, images: Images) -> curve.OnlineKnn | None:
    """The k-NN curve's data. Raises UserError for --knn-data without labels."""
    if config.knn_data is None:
        return curve.online_knn(config.data, images, config.global_crops_size)
    known = open_images(config.knn_data, "train", config.channels, config.value_range)
    if known.labels is None:
        raise UserError(f"--knn-data {config.knn_data} has no labels")
    if len(np.unique(known.labels)) < 2:
        raise UserError(f"--knn-data {config.knn_data} has one class only: give images of two classes or more")
    return curve.online_knn(config.knn_data, known, config.global_crops_size)


def decides_late(config: Config, device: torch.device) -> bool:
    """Whether the device itself can refuse a step, so that none waits for its verdict (on a CPU nothing is late)."""
    return device.type == "cuda" and config.optimizer == "adamw" and not config.shard


def some_unused(config: Config) -> bool:
    """Whether there are steps without masks, in which the mask token has no gradient, or the layers of patches have none."""
    return config.pred_start_epoch > 0 or not config.use_masked_im_modeling or config.targets.startswith("dense")


def compile_networks(config: Config, device: torch.device, student: Student, teacher: Teacher) -> list[str]:
    """Compile the blocks of both if asked for, or on a GPU; what went wrong, if anything did."""
    if config.compile == "off" or (config.compile == "auto" and (device.type == "cpu" or config.shard)):
        return []
    kinds = ((config.global_crops_number, config.global_crops_size), (config.local_crops_number, config.local_crops_size))
    count, channels = config.batch_size_per_gpu, config.channels
    crops = [torch.zeros(views * count, channels, size, size, device=device) for views, size in kinds if views]
    remarks = (compile_blocks(network, samples) for network, samples in ((student, crops), (teacher, crops[:1])))
    return [remark for remark in remarks if remark]
