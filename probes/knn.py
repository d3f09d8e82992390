"""k-NN classification on frozen features, the paper's first number: `python -m probes.knn --ckpt runs/sample`.

Protocol of Table 1: last [CLS] of the teacher, length one; the k nearest of the training images by dot product vote with
exp(similarity / 0.07); k is 10, 20, 100 and 200, the best of them is the one reported; resize 256, centre crop 224,
bicubic, float32.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from checkpoints.command import UserError, parse, run_command
from pretrain import neighbours
from pretrain.augment import evaluation_resize
from pretrain.backbone import Backbone, Loaded, load_backbone, make
from pretrain.images import open_images
from pretrain.sources import Images, aligned, subset
from probes import results


@dataclass(frozen=True)
class Options:
    """Classify images by their nearest neighbours among training images (paper, Table 1)."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME (default: the newest run)."""
    data: str = "sample"
    """`sample`, or a folder with parts train and val (or test): sub-folders of class folders, or parquet files."""
    val: str | None = None
    """The test images where --data has no such part."""
    key: Literal["teacher", "student"] = "teacher"
    """Which network (the published IN-22K numbers are the student's)."""
    k: tuple[int, ...] = neighbours.KS
    """Numbers of neighbours."""
    temperature: float = neighbours.TEMPERATURE
    """Of the votes."""
    crop: int | None = None
    """Pixels of the centre crop (default: what the checkpoint was trained on)."""
    resize: int | None = None
    """Pixels of the shorter side before the crop (default: crop x 256 / 224; the crop itself below 160)."""
    bank: int | None = None
    """Use only this many training images, drawn from --seed."""
    baselines: bool = False
    """Also measure raw pixels and the same backbone untrained."""
    seed: int = 0
    """Of --bank and of the untrained backbone."""
    batch_size: int = 256
    """Images a forward."""
    out: Path | None = None
    """The record (default: results/knn.json beside the checkpoint)."""


class Measured(NamedTuple):
    """Percent by k."""

    top1: dict[int, float]
    top5: dict[int, float]

    def best(self) -> tuple[int, float]:
        """The k with the highest top-1, and that."""
        k = max(self.top1, key=self.top1.__getitem__)
        return k, self.top1[k]


def measure(bank: Tensor, queries: Tensor, bank_labels: Tensor, labels: Tensor, options: Options) -> Measured:
    """Accuracies of features [t, d] and [q, d] with labels [t] and [q]."""
    classes = int(max(bank_labels.max(), labels.max())) + 1
    answers = neighbours.vote(queries, bank, bank_labels, classes, options.k, options.temperature)
    return Measured(*({k: neighbours.accuracy(a, labels, top) for k, a in answers.items()} for top in (1, 5)))


def open_both(options: Options, channels: int) -> tuple[Images, Images]:
    """Training and test images. Raises UserError where labels are missing or the classes of the two differ."""
    bank = open_images(options.data, "train", channels)
    queries = open_images(options.val, None, channels) if options.val else open_images(options.data, "val", channels)
    for images in (bank, queries):
        if images.labels is None:
            raise UserError(f"{images.name} has no labels: k-NN needs class sub-folders, or a label column")
    queries = aligned(queries, bank)
    return (subset(bank, options.bank, options.seed) if options.bank else bank), queries


def check(options: Options) -> None:
    """Raise UserError for values without meaning."""
    if not options.k or min(options.k) < 1:
        raise UserError("--k must be 1 or more")
    if options.temperature <= 0:
        raise UserError("--temperature must be greater than 0")
    if options.bank is not None and options.bank < 1:
        raise UserError("--bank must be 1 or more")


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, arguments, prog="python -m probes.knn")
    check(options)
    began = time.perf_counter()
    loaded = load_backbone(options.ckpt, key=options.key)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = loaded.backbone.to(device)
    crop = options.crop or backbone.shape.image_size
    resize = options.resize or evaluation_resize(crop)
    if crop % backbone.shape.patch_size or resize < crop:
        raise UserError(
            f"--crop {crop} must be divisible by the patch size {backbone.shape.patch_size} and at most --resize {resize}"
        )
    bank, queries = open_both(options, backbone.shape.channels)
    labels = torch.as_tensor(bank.labels), torch.as_tensor(queries.labels)

    def of_backbone(network: Backbone) -> Measured:
        size = {"resize": resize, "crop": crop, "batch_size": options.batch_size}
        known, asked = neighbours.features(network, bank, **size), neighbours.features(network, queries, **size)
        return measure(known, asked, *labels, options)

    rows = {"this checkpoint": of_backbone(backbone)}
    if options.baselines:
        torch.manual_seed(options.seed)
        rows["the same, untrained"] = of_backbone(make(backbone.shape, maskable=False).to(device).eval())
        spread = backbone.shape.mean, backbone.shape.std
        known, asked = (neighbours.pixels(part, *spread, resize=resize, crop=crop) for part in (bank, queries))
        rows["raw pixels"] = measure(known, asked, *labels, options)
    seconds = time.perf_counter() - began
    show(rows, bank, queries, loaded, seconds)
    out = options.out or results.default_path(loaded, "knn")
    results.write(
        out,
        probe="knn",
        table="T1_knn_linear_in1k",
        loaded=loaded,
        data={"train": bank.name, "val": queries.name, "train_images": len(bank), "val_images": len(queries)},
        protocol={"k": list(options.k), "temperature": options.temperature, "resize": resize, "crop": crop, "key": options.key},
        metrics=metrics(rows),
        seconds=seconds,
        device=device.type,
    )
    print(f"record written to {out}")


def metrics(rows: dict[str, Measured]) -> dict[str, float]:
    """The record's numbers: `top1`, `top5` of the best k, each k's own, and the baselines' best."""
    mine = rows["this checkpoint"]
    k, best = mine.best()
    numbers = {"top1": best, "top5": mine.top5[k], "best_k": float(k)}
    numbers |= {f"top1_k{k}": value for k, value in mine.top1.items()} | {f"top5_k{k}": v for k, v in mine.top5.items()}
    names = {"the same, untrained": "untrained_top1", "raw pixels": "pixels_top1"}
    return numbers | {names[name]: row.best()[1] for name, row in rows.items() if name in names}


def show(rows: dict[str, Measured], bank: Images, queries: Images, loaded: Loaded, seconds: float) -> None:
    """A table: top-1 by k, and the best."""
    table = Table(title=f"k-NN top-1 % on {queries.name}, bank of {len(bank)}: {loaded.path}", title_justify="left")
    table.add_column("features")
    for k in next(iter(rows.values())).top1:
        table.add_column(f"k={k}", justify="right")
    table.add_column("best", justify="right")
    for name, row in rows.items():
        k, best = row.best()
        table.add_row(name, *(f"{value:.1f}" for value in row.top1.values()), f"{best:.1f} (k={k})")
    console = Console(highlight=False)
    console.print(table, markup=False)
    console.print(
        f"top-5 % of this checkpoint: {rows['this checkpoint'].top5[rows['this checkpoint'].best()[0]]:.1f}   {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
