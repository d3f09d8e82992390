"""Linear probing, 45 learning rates at once: `python -m probes.linear --ckpt runs/sample`.

Protocol of Table 1: SGD with momentum 0.9 and no weight decay, batches of 1024, 100 epochs, learning rates 1 to 9 times
1e-4 to 1, times batch / 256, by the cosine of the epoch to zero; random resized crops and flips (`--mode paper`: the backbone
runs in every epoch) or centre crops (`--mode cached`: it runs once, minutes instead of days). The published number is the
best of the grid and of all epochs **on the test images**; here that number (`top1`), the last epoch's best (`top1_last`)
and, with `--select val-split`, an honest one, chosen on training images that were kept apart, are told from each other.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from checkpoints.command import UserError, at_least, parse, run_command
from pretrain import distributed
from pretrain.shape import Shape
from pretrain.sources import Images, Subset
from probes import common, linear_run, protocols, results, show
from probes.common import Common, Parts, Subject
from probes.features import array_of
from probes.linear_run import Trained

EPOCHS, BATCH = 100, 1024
SHOWN = 8
"""Learning rates in the printed table."""
HELD_OUT = 0.1
"""Share of the training images on which `--select val-split` chooses."""


@dataclass(frozen=True)
class Options(Common):
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
    """What chooses learning rate and epoch: the test images, as in the paper, or a tenth of the training images kept apart."""


class Chosen(NamedTuple):
    """A head and what it reaches, in percent of the test images."""

    lr: float
    epoch: int
    top1: float
    top5: float


def default_features(shape: Shape) -> str:
    """What the paper joins for this architecture."""
    return "cls+mean" if shape.kind != "swin" and shape.embed_dim >= 768 else "cls4"


def default_mode(data: str) -> str:
    """The paper's, but for the embedded sample."""
    return "cached" if data == "sample" else "paper"


def check(options: Options) -> None:
    """Raise UserError for values without meaning."""
    if not options.lr or min(options.lr) <= 0:
        raise UserError("--lr must be greater than 0")
    at_least(1, options, "epochs")
    if options.batch_size % distributed.world_size():
        raise UserError(f"--batch-size {options.batch_size} is not divisible by the {distributed.world_size()} processes")


def split(images: Images, options: Options) -> tuple[Images, Images]:
    """The training images and those on which `--select val-split` chooses, each class divided alike."""
    labels = np.asarray(images.labels)
    generator = np.random.default_rng(options.seed)
    apart = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        numbers = generator.permutation(np.flatnonzero(labels == label))
        apart[numbers[: math.ceil(HELD_OUT * len(numbers))]] = len(numbers) > 1
    if not apart.any():
        raise UserError(f"{images.name} has no class of two images: --select val-split has nothing to keep apart")
    return Subset(images, np.flatnonzero(~apart)), Subset(images, np.flatnonzero(apart))


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, prog="python -m probes.linear")
    with common.subject(options) as subject:
        check(options)
        parts = common.labelled_parts(options, subject.loaded.backbone.shape)
        measure(subject, parts, options)


def measure(subject: Subject, parts: Parts, options: Options) -> None:
    """Train, say what came of it, keep the best head, write the record; what an earlier call has left is continued."""
    began = time.perf_counter()
    train, chooser = parts if options.select == "test" else split(parts.train, options)
    images = linear_run.Division(train, chooser, parts.val)
    mode = options.mode or default_mode(options.data)
    kind = array_of(options.features or default_features(subject.loaded.backbone.shape))
    out = common.record_path(options, subject, "linear")
    settings = linear_run.Settings(
        tuple(rate * options.batch_size / 256 for rate in options.lr), options.epochs, mode, kind, options.select
    )
    trained = linear_run.train(subject, images, settings, options, out.with_suffix(".state.pt"))
    best, last = chosen(trained, options.lr), chosen(trained, options.lr, last=True)
    seconds = time.perf_counter() - began
    tell(trained, best, last, options, parts, subject, seconds)
    protocol = common.about_view(options, subject.view) | about(settings, options.lr, options.batch_size, trained)
    if distributed.is_main():
        counts = {"train_images": len(images.train), "val_images": len(parts.val)}
        head = out.with_name(f"{out.stem}_head.safetensors")
        linear_run.keep(head, trained, subject, settings, images.train, protocol | counts)
    results.write(
        out,
        probe="linear",
        table="T1_knn_linear_in1k",
        loaded=subject.loaded,
        data=common.about_data(parts),
        protocol=protocol,
        metrics={
            "top1": best.top1,
            "top5": best.top5,
            "best_lr": best.lr,
            "best_epoch": float(best.epoch),
            "top1_last": last.top1,
            "lr_last": last.lr,
        },
        seconds=seconds,
        device=subject.device.type,
    )


def about(settings: linear_run.Settings, lrs: Sequence[float], batch_size: int, trained: Trained) -> dict[str, Any]:
    """What a record says of a linear probe; `lrs` are for batches of 256, `excluded_lr` those that did not stay finite."""
    selected_on = "test images" if settings.select == "test" else "a tenth of the training images"
    what = {"mode": settings.mode, "features": settings.kind, "epochs": settings.epochs, "batch_size": batch_size}
    excluded = [lrs[head] for head in trained.excluded]
    return what | {"lr": list(lrs), "excluded_lr": excluded, "selected_on": selected_on}


def say_excluded(trained: Trained, lrs: Sequence[float], what: str = "") -> None:
    """One line that names them, if there are any."""
    if trained.excluded:
        show.say(f"excluded, not finite: {what}lr {', '.join(f'{lrs[head]:g}' for head in trained.excluded)}")


def chosen(trained: Trained, lrs: Sequence[float], last: bool = False) -> Chosen:
    """The head and epoch that the choosing images like best (of the last epoch alone, if `last`), as the test images see it."""
    epoch, head = trained.place(last=last)
    top1, top5 = trained.test[epoch, :, head].tolist()
    return Chosen(lrs[head], epoch + 1, top1, top5)


def tell(trained: Trained, best: Chosen, last: Chosen, options: Options, parts: Parts, subject: Subject, seconds: float) -> None:
    """A table of the best learning rates, and the two numbers."""
    finite = [head for head in range(len(options.lr)) if head not in trained.excluded]
    order = sorted(finite, key=lambda head: -trained.test[:, 0, head].max())[:SHOWN]
    rows = [
        [f"{options.lr[head]:g}", f"{trained.test[-1, 0, head]:.1f}", f"{trained.test[:, 0, head].max():.1f}"]
        for head in sorted(order)
    ]
    title = f"linear top-1 % on {parts.val.name}: {subject.loaded.path}"
    show.table(title, ["learning rate", "last epoch", "best epoch"], rows)
    say_excluded(trained, options.lr)
    on = "the test images themselves" if options.select == "test" else "training images kept apart"
    show.say(
        f"best: {best.top1:.1f} (top-5 {best.top5:.1f}; lr {best.lr:g}, epoch {best.epoch}; chosen on {on})   "
        f"last epoch: {last.top1:.1f} (lr {last.lr:g})   {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
