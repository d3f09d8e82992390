"""Segmentation by frozen patch tokens, without OpenMMLab: `python -m probes.segment --ckpt runs/sample`.

`--head linear`: one linear layer on the normed patch tokens of the last four blocks (paper App. C has four taps of twelve),
logits resized to the labels. `--head knn`: each patch is classified by the nearest patches of the training images, as
`probes.knn` does for images. Mean intersection over union (mIoU) over the classes that occur in labels or predictions, as
MMSegmentation counts in `transfer`; 255 is void, and so is 0 unless `--background none` (`probes/shared/label_rule.py`).

b images, n patches, d width of the features, k classes, s side of an image.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor, nn

from checkpoints import terminal
from checkpoints.cli import UserError, WorkError, parse, run_command
from pretrain.evaluate import finite, knn, views
from pretrain.models.backbone import Backbone
from pretrain.models.measured import require
from pretrain.sample import dense as sample_dense
from probes.shared import label_files, label_maps, label_rule
from probes.shared import record as results
from probes.shared.label_maps import Survey, stored
from probes.shared.label_rule import AS_ADE20K, NOTHING, Rule
from probes.shared.subject import Frozen, made_ready, open_frozen, untrained

FOLDERS = {"train": ("images/training", "annotations/training"), "val": ("images/validation", "annotations/validation")}
BLOCKS = 4
PATCHES_OF_AN_IMAGE = 64
"""Number of an image's patches in the bank of --head knn."""


@dataclass(frozen=True)
class SegmentOptions:
    """One number for dense features, in minutes: mIoU of a frozen backbone."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME, hf:OWNER/NAME, torchvision:NAME,
    python:FILE.py:FUNCTION (docs/backbones.md; default: the newest run)."""
    data: str = "sample"
    """`sample`, or a folder in ADE20K's layout: images/training, annotations/training, and the same with validation; pictures of
    any format, paired by name. classes.txt beside them: a name a line, or R G B NAME where label maps are in colours."""
    background: str | None = None
    """The label of pixels without a class, or `none`. Where it is 0, as in ADE20K (the default), label 1 is the first class, else
    label 0 is. It must be given where classes.txt or classes.json lists classes."""
    ignore: tuple[int, ...] = (NOTHING,)
    """Further void labels; 255 always is one."""
    head: Literal["linear", "knn"] = "linear"
    """Classifier of the patch tokens."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint."""
    size: int | None = None
    """Pixels of a side: the shorter side is resized to it, the centre is cut out (default: 128 for the sample, else 512)."""
    epochs: int = 10
    """linear: passes over the training images."""
    lr: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """linear: peak learning rates of AdamW (cosine to zero), a layer each; the best on the test images counts, all are said."""
    k: int = 20
    """knn: number of neighbours."""
    batch_size: int = 16
    """Images a step."""
    images: int | None = None
    """Use only so many training images."""
    baseline: bool = False
    """Also measure the same backbone untrained."""
    seed: int = 0
    """Seed of the head, the order of images and the untrained backbone."""
    out: Path | None = None
    """The record (default: in results/ beside the checkpoint, under a name of its own)."""


class Labelled(NamedTuple):
    """Images with label maps."""

    pixels: list[Path | np.ndarray]
    labels: list[Path | np.ndarray]


class Set(NamedTuple):
    """Both parts, the side that images are cut to, how labels are read, and the classes' names where the data has some."""

    train: Labelled
    val: Labelled
    size: int
    rule: Rule = Rule()
    names: tuple[str, ...] | None = None


def open_data(options: SegmentOptions) -> Set:
    """Raises UserError where something of the layout is missing."""
    if options.data == "sample":
        rule = label_rule.chosen(options.background, options.ignore, 0, None)
        return Set(_drawn("train", options), _drawn("val", options), options.size or sample_dense.SIZE, rule)
    root = Path(options.data)
    train, val = (_listed(root, part, options) for part in ("train", "val"))
    listed = label_rule.class_list(root)
    rule = label_rule.chosen(options.background, options.ignore, 0, listed)
    return Set(train, val, options.size or 512, rule, listed and listed.of_classes(rule))


def _drawn(part: str, options: SegmentOptions) -> Labelled:
    count = sample_dense.COUNTS[part]
    dense = [
        sample_dense.draw(part, number) for number in range(min(count, options.images or count) if part == "train" else count)
    ]
    return Labelled([one.picture.image for one in dense], [sample_dense.label_map(one) for one in dense])


def _listed(root: Path, part: str, options: SegmentOptions) -> Labelled:
    images, labels = (root / folder for folder in FOLDERS[part])
    found = label_files.pairs(images, labels)
    if not found.images and not found.missing:
        raise UserError(f"there are no images in {images}: give --data a folder in ADE20K's layout{found.unused}")
    if found.unused:
        terminal.say(f"{images}: {len(found.images)} images{found.unused}")
    if found.missing:
        raise UserError(f"{len(found.missing)} label maps are missing, the first is {labels / found.missing[0]}.png")
    most = options.images if part == "train" else None
    return Labelled([*found.images[:most]], [*found.labels[:most]])


def view(pixels: Path | np.ndarray, backbone: Backbone, size: int) -> Float[Tensor, "c s s"]:
    """An image as the probes see it, turned by its EXIF orientation as its label map is."""
    array = np.asarray(_turned(pixels).convert("RGB")) if isinstance(pixels, Path) else pixels
    return views.evaluation_view(array, size, size, mean=backbone.shape.mean, std=backbone.shape.std)


def _turned(path: Path) -> Image.Image:
    try:
        return ImageOps.exif_transpose(stored(path))
    except UserError:
        raise
    except Exception as error:  # broken EXIF makes Pillow raise almost anything
        raise UserError(f"{path} cannot be used (its EXIF: {type(error).__name__}): fetch it again") from error


def label_view(labels: Path | np.ndarray, size: int, rule: Rule = AS_ADE20K) -> Int[Tensor, "s s"]:
    """The label map in the image's view, by nearest neighbour; classes from 0, NOTHING for void."""
    image = Image.fromarray(label_maps.read(labels, rule.colours) if isinstance(labels, Path) else labels)
    wide, left, upper = views.evaluation_box(*image.size, size, size)
    array = np.asarray(image.resize(wide, Image.Resampling.NEAREST))[upper : upper + size, left : left + size]
    return torch.from_numpy(label_maps.numbered(array, rule).astype(np.int64))


def batches(
    part: Labelled, order: Sequence[int], backbone: Backbone, size: int, count: int, rule: Rule = AS_ADE20K
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [b, n, d] and labels [b, s, s], batch by batch. Raises WorkError naming an image whose are not finite."""
    device = next(backbone.parameters()).device
    for start in range(0, len(order), count):
        some = order[start : start + count]
        crops = torch.stack([view(part.pixels[number], backbone, size) for number in some]).to(device)
        labels = torch.stack([label_view(part.labels[number], size, rule) for number in some]).to(device)
        features = patch_features(backbone, crops)
        yield finite.checked(features, backbone, _named(part, some)), labels


def _named(part: Labelled, numbers: Sequence[int]) -> Callable[[int], str]:
    """The names of a batch's images by their rows."""

    def name(row: int) -> str:
        pixels = part.pixels[numbers[row]]
        return str(pixels) if isinstance(pixels, Path) else f"image {numbers[row]}"

    return name


@torch.no_grad()
def patch_features(backbone: Backbone, crops: Float[Tensor, "b c s s"]) -> Float[Tensor, "b n d"]:
    """Normed patch tokens of the last blocks side by side; Swin's last stage has fewer than four blocks of one width."""
    blocks = backbone.last_blocks(crops, BLOCKS)
    return torch.cat([tokens[:, 1:] for tokens in blocks if tokens.shape == blocks[-1].shape], dim=-1).float()


class Confusion:
    """Counts of pixels: rows are classes, columns what was said."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.long)

    def add(self, said: Int[Tensor, "b h w"], labels: Int[Tensor, "b h w"]) -> None:
        known = labels != NOTHING
        flat = labels[known].cpu() * len(self.counts) + said[known].cpu()
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts)

    def metrics(self) -> dict[str, float]:
        """Percent: `miou` over the classes that occur in labels or predictions, `macc` in labels, `aacc` over pixels.

        Raises WorkError where no pixel has a label.
        """
        right, is_there = self.counts.diag().double(), self.counts.sum(dim=1).double()
        union = is_there + self.counts.sum(dim=0) - right
        if not is_there.any():
            raise WorkError("no pixel of the validation images has a label: there is nothing to measure")
        iou, accuracy = (right / union)[union > 0], (right / is_there)[is_there > 0]
        aacc = right.sum() / is_there.sum()
        return {"miou": 100 * iou.mean().item(), "macc": 100 * accuracy.mean().item(), "aacc": 100 * aacc.item()}


def by_linear(backbone: Backbone, data: Set, options: SegmentOptions, classes: int) -> dict[str, Confusion]:
    """Train a linear layer for each learning rate on the same features, then count their predictions.

    Layers whose logits are not finite are left out. Raises WorkError where all are, or features are beyond float16.
    """
    torch.manual_seed(options.seed)
    device = next(backbone.parameters()).device
    cached = [(_halved(features), labels) for features, labels in _in_order(data, "train", backbone, options)]
    mean, spread = _scale(cached)
    heads = [nn.Linear(len(mean), classes).to(device) for _ in options.lr]
    groups = [{"params": head.parameters(), "lr": lr} for head, lr in zip(heads, options.lr, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(cached))

    def logits(head: nn.Linear, features: Tensor, size: int) -> Tensor:
        side = round(features.shape[1] ** 0.5)
        answers = head((features.float() - mean) / spread).transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(answers, size=(size, size), mode="bilinear", align_corners=False)

    if not any((labels != NOTHING).any() for _, labels in cached):
        raise WorkError("no pixel of the training images, cut to --size, has a label: there is nothing to learn")
    for _ in range(options.epochs):
        for number in torch.randperm(len(cached)).tolist():
            features, labels = cached[number]
            if not (labels != NOTHING).any():  # the mean over no pixel is not a number
                continue
            every = [F.cross_entropy(logits(head, features, data.size), labels, ignore_index=NOTHING) for head in heads]
            optimizer.zero_grad()
            torch.stack(every).sum().backward()
            optimizer.step()
            schedule.step()
    found, lost = {f"lr {lr:g}": Confusion(classes) for lr in options.lr}, set[str]()
    with torch.no_grad():
        for features, labels in _in_order(data, "val", backbone, options):
            for head, (name, confusion) in zip(heads, found.items(), strict=True):
                answers = logits(head, features, data.size)
                lost |= set() if answers.isfinite().all() else {name}
                confusion.add(answers.argmax(dim=1), labels)
    if lost:
        terminal.say(f"excluded, not finite: {', '.join(sorted(lost))}")
    if len(lost) == len(found):
        raise WorkError("no learning rate gave finite weights: give a smaller --lr")
    return {name: confusion for name, confusion in found.items() if name not in lost}


def _halved(features: Tensor) -> Tensor:
    halved = features.half()
    if not halved.isfinite().all():
        raise WorkError(
            f"patch features up to {features.abs().max():.3g} are beyond float16, in which they are held: give --head knn"
        )
    return halved


def _in_order(
    data: Set, which: Literal["train", "val"], backbone: Backbone, options: SegmentOptions
) -> Iterator[tuple[Tensor, Tensor]]:
    part: Labelled = getattr(data, which)
    return batches(part, range(len(part.pixels)), backbone, data.size, options.batch_size, data.rule)


def _scale(cached: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature."""
    some = torch.cat([features.float().flatten(0, 1) for features, _ in cached[:20]])
    return some.mean(dim=0), some.std(dim=0) + 1e-6


def by_neighbours(backbone: Backbone, data: Set, options: SegmentOptions, classes: int) -> dict[str, Confusion]:
    """Each patch by the votes of the nearest patches; a patch of the bank has the class of most of its pixels."""
    generator = torch.Generator().manual_seed(options.seed)
    bank, bank_labels = [], []
    for features, labels in _in_order(data, "train", backbone, options):
        majority = patch_labels(labels, round(features.shape[1] ** 0.5), classes)
        for tokens, its in zip(features, majority, strict=True):
            known = (its != NOTHING).nonzero()[:, 0].cpu()
            chosen = known[torch.randperm(len(known), generator=generator)[:PATCHES_OF_AN_IMAGE]]
            bank.append(F.normalize(tokens[chosen], dim=1))
            bank_labels.append(its[chosen])
    known, known_labels, confusion = torch.cat(bank), torch.cat(bank_labels), Confusion(classes)
    if not len(known):
        raise WorkError("no patch of the training images, cut to --size, has a label: there is nothing to learn")
    for features, labels in _in_order(data, "val", backbone, options):
        side = round(features.shape[1] ** 0.5)
        queries = F.normalize(features.flatten(0, 1), dim=1)
        answers = knn.vote(queries, known, known_labels, classes, (options.k,))[options.k][:, 0]
        said = answers.view(len(features), 1, side, side).float()
        confusion.add(F.interpolate(said, size=(data.size, data.size), mode="nearest")[:, 0].long(), labels)
    return {f"k {options.k}": confusion}


def best_of(found: dict[str, Confusion]) -> tuple[str, dict[str, float]]:
    """The setting with the highest mIoU, and its numbers."""
    name = max(found, key=lambda setting: found[setting].metrics()["miou"])
    return name, found[name].metrics()


def patch_labels(labels: Int[Tensor, "b s s"], side: int, classes: int) -> Int[Tensor, "b n"]:
    """The class of most pixels of each patch; NOTHING where most have none."""
    one_hot = F.one_hot(torch.where(labels == NOTHING, classes, labels), classes + 1).permute(0, 3, 1, 2).float()
    most = F.adaptive_avg_pool2d(one_hot, side).flatten(2).argmax(dim=1)
    return torch.where(most == classes, NOTHING, most)


def look_through(data: Set, root: str) -> dict[str, Survey]:
    """Read every label map once. Raises UserError and WorkError naming what cannot be used, or is no label map of its image."""

    def check(path: Path, highest: int) -> None:
        if data.names is not None:
            label_maps.refuse_higher(path, highest, len(data.names), data.rule, "name them in the list of classes")

    parts = {"training": data.train, "validation": data.val}
    found = {name: label_maps.survey(part.pixels, part.labels, data.rule, check) for name, part in parts.items()}
    label_maps.require(found, data.rule, root)
    return found


def _without(part: Labelled, found: Survey) -> Labelled:
    """A part without the images whose maps have no label."""
    kept = [number for number in range(len(part.labels)) if number not in set(found.empty)]
    return Labelled([part.pixels[number] for number in kept], [part.labels[number] for number in kept])


def count_classes(data: Set) -> int:
    """Number of classes: those that are listed, else the largest label plus one."""
    found = look_through(data, "the data")
    return len(data.names) if data.names else label_maps.count(found, data.rule)


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
    classes = len(data.names) if data.names else label_maps.count(in_maps, data.rule)
    terminal.say(label_maps.meaning(in_maps, data.rule))
    for part, one in in_maps.items():
        terminal.say(label_maps.line(part, one, classes, data.names))
    data = data._replace(train=_without(data.train, in_maps["training"]), val=_without(data.val, in_maps["validation"]))
    measure = by_linear if options.head == "linear" else by_neighbours
    found = {"this checkpoint": measure(subject.backbone, data, options, classes)}
    if options.baseline:
        fresh = untrained(subject, options.seed).backbone
        found["the same, untrained"] = measure(fresh, data, options, classes)
    console = terminal.Console(soft_wrap=True)
    for name, settings in found.items():
        which, metrics = best_of(settings)
        every = ", ".join(f"{setting}: {one.metrics()['miou']:.1f}" for setting, one in settings.items())
        numbers = f"mIoU {metrics['miou']:.1f}, mAcc {metrics['macc']:.1f}, aAcc {metrics['aacc']:.1f}"
        console.print(f"{name}: {numbers} ({options.head}, {which}; mIoU of all: {every})")
    mine = found["this checkpoint"]
    record = best_of(mine)[1] | {f"miou_{name.replace(' ', '_')}": one.metrics()["miou"] for name, one in mine.items()}
    if options.baseline:
        record["untrained_miou"] = best_of(found["the same, untrained"])[1]["miou"]
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
            "k": options.k,
            "key": options.key,
            "void_labels": data.rule.void,
            "classes": classes,
        },
        metrics=record,
        seconds=time.perf_counter() - began,
        device=subject.device.type,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
