"""Segmentation by frozen patch tokens, without OpenMMLab: `python -m probes.segment --ckpt runs/sample`.

Whole images, in sliding windows, at the size of their label maps. `--head linear`: one linear layer on the normed patch tokens of
the last four blocks (paper App. C has four taps of twelve), its learning rate chosen on held-out training images, never on test
images. `--head knn`: each patch is classified by the nearest patches of the training images, as
`probes.knn` does for images. Mean intersection over union (mIoU) over the classes that occur in labels or predictions, as
MMSegmentation counts in `transfer`; 255 is void, and so is 0 unless `--background none` (`probes/shared/label_rule.py`).

b images, n patches, d width of the features, k classes, s side of an image.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from pretrain.batches import color_ops
from pretrain.evaluate import finite, knn, views
from pretrain.models.backbone import Backbone
from pretrain.models.measured import require
from pretrain.sample import dense as sample_dense
from probes.shared import label_files, label_maps, label_rule, windows
from probes.shared import record as results
from probes.shared.label_maps import Survey, stored
from probes.shared.label_rule import AS_ADE20K, NOTHING, Rule
from probes.shared.subject import Frozen, made_ready, open_frozen, untrained

FOLDERS = {"train": ("images/training", "annotations/training"), "val": ("images/validation", "annotations/validation")}
BLOCKS = 4
SHARP: dict[str, dict[str, bool]] = {"bilinear": {"align_corners": False}}
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
    """Pixels of a window's side: images' shorter side is resized to it (default: 128 for the sample, else 512)."""
    epochs: int = 10
    """linear: passes over the training images."""
    lr: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """linear: peak learning rates of AdamW (cosine to zero); the best on held-out training images is trained again on all."""
    held_out: float = 20.0
    """linear: percentage of the training images on which the learning rate is chosen, where there are several."""
    k: int = 20
    """knn: number of neighbours."""
    batch_size: int = 16
    """Windows a step."""
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
    """Both parts, the side of windows, how labels are read, and the classes' names where the data has some."""

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


def view(pixels: Path | np.ndarray, backbone: Backbone, size: int) -> Float[Tensor, "c h w"]:
    """A whole image, its shorter side resized to `size`, turned by its EXIF orientation as its label map is."""
    array = np.asarray(_turned(pixels).convert("RGB")) if isinstance(pixels, Path) else pixels
    wide, _, _ = views.evaluation_box(array.shape[1], array.shape[0], size, size)
    resized = np.asarray(Image.fromarray(array).resize(wide, Image.Resampling.BICUBIC))
    planes = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].float() / 255
    return color_ops.normalise(planes, backbone.shape.mean, backbone.shape.std)[0]


def _turned(path: Path) -> Image.Image:
    try:
        return ImageOps.exif_transpose(stored(path))
    except UserError:
        raise
    except Exception as error:  # broken EXIF makes Pillow raise almost anything
        raise UserError(f"{path} cannot be used (its EXIF: {type(error).__name__}): fetch it again") from error


def label_view(labels: Path | np.ndarray, size: int | None, rule: Rule = AS_ADE20K) -> Int[Tensor, "h w"]:
    """The label map in the image's view, by nearest neighbour, or as it is; classes from 0, NOTHING for void."""
    image = Image.fromarray(label_maps.read(labels, rule.colours) if isinstance(labels, Path) else labels)
    if size is not None:
        image = image.resize(views.evaluation_box(*image.size, size, size)[0], Image.Resampling.NEAREST)
    return torch.from_numpy(label_maps.numbered(np.asarray(image), rule).astype(np.int64))


class Seen(NamedTuple):
    """An image's windows: features, where they lie, and the size of the resized image."""

    features: Float[Tensor, "w n d"]
    where: list[tuple[int, int]]
    height: int
    width: int


def seen(part: Labelled, number: int, backbone: Backbone, size: int, count: int) -> Seen:
    """Features of all windows of an image, `count` at a time. Raises WorkError naming an image whose are not finite."""
    whole = view(part.pixels[number], backbone, size).to(next(backbone.parameters()).device)
    where = windows.corners(whole.shape[1], whole.shape[2], size)
    crops = torch.stack([whole[:, upper : upper + size, left : left + size] for upper, left in where])
    features = torch.cat([patch_features(backbone, some) for some in crops.split(count)])
    return Seen(finite.checked(features, backbone, lambda _: _name(part, number)), where, whole.shape[1], whole.shape[2])


def windows_of_labels(
    part: Labelled, number: int, where: Sequence[tuple[int, int]], size: int, rule: Rule
) -> Int[Tensor, "w s s"]:
    """The labels of an image's windows."""
    labels = label_view(part.labels[number], size, rule)
    return torch.stack([labels[upper : upper + size, left : left + size] for upper, left in where])


def _name(part: Labelled, number: int) -> str:
    pixels = part.pixels[number]
    return str(pixels) if isinstance(pixels, Path) else f"image {number}"


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


class Measured(NamedTuple):
    """Counts on the test images, the setting they are of, and the mIoU of every setting that was tried on held-out images."""

    setting: str
    confusion: Confusion
    tried: dict[str, float]


Scores = Callable[[Tensor], Tensor]
"""Scores of the classes [w, k, side, side] from features of windows [w, n, d]."""


@torch.no_grad()
def add_whole(confusion: Confusion, one: Seen, labels: Tensor, scores: Scores, size: int, mode: str) -> bool:
    """Count the answers for one image at the size of its label map; whether all scores are finite."""
    every = F.interpolate(scores(one.features), size=(size, size), mode=mode, **SHARP.get(mode, {}))
    whole = windows.joined(every, one.where, one.height, one.width)
    answers = F.interpolate(whole[None], size=labels.shape, mode=mode, **SHARP.get(mode, {}))[0]
    confusion.add(answers.argmax(dim=0)[None].cpu(), labels[None])
    return bool(answers.isfinite().all())


def by_linear(backbone: Backbone, data: Set, options: SegmentOptions, classes: int) -> Measured:
    """A linear layer on patch tokens, its learning rate chosen on held-out training images, then trained on all of them.

    Rates whose layers are not finite are left out. Raises WorkError where all are, or features are beyond float16.
    """
    known = []
    for number in range(len(data.train.pixels)):
        one = seen(data.train, number, backbone, data.size, options.batch_size)
        one = one._replace(features=_halved(one.features))
        known.append((one, windows_of_labels(data.train, number, one.where, data.size, data.rule).to(torch.uint8)))
    held, tried = held_out(len(known), options), dict[str, float]()
    if held:
        heads = fit([one for number, one in enumerate(known) if number not in held], options, options.lr, classes, data.size)
        for head, lr in zip(heads, options.lr, strict=True):
            confusion, sound = Confusion(classes), True
            for number in sorted(held):
                labels = label_view(data.train.labels[number], None, data.rule)
                sound &= add_whole(confusion, known[number][0], labels, head, data.size, "bilinear")
            if sound:
                tried[f"lr {lr:g}"] = confusion.metrics()["miou"]
            else:
                terminal.say(f"excluded, not finite: lr {lr:g}")
        if not tried:
            raise WorkError("no learning rate gave finite weights: give a smaller --lr")
    best = max(options.lr, key=lambda lr: tried.get(f"lr {lr:g}", -1.0))
    head, confusion = fit(known, options, (best,), classes, data.size)[0], Confusion(classes)
    for number in range(len(data.val.pixels)):
        one = seen(data.val, number, backbone, data.size, options.batch_size)
        labels = label_view(data.val.labels[number], None, data.rule)
        if not add_whole(confusion, one, labels, head, data.size, "bilinear"):
            raise WorkError("no learning rate gave finite weights: give a smaller --lr")
    return Measured(f"lr {best:g}", confusion, tried)


def held_out(images: int, options: SegmentOptions) -> set[int]:
    """The training images on which the learning rate is chosen; none where there is one rate. Raises UserError for one image."""
    if len(options.lr) == 1:
        return set()
    if images < 2:
        raise UserError("one training image has no part to choose the learning rate on: give one --lr, or more images")
    count = min(max(1, round(images * options.held_out / 100)), images - 1)
    return set(torch.randperm(images, generator=torch.Generator().manual_seed(options.seed))[:count].tolist())


def fit(
    known: Sequence[tuple[Seen, Tensor]], options: SegmentOptions, rates: Sequence[float], classes: int, size: int
) -> list[Scores]:
    """Train a layer for each rate on the windows of these images; what scores with each."""
    torch.manual_seed(options.seed)
    rows = [(features, labels) for one, its in known for features, labels in zip(one.features, its, strict=True)]
    device = rows[0][0].device
    some = torch.cat([features.float() for features, _ in rows[: 20 * options.batch_size]])
    mean, spread = some.mean(dim=0), some.std(dim=0) + 1e-6
    heads = [nn.Linear(len(mean), classes).to(device) for _ in rates]
    groups = [{"params": head.parameters(), "lr": lr} for head, lr in zip(heads, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    rows = [row for row in rows if (row[1] != NOTHING).any()]  # the mean over no pixel is not a number
    if not rows:
        raise WorkError("no pixel of the training images has a label: there is nothing to learn")
    steps = options.epochs * -(-len(rows) // options.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def scores(head: nn.Linear, features: Tensor) -> Tensor:
        side = round(features.shape[1] ** 0.5)
        return head((features.float() - mean) / spread).transpose(1, 2).unflatten(2, (side, side))

    for _ in range(options.epochs):
        for batch in torch.randperm(len(rows)).split(options.batch_size):
            features, labels = (torch.stack(kind).to(device) for kind in zip(*(rows[number] for number in batch), strict=True))
            every = [F.interpolate(scores(head, features), size=(size, size), mode="bilinear") for head in heads]
            losses = [F.cross_entropy(logits, labels.long(), ignore_index=NOTHING) for logits in every]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return [partial(scores, head) for head in heads]


def _halved(features: Tensor) -> Tensor:
    halved = features.half()
    if not halved.isfinite().all():
        raise WorkError(
            f"patch features up to {features.abs().max():.3g} are beyond float16, in which they are held: give --head knn"
        )
    return halved


def by_neighbours(backbone: Backbone, data: Set, options: SegmentOptions, classes: int) -> Measured:
    """Each patch by the votes of the nearest patches; a patch of the bank has the class of most of its pixels."""
    generator = torch.Generator().manual_seed(options.seed)
    bank, bank_labels = [], []
    for number in range(len(data.train.pixels)):
        one = seen(data.train, number, backbone, data.size, options.batch_size)
        labels = windows_of_labels(data.train, number, one.where, data.size, data.rule).to(one.features.device)
        its = patch_labels(labels, round(one.features.shape[1] ** 0.5), classes).flatten()
        known = (its != NOTHING).nonzero()[:, 0].cpu()
        chosen = known[torch.randperm(len(known), generator=generator)[:PATCHES_OF_AN_IMAGE]].to(its.device)
        bank.append(F.normalize(one.features.flatten(0, 1)[chosen], dim=1))
        bank_labels.append(its[chosen])
    tokens, of_tokens, confusion = torch.cat(bank), torch.cat(bank_labels), Confusion(classes)
    if not len(tokens):
        raise WorkError("no patch of the training images has a label: there is nothing to learn")

    def scores(features: Tensor) -> Tensor:
        side = round(features.shape[1] ** 0.5)
        queries = F.normalize(features.flatten(0, 1), dim=1)
        answers = knn.vote(queries, tokens, of_tokens, classes, (options.k,))[options.k][:, 0]
        return F.one_hot(answers.long(), classes).float().view(len(features), side, side, classes).permute(0, 3, 1, 2)

    for number in range(len(data.val.pixels)):
        one = seen(data.val, number, backbone, data.size, options.batch_size)
        add_whole(confusion, one, label_view(data.val.labels[number], None, data.rule), scores, data.size, "nearest")
    return Measured(f"k {options.k}", confusion, {})


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


def _say(name: str, found: Measured, options: SegmentOptions) -> None:
    numbers = found.confusion.metrics()
    tried = ", ".join(f"{setting}: {value:.1f}" for setting, value in found.tried.items())
    held = f"; mIoU on held-out training images: {tried}" if tried else ""
    line = f"{name}: mIoU {numbers['miou']:.1f}, mAcc {numbers['macc']:.1f}, aAcc {numbers['aacc']:.1f}"
    terminal.Console(soft_wrap=True).print(f"{line} ({options.head}, {found.setting}{held})")


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
    mine = measure(subject.backbone, data, options, classes)
    _say("this checkpoint", mine, options)
    record = mine.confusion.metrics() | {f"held_out_miou_{name.replace(' ', '_')}": value for name, value in mine.tried.items()}
    if options.baseline:
        fresh = measure(untrained(subject, options.seed).backbone, data, options, classes)
        _say("the same, untrained", fresh, options)
        record["untrained_miou"] = fresh.confusion.metrics()["miou"]
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
            "lr_chosen_on": f"{options.held_out:g} % of the training images" if len(options.lr) > 1 else "one rate",
            "tested_on": "whole images by sliding windows",
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
