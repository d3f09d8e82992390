"""The linear probe's options, its defaults and the choice of a learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from checkpoints.cli import UserError
from pretrain.engine import distributed
from pretrain.images.source import Images, Subset
from probes.linear import train as linear_train
from probes.linear.train import Trained
from probes.paper import protocols
from probes.shared import console
from probes.shared.labelled import division
from probes.shared.subject import Repeated

EPOCHS, BATCH = 100, 1024


HELD_OUT = 0.1
"""Share of the training images on which `--select val-split` chooses."""


@dataclass(frozen=True)
class LinearOptions(Repeated):
    """Train one linear layer on frozen features, for many learning rates at once (paper, Tables 1, 10, 12, 15, 20)."""

    batch_size: int = BATCH
    """Images a step, over all processes; the learning rates are for 256 and follow it."""
    mode: Literal["paper", "cached"] | None = None
    """`paper`: augmented crops, the backbone runs every epoch, in bfloat16. `cached`: it runs once (default for the sample)."""
    features: Literal["cls4", "cls+mean", "cls", "patches", "patches_norm"] | None = None
    """[CLS] of the last four blocks (default below ViT-B, and for Swin), or the last with the mean patch (ViT-B and larger); the
    last alone; or the mean patch alone, before the final norm (the paper's view of methods without a [CLS] loss, Tables 9 and 20)
    or after it (`patches_norm`)."""
    lr: tuple[float, ...] = protocols.GRID
    """Learning rates for batches of 256; all are trained at once."""
    epochs: int = EPOCHS
    """Passes over the training images."""
    select: Literal["test", "val-split"] = "test"
    """Images that choose learning rate and epoch: the test images, as in the paper, or a held-out tenth of the training ones."""


class Chosen(NamedTuple):
    """A head and what it reaches, in percent of the test images."""

    lr: float
    epoch: int
    top1: float
    top5: float


def default_mode(data: str) -> str:
    """The paper's, but for the embedded sample."""
    return "cached" if data == "sample" else "paper"


def check(options: LinearOptions) -> None:
    """Raise UserError for values without meaning."""
    if not options.lr or min(options.lr) <= 0:
        raise UserError("--lr must be greater than 0")
    if options.batch_size % distributed.world_size():
        raise UserError(f"--batch-size {options.batch_size} is not divisible by the {distributed.world_size()} processes")


def split(images: Images, options: LinearOptions) -> tuple[Images, Images]:
    """The training images and those on which `--select val-split` chooses, each class divided alike, no group on both sides."""
    generator = np.random.default_rng(options.seed)
    if options.group:
        learnt, chooser = division(images, options.group, options.seed, HELD_OUT)
        return Subset(images, learnt), Subset(images, chooser)
    if images.labels is None:
        drawn = generator.permutation(len(images))
        cut = math.ceil(HELD_OUT * len(images))
        return Subset(images, np.sort(drawn[cut:])), Subset(images, np.sort(drawn[:cut]))
    labels = np.asarray(images.labels)
    apart = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        numbers = generator.permutation(np.flatnonzero(labels == label))
        apart[numbers[: math.ceil(HELD_OUT * len(numbers))]] = len(numbers) > 1
    if not apart.any():
        raise UserError(f"{images.name} has no class of two images: --select val-split has nothing to keep apart")
    return Subset(images, np.flatnonzero(~apart)), Subset(images, np.flatnonzero(apart))


def about(settings: linear_train.Settings, lrs: Sequence[float], batch_size: int, trained: Trained) -> dict[str, Any]:
    """Protocol of a linear probe for its record; `lrs` are for batches of 256, `excluded_lr` those that did not stay finite."""
    selected_on = "test images" if settings.select == "test" else "a tenth of the training images"
    what = {"mode": settings.mode, "features": settings.kind, "epochs": settings.epochs, "batch_size": batch_size}
    excluded = [lrs[head] for head in trained.excluded]
    return what | {"lr": list(lrs), "excluded_lr": excluded, "selected_on": selected_on}


def say_excluded(trained: Trained, lrs: Sequence[float], what: str = "") -> None:
    """One line that names them, if there are any."""
    if trained.excluded:
        console.say(f"excluded, not finite: {what}lr {', '.join(f'{lrs[head]:g}' for head in trained.excluded)}")


def chosen(trained: Trained, lrs: Sequence[float], last: bool = False) -> Chosen:
    """The head and epoch that the choosing images like best (of the last epoch alone, if `last`), as the test images see it."""
    epoch, head = trained.place(last=last)
    top1, top5 = trained.test[epoch, :, head].tolist()
    return Chosen(lrs[head], epoch + 1, top1, top5)
