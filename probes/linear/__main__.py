"""Linear probing, 45 learning rates at once: `python -m probes.linear --ckpt runs/sample`.

Protocol of Table 1: SGD with momentum 0.9 and no weight decay, batches of 1024, 100 epochs, learning rates 1 to 9 times
1e-4 to 1, times batch / 256, by the cosine of the epoch to zero; random resized crops and flips (`--mode paper`: the backbone
runs in every epoch) or centre crops (`--mode cached`: it runs once, minutes instead of days). The published number is the
best of the grid and of all epochs **on the test images**; here that number (`top1`), the last epoch's best (`top1_last`)
and, with `--select val-split`, an honest one, chosen on training images that were kept apart, are told from each other.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from checkpoints.cli import parse, run_command
from probes.features.cache import array_of, extract, needed
from probes.linear import train as linear_train
from probes.linear.head import default_features
from probes.linear.protocol import Chosen, LinearOptions, about, check, chosen, default_mode, say_excluded, split
from probes.linear.train import Trained
from probes.shared import console, record
from probes.shared.subject import Parts, Viewed, about_data, about_view, labelled_parts, open_subject, record_path

SHOWN = 8
"""Learning rates in the printed table."""


def main(arguments: Sequence[str]) -> None:
    options = parse(LinearOptions, arguments, prog="python -m probes.linear")
    with open_subject(options) as subject:
        check(options)
        out = record_path(options, subject, "linear")
        parts = labelled_parts(options, subject.loaded.backbone.shape)
        measure(subject, parts, options, out)


def measure(subject: Viewed, parts: Parts, options: LinearOptions, out: Path) -> None:
    """Train, say what came of it, keep the best head, write the record; what an earlier call has left is continued."""
    began = time.perf_counter()
    train, chooser = parts if options.select == "test" else split(parts.train, options)
    images = linear_train.Division(train, chooser, parts.val)
    mode = options.mode or default_mode(options.data)
    pooled = options.embeddings is not None
    kind = "cls" if pooled else array_of(options.features or default_features(subject.backbone))
    settings = linear_train.Settings(
        tuple(rate * options.batch_size / 256 for rate in options.lr), options.epochs, mode, kind, options.select
    )
    if mode == "cached" and images.train is not parts.train:  # once for all ways to keep a tenth apart
        extract(subject.loaded.backbone, parts.train, subject.view, options, needed(kind, subject.backbone))
    trained = linear_train.train(subject, images, settings, options, out.with_suffix(".state.pt"))
    best, last = chosen(trained, options.lr), chosen(trained, options.lr, last=True)
    seconds = time.perf_counter() - began
    tell(trained, best, last, options, parts, subject, seconds)
    protocol = about_view(options, subject.view) | about(settings, options.lr, options.batch_size, trained)
    counts = {"train_images": len(images.train), "val_images": len(parts.val)}

    def keep_head(path: Path) -> None:
        linear_train.keep(path, trained, subject, settings, images.train, protocol | counts)

    record.write(
        out,
        probe="linear",
        table="T1_knn_linear_in1k",
        loaded=subject.loaded,
        data=about_data(parts),
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
        beside={"_head.safetensors": keep_head},
    )


def tell(
    trained: Trained, best: Chosen, last: Chosen, options: LinearOptions, parts: Parts, subject: Viewed, seconds: float
) -> None:
    """A table of the best learning rates, and the two numbers."""
    finite = [head for head in range(len(options.lr)) if head not in trained.excluded]
    order = sorted(finite, key=lambda head: -trained.test[:, 0, head].max())[:SHOWN]
    rows = [
        [f"{options.lr[head]:g}", f"{trained.test[-1, 0, head]:.1f}", f"{trained.test[:, 0, head].max():.1f}"]
        for head in sorted(order)
    ]
    title = f"linear top-1 % on {parts.val.name}: {subject.loaded.path}"
    console.table(title, ["learning rate", "last epoch", "best epoch"], rows)
    say_excluded(trained, options.lr)
    on = "the test images themselves" if options.select == "test" else "training images kept apart"
    console.say(
        f"best: {best.top1:.1f} (top-5 {best.top5:.1f}; lr {best.lr:g}, epoch {best.epoch}; chosen on {on})   "
        f"last epoch: {last.top1:.1f} (lr {last.lr:g})   {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
