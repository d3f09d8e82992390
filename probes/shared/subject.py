"""Shared by commands that measure a frozen network: options, the backbone on its device, labelled images and their view."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain.backbones.open import open_backbone
from pretrain.engine import distributed
from pretrain.evaluate.views import evaluation_resize
from pretrain.images import values
from pretrain.images.labels import Columns
from pretrain.images.open import has_part, open_images
from pretrain.images.source import Images, aligned, subset, with_labels
from pretrain.models.backbone import Backbone, Loaded, make
from pretrain.models.measured import Measured
from probes.shared import console, record, stored
from probes.shared.labelled import CLASSES, divided, of_tasks, refuse_shared, untested, without_labels


@dataclass(frozen=True)
class Frozen:
    """The options of every command that measures a frozen network."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME, hf:OWNER/NAME, torchvision:NAME,
    python:FILE.py:FUNCTION (docs/backbones.md; default: the newest run)."""
    data: str = "sample"
    """`sample`, or a folder in the layout that this command's page describes (docs/robustness-and-pictures.md)."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint (the published IN-22K numbers are the student's)."""
    limit: int | None = None
    """Use at most this many of each part."""
    batch_size: int = 64
    """Images a forward."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:1`, ... (default: a GPU where there is one)."""
    seed: int = 0
    """Seed of all random draws."""
    out: Path | None = None
    """Output file or folder (default: results/ beside the checkpoint)."""


@dataclass(frozen=True)
class Common(Frozen):
    """The options of every probe of labelled images."""

    data: str = "sample"
    """`sample`, or what pretraining takes, with parts train and val (or test): a folder of both (ImageNet's), hf:NAME, ..."""
    limit: int | None = None
    """Use at most this many images of each part, drawn from --seed."""
    batch_size: int = 256
    """Images a forward, in each process."""
    out: Path | None = None
    """The record (default: in results/ beside the checkpoint, under a name of its own: probe, data, checkpoint, options)."""
    val: str | None = None
    """The test images where --data has no such part."""
    crop: int | None = None
    """Pixels of the centre crop (default: the paper's 224 for every backbone; what a checkpoint of crops below 160 was trained
    on)."""
    resize: int | None = None
    """Pixels of the shorter side before the crop (default: crop x 256 / 224; the crop itself below 160)."""
    view: Literal["paper", "own"] = "paper"
    """Where --crop and --resize are not given: the paper's view, or the backbone's own preprocessing (its size, share of the crop
    and interpolation). Mean and deviation are always its own."""
    workers: int | None = None
    """Processes that decode images (default: one a core, none for few images)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the backbone's forward pass; the paper's is float32."""
    cache: Path | None = None
    """Folder in which features are kept for the next probe (default: $IBOT_FEATURES, else the user's cache folder)."""
    label_column: str | None = None
    """Column of the labels in parquet files, hf:NAME, or a list with a first line of names (default: label, labels, ...)."""
    task: Literal["classes", "multi-label", "regression"] | None = None
    """What labels are for (default: numbers and words are classes, lists several labels, decimals values to predict)."""
    group: str | None = None
    """Column of groups (patients, sites): none may be in both parts. Data without a part to test on is divided by it, 4 to 1."""
    untrained: bool = False
    """Measure the same architecture with random weights from --seed in place of the checkpoint's, as a baseline."""


@dataclass(frozen=True)
class Probed(Common):
    """The options of probes that read one feature an image, which may lie in a file."""

    embeddings: Path | None = None
    """Features in a file in place of --ckpt and --data: what probes.embed has written, or Parquet with features and label."""


@dataclass(frozen=True)
class Repeated(Probed):
    """The options of probes in which something is drawn."""

    seeds: int = 1
    """Measure with so many seeds, from --seed on: mean and standard deviation of what is drawn."""


class View(NamedTuple):
    """Preprocessing: shorter side to `resize`, then the centre `crop`, in pixels."""

    resize: int
    crop: int
    interpolation: str = "bicubic"
    squash: bool = False
    """Both sides to `resize`, whatever an image's proportions."""


class Parts(NamedTuple):
    """Labelled images to learn from and to test on, their classes numbered alike."""

    train: Images
    val: Images


@dataclass(frozen=True)
class Subject:
    """A frozen backbone to measure, and its device."""

    loaded: Loaded
    device: torch.device

    @property
    def backbone(self) -> Backbone:
        return self.loaded.backbone


@dataclass(frozen=True)
class Viewed(Subject):
    """A subject with the preprocessing of every image."""

    view: View


PAPER_CROP, SMALL = 224, 160
"""The paper's centre crop; checkpoints of smaller crops than the second keep their own."""
AnySubject = TypeVar("AnySubject", bound=Subject)


def open_frozen(options: Frozen, *, full: bool = False) -> Subject:
    """The backbone that the options name, for commands with preprocessing of their own; `full` reads heads too.

    Raises UserError for a device that is not there, and for a backbone of other images than pictures of three channels.
    """
    device = named_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loaded = open_backbone(options.ckpt, key=options.key, full=full)
    if loaded.backbone.shape.channels != 3:
        raise UserError(f"{loaded.path} takes {loaded.backbone.shape.channels} channels: this command is for pictures of three")
    values.refuse_range(loaded.backbone.shape, loaded.path)
    return Subject(loaded._replace(backbone=loaded.backbone.to(device)), device)


@contextlib.contextmanager
def open_subject(options: Common, full: bool = False) -> Iterator[Viewed]:
    """Context with all processes joined and the frozen backbone on its device; `full`: of a run, the full checkpoint is read.

    Raises UserError for impossible options.
    """
    with distributed.processes() as own:
        device = own if options.device is None else named_device(options.device)
        if (file := embeddings_of(options)) is not None:
            stored.check(options)
            yield Viewed(stored.loaded(file), device, View(0, 0))
            return
        loaded = distributed.main_first(partial(open_backbone, options.ckpt, key=options.key, full=full))
        view = view_of(loaded.backbone, options)
        found = Viewed(loaded._replace(backbone=loaded.backbone.to(device)), device, view)
        yield untrained(found, options.seed) if options.untrained else found


def embeddings_of(options: Common) -> Path | None:
    """The file of `--embeddings`."""
    return options.embeddings if isinstance(options, Probed) else None


def untrained(subject: AnySubject, seed: int) -> AnySubject:
    """A subject of the same architecture with random weights."""
    torch.manual_seed(seed)
    own = subject.backbone
    if isinstance(own, Measured):
        return replace(subject, loaded=subject.loaded._replace(backbone=own.fresh()))
    fresh = make(own.shape, maskable=False).to(subject.device).eval().requires_grad_(False)
    return replace(subject, loaded=subject.loaded._replace(backbone=fresh))


def record_path(options: Common, subject: Subject, name: str) -> Path:
    """Path of the record, tested before the work. Raises UserError if it cannot be written."""
    return record.place(options.out, subject.loaded, f"{name}_untrained" if options.untrained else name, options)


def named_device(name: str) -> torch.device:
    """Raises UserError for a device that is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: give cpu, or cuda where there is a GPU") from error
    return device


def view_of(backbone: Backbone, options: Common) -> View:
    """The view of the flags, which the backbone is then made ready for. Raises UserError for one that it cannot take."""
    own = options.view == "own"
    if own and (options.crop or options.resize):
        raise UserError("--view own takes size and crop from the backbone: leave --crop and --resize out")
    if own and isinstance(backbone, Measured):
        its = backbone.preprocessing
        view = View(its.resize, its.crop, its.interpolation, its.squash)
    else:
        crop = options.crop or (backbone.shape.image_size if own else paper_crop(backbone))
        view = View(options.resize or evaluation_resize(crop), crop)
    patch = backbone.multiple if isinstance(backbone, Measured) else backbone.shape.patch_size
    if view.crop % patch or view.resize < view.crop:
        raise UserError(f"--crop {view.crop} must be divisible by the patch size {patch} and at most --resize {view.resize}")
    made_ready(backbone, view.crop)
    return view


def made_ready(backbone: Backbone, size: int) -> None:
    """Let a measured backbone take images of `size` pixels. Raises UserError if it cannot."""
    if isinstance(backbone, Measured):
        backbone.fit(size)


def paper_crop(backbone: Backbone) -> int:
    """Pixels of the paper's centre crop, 224, or the multiple of the patch size nearest to it.

    A checkpoint that was trained on small crops keeps its own size.
    """
    if not isinstance(backbone, Measured) and backbone.shape.image_size < SMALL:
        return backbone.shape.image_size
    multiple = backbone.multiple if isinstance(backbone, Measured) else backbone.shape.stride
    return max(round(PAPER_CROP / multiple), 1) * multiple


def labelled_parts(options: Common, shape: Architecture, tasks: Sequence[str] = CLASSES) -> Parts:
    """Training and test images. Raises UserError where labels are missing or the test images have classes of their own."""
    return drawn_parts(opened_parts(options, shape, tasks), options, tasks)


def opened_parts(options: Common, shape: Architecture, tasks: Sequence[str] = CLASSES) -> Parts:
    """All labelled images; both parts are the same where --group is to divide them (`drawn_parts`). Raises UserError as there."""
    if (file := embeddings_of(options)) is not None:
        known, tested = stored.parts(file)
        return Parts(of_tasks(known, tasks), of_tasks(tested, tasks))
    train = open_labelled(options, options.data, "train", shape)
    values.refuse_others(train)
    train = of_tasks(train, tasks)
    if options.group and not has_two_parts(options):
        return Parts(train, train)
    source, part = (options.val, None) if options.val else (options.data, "val")
    val = open_labelled(options, source, part, shape)
    values.refuse_others(val)
    val = of_tasks(aligned(val, train), tasks)
    if options.group:
        refuse_shared(train, val, options.group)
    return Parts(train, val)


def drawn_parts(parts: Parts, options: Common, tasks: Sequence[str] = CLASSES) -> Parts:
    """What --group, --limit and --seed make of them. Says which classes have no test image. Raises UserError as `of_tasks`."""
    train, val = parts
    if options.group and train is val:
        train, val = divided(train, options.group, options.seed)
    found = Parts(of_tasks(limited(train, options), tasks), of_tasks(limited(val, options), tasks))
    if said := untested(*found):
        console.say(f"note: {said}")
    return found


def open_labelled(options: Common, source: str, part: str | None, shape: Architecture) -> Images:
    """Images with the columns that the options name."""
    columns = Columns(options.label_column, options.group, options.task)
    return open_images(source, part, shape.channels, shape.value_range, columns)


def seeds_of(options: Repeated, *, drawn: bool = True) -> list[int]:
    """The seeds to measure with: one where nothing is `drawn`, which is said."""
    if options.seeds > 1 and not drawn:
        console.say(f"--seeds {options.seeds}: nothing is drawn here without --limit, so that one measurement is all")
    return [options.seed + number for number in range(options.seeds if drawn else 1)]


def about_seeds(several: Sequence[object]) -> dict[str, int]:
    """A field of a record's protocol, where there is more than one."""
    return {"seeds": len(several)} if len(several) > 1 else {}


def reseeded(subject: AnySubject, options: Common, seed: int) -> AnySubject:
    """The subject of another seed: other random weights with --untrained."""
    return untrained(subject, seed) if options.untrained else subject


def draws_parts(options: Common) -> bool:
    """Whether the images, or the weights, depend on the seed."""
    return options.limit is not None or options.untrained or (options.group is not None and not has_two_parts(options))


def has_two_parts(options: Common) -> bool:
    """Whether there are images apart to test on."""
    return options.val is not None or has_part(options.data, "val")


def labelled(images: Images) -> Images:
    """Those that have a class. Raises UserError if none has."""
    if images.labels is None:
        raise UserError(without_labels(images, "this probe"))
    return with_labels(images)


def of_several_classes(images: Images) -> Images:
    """Those that have a label. Raises UserError if none has, or of one class only, with which any result is 100 %."""
    return of_tasks(images, CLASSES)


def limited(images: Images, options: Common) -> Images:
    """At most `--limit` of them."""
    return images if options.limit is None or options.limit >= len(images) else subset(images, options.limit, options.seed)


def labels_of(images: Images) -> torch.Tensor:
    """Class numbers [n] of labelled images."""
    return torch.as_tensor(np.asarray(images.labels, dtype=np.int64))


def class_count(parts: Parts) -> int:
    """Number of classes: the largest label plus one."""
    return 1 + max(int(np.max(part.labels)) for part in parts if part.labels is not None)


def about_data(parts: Parts) -> dict[str, object]:
    """Fields of a record that describe the images."""
    about: dict[str, object] = {"train": parts.train.name, "val": parts.val.name}
    about |= {"train_images": len(parts.train), "val_images": len(parts.val)}
    return about if parts.train.labels is not None else about | {"task": task_of(parts)}


def task_of(parts: Parts) -> str:
    """What the labels are for."""
    truth = parts.train.truth()
    assert truth is not None
    return truth.task


def in_words(view: View) -> str:
    """The view for the title of a table; empty where features come from a file."""
    if not view.crop:
        return ""
    more = "" if view.interpolation == View(0, 0).interpolation else f" {view.interpolation}"
    return f", {view.crop} of {view.resize} pixels{more}{' squashed' if view.squash else ''}"


def about_view(options: Common, view: View) -> dict[str, object]:
    """Fields of a record that describe the view."""
    if (file := embeddings_of(options)) is not None:
        return stored.view(file)
    what: dict[str, object] = {"resize": view.resize, "crop": view.crop, "key": options.key, "precision": options.precision}
    if options.view == "own":
        what |= {"view": "own"}
        what |= {"interpolation": view.interpolation} if view.interpolation != View(0, 0).interpolation else {}
        what |= {"squash": True} if view.squash else {}
    given = {name: getattr(options, name) for name in ("label_column", "task", "group", "untrained")}
    return what | {name: value for name, value in given.items() if value}
