"""Segmentation by frozen patch tokens, without OpenMMLab: `python -m probes.segment --ckpt runs/sample`.

Whole images, in sliding windows, at the size of their label maps. `--head linear`: one linear layer on the normed patch tokens of
the last four blocks (paper App. C has four taps of twelve), its learning rate chosen on held-out training images, never on test
images. `--head knn`: each patch is classified by the nearest patches of the training images, as
`probes.knn` does for images. Mean intersection over union (mIoU) over the classes that occur in labels or predictions, as
MMSegmentation counts in `transfer`; 255 is void, and so is 0 unless `--background none` (`probes/shared/label_rule.py`).
"""

import sys
import time
from collections.abc import Sequence

from checkpoints import terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.models.measured import require
from probes.segment.data import look_through, num_classes, open_data, with_labels
from probes.segment.knn import by_neighbours
from probes.segment.linear import by_linear
from probes.segment.options import SegmentOptions
from probes.segment.scores import Measured
from probes.shared import label_maps
from probes.shared import record as results
from probes.shared.subject import Frozen, made_ready, open_frozen, untrained


def main(arguments: Sequence[str]) -> None:
    options = parse(SegmentOptions, arguments, prog="python -m probes.segment")
    began = time.perf_counter()
    subject = open_frozen(Frozen(ckpt=options.ckpt, key=options.key))
    require(subject.backbone, "patches")
    loaded, stride = subject.loaded, subject.backbone.shape.stride
    out = results.place(options.out, loaded, f"segment_{options.head}", options)
    data = open_data(options)
    if data.size % stride:
        raise UserError(f"--size {data.size} is not divisible by {stride}, the pixels of a token's side")
    made_ready(subject.backbone, data.size)
    in_maps = look_through(data, options.data)
    classes = num_classes(data, in_maps)
    terminal.say(label_maps.meaning(in_maps, data.rule))
    for part, one in in_maps.items():
        terminal.say(label_maps.line(part, one, classes, data.names))
    data = data._replace(train=with_labels(data.train, in_maps["training"]), val=with_labels(data.val, in_maps["validation"]))
    measure = by_linear if options.head == "linear" else by_neighbours
    mine = measure(subject.backbone, data, options, classes)
    _say("this checkpoint", mine, options)
    record = mine.confusion.metrics() | {f"held_out_miou_{name.replace(' ', '_')}": value for name, value in mine.tried.items()}
    if options.baseline:
        fresh = measure(untrained(subject, options.seed).backbone, data, options, classes)
        _say("the same, untrained", fresh, options)
        record["untrained_miou"] = fresh.confusion.metrics()["miou"]
    flag, settings = ("lr", options.lr) if options.head == "linear" else ("k", options.k)
    results.write(
        out,
        probe="segment",
        table="T6b_dense_base",
        loaded=loaded,
        data={"root": options.data, "train_images": len(data.train.pixels), "val_images": len(data.val.pixels)},
        protocol={
            "head": options.head,
            "size": data.size,
            "epochs": options.epochs,
            "lr": list(options.lr),
            "k": list(options.k),
            f"{flag}_chosen_on": f"{options.held_out:g} % of the training images" if len(settings) > 1 else "one value",
            "chosen": mine.setting,
            "tested_on": "whole images by sliding windows",
            "key": options.key,
            "background": options.background,
            "ignore": list(options.ignore),
            "held_out": options.held_out,
            "void_labels": data.rule.void,
            "classes": classes,
        },
        metrics=record,
        seconds=time.perf_counter() - began,
        device=subject.device.type,
    )


def _say(name: str, found: Measured, options: SegmentOptions) -> None:
    numbers = found.confusion.metrics()
    tried = ", ".join(f"{setting}: {value:.1f}" for setting, value in found.tried.items())
    held = f"; mIoU on held-out training images: {tried}" if tried else ""
    line = f"{name}: mIoU {numbers['miou']:.1f}, mAcc {numbers['macc']:.1f}, aAcc {numbers['aacc']:.1f}"
    terminal.Console(soft_wrap=True).print(f"{line} ({options.head}, {found.setting}{held})")


if __name__ == "__main__":
    sys.exit(run_command(main))
