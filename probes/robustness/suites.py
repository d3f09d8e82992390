"""The suites of `probes.robustness`: what each needs, opened before anything is computed, and what it measures."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from checkpoints import terminal, zoo
from checkpoints.cli import UserError, WorkError
from pretrain.images.open import has_part, open_images
from pretrain.images.source import Images, InMemory, subset, with_labels
from pretrain.models.backbone import Backbone, load_backbone
from pretrain.sample import classification, scene, shifts
from pretrain.sample.corruptions import NAMES, SEVERITIES
from probes.features.attention import require_attention
from probes.linear.head import Classifier, View
from probes.robustness import class_maps, drops, imagenet9, imagenet_c, imagenet_variants, occlusion, occlusion_plots
from probes.robustness.occlusion import Saliency
from probes.robustness.occlusion_plots import Change
from probes.shared.console import steps
from probes.shared.subject import Frozen, Subject, of_several_classes, paper_crop
from probes.visualize import inputs
from probes.visualize.gallery import Shown

DINO, ITSELF = "dino_vits16", "itself"
"""The network for saliency in Table 8, and the measured network itself."""
SAMPLE_LIMIT = {"inc": 200, "occlusion": 500, "shuffle": 500}
"""Test images of the sample that keep a suite below two minutes on two cores."""


@dataclass(frozen=True)
class RobustnessOptions(Frozen):
    """Accuracy on other pictures than those that were learnt from. --data: `sample`, or the suite's own folder."""

    suite: Literal["in9", "ina", "inr", "sketch", "inc", "occlusion", "shuffle"] = "in9"
    """ImageNet-9's eight variants, ImageNet-A, -R, -Sketch, -C, dropped patches, shuffled cells."""
    corrupt: bool = False
    """inc: --data is any labelled data set, corrupted here on the fly."""
    head: Path | None = None
    """A linear head kept by `probes.linear` (default: the one beside the checkpoint, if it is of this backbone)."""
    train: str | None = None
    """Labelled images to train a head on where there is no --head (default: the sample's; --data's part train)."""
    train_images: int | None = None
    """Learn from at most this many."""
    crop: int | None = None
    """Pixels of the centre crop (default: what the checkpoint was trained on)."""
    class_map: Path | None = None
    """in9: another map of classes to superclasses, as ImageNet-9's in_to_in9.json."""
    same_for_batch: bool = False
    """occlusion, shuffle: one draw for a whole batch, as the original; otherwise one an image."""
    saliency: str | None = None
    """occlusion: network for the saliency: `itself` (the measured checkpoint), or a checkpoint as for --ckpt. By
    default `dino_vits16`, DINO's published ViT-S/16, as the original; `itself` where it is not to be had, and for the sample."""
    saliency_head: int = occlusion.HEAD
    """occlusion: which of its heads."""


class Measured(NamedTuple):
    """Numbers, and pictures that go beside the record."""

    metrics: dict[str, float]
    pictures: list[Shown]


class Task(NamedTuple):
    """A suite whose data is there."""

    images: int
    resized: bool
    """Whether images are resized before the crop; some data sets were cut already."""
    measure: Callable[[Classifier, View], Measured]
    about: Mapping[str, Any] = {}
    """Further fields of the record's protocol."""
    asks: Mapping[str, Sequence[str]] = {}
    """Classes that the head must know, by what they are for."""


def prepare(options: RobustnessOptions, subject: Subject) -> Task:
    """Open the suite's data. Raises UserError naming what is missing."""
    opened = {"in9": _in9, "inc": _inc, "occlusion": _occlusion, "shuffle": _shuffle}
    return opened.get(options.suite, _shifted)(options, subject)


def drawn(name: str, content: classification.Drawn) -> Images:
    """Pictures of the sample as a source."""
    images = InMemory(name, content.images)
    images.labels, images.classes = content.labels, content.classes
    return images


def limited(images: Images, options: RobustnessOptions) -> Images:
    """At most `--limit` of them, drawn from the seed."""
    count = options.limit or (SAMPLE_LIMIT.get(options.suite) if options.data == "sample" else None)
    return images if count is None or count >= len(images) else subset(images, count, options.seed)


def training_images(options: RobustnessOptions) -> Images:
    """Training images of a head. Raises UserError if the options name none."""
    any_data = options.suite in ("occlusion", "shuffle") or options.corrupt
    if options.train is not None:
        images = open_images(options.train, "train" if has_part(options.train, "train") else None)
    elif options.data == "sample" and options.suite == "in9":
        images = drawn("sample, before usual backgrounds", shifts.in9_train())
    elif options.data == "sample" or (any_data and has_part(options.data, "train")):
        images = open_images(options.data, "train")
    else:
        raise UserError("there is no linear head: give --head FILE (kept by probes.linear), or --train DATA to train one on")
    some = images if options.train_images is None else subset(images, options.train_images, options.seed)
    return of_several_classes(some)


def test_images(options: RobustnessOptions) -> Images:
    """Labelled images, of the part to test on where there is one."""
    images = open_images(options.data, "val" if has_part(options.data, "val") else None)
    if images.labels is None:
        raise UserError(f"{images.name} has no labels: this suite needs class sub-folders, or a label column")
    return limited(with_labels(images), options)


def _in9(options: RobustnessOptions, subject: Subject) -> Task:
    if options.data == "sample":
        variants = {name: drawn(f"sample, {name}", shifts.in9(name)) for name in shifts.IN9}
        members = {name: [name] for name in scene.CLASSES[: shifts.FOREGROUNDS]}
    else:
        variants, members = imagenet9.open_variants(Path(options.data)), class_maps.superclasses(options.class_map)
    parts = {name: limited(images, options) for name, images in variants.items()}
    for images in parts.values():
        imagenet9.labels_of(images, len(members))

    def measure(classifier: Classifier, view: View) -> Measured:
        return Measured(imagenet9.measure(classifier, parts, members, view, options.batch_size), [])

    own = "the sample's" if options.data == "sample" else class_maps.name(options.class_map)
    asks = {f"members of {name}": own_classes for name, own_classes in members.items()}
    return Task(sum(len(images) for images in parts.values()), False, measure, {"class_map": own}, asks)


def _shifted(options: RobustnessOptions, subject: Subject) -> Task:
    suite = options.suite
    on_disk = options.data != "sample"
    whole = (
        imagenet_variants.open_folder(suite, Path(options.data)) if on_disk else drawn(f"sample, {suite}", shifts.shifted(suite))
    )
    images = limited(whole, options)

    def measure(classifier: Classifier, view: View) -> Measured:
        return Measured(imagenet_variants.measure(suite, classifier, images, view, options.batch_size), [])

    return Task(len(images), True, measure, asks={images.name: images.classes})


def _inc(options: RobustnessOptions, subject: Subject) -> Task:
    """ImageNet-C's folders, or any data corrupted here, which is then also measured as it is."""
    clean = test_images(options) if options.corrupt or options.data == "sample" else None
    if clean is not None:
        opened: Callable[[str, int], Images] = functools.partial(imagenet_c.Corrupted, clean, seed=options.seed)
    else:
        folders = imagenet_c.open_layout(Path(options.data))
        opened = lambda name, severity: limited(folders(name, severity), options)  # noqa: E731
    pairs = [(name, severity) for name in NAMES for severity in SEVERITIES]

    def measure(classifier: Classifier, view: View) -> Measured:
        errors: dict[str, dict[int, float]] = {name: {} for name in NAMES}
        for name, severity in steps("corruptions", pairs, len(pairs)):
            errors[name][severity] = imagenet_c.error(classifier, opened(name, severity), view, options.batch_size)
        found = imagenet_c.summary(errors)
        if clean is not None:
            found["clean_error"] = imagenet_c.error(classifier, clean, view, options.batch_size)
        return Measured(found, [])

    first = clean if clean is not None else opened(*pairs[0])
    return Task(len(first) * len(pairs), False, measure, {"corrupt": clean is not None}, {first.name: first.classes})


def _shuffle(options: RobustnessOptions, subject: Subject) -> Task:
    images = test_images(options)
    caption = f"{images.name}\n{inputs.whose(subject, options.key)}"

    def measure(classifier: Classifier, view: View) -> Measured:
        draw: dict[str, Any] = {"seed": options.seed, "same": options.same_for_batch}
        numbers = occlusion.shuffle(classifier, images, view, options.batch_size, **draw)
        change: dict[str, Change] = {"as it is": lambda crops, _: crops}
        for grid in drops.GRIDS:
            change[f"{grid[0]} x {grid[1]}"] = functools.partial(_shuffled, grid, draw)
        examples = occlusion_plots.draw_examples(subject.backbone.shape, images, view, change, caption)
        curve = occlusion_plots.draw_grids(numbers, caption)
        return Measured(numbers, [Shown("curve", curve, caption), Shown("examples", examples, caption)])

    about = {"same_for_batch": options.same_for_batch}
    return Task(len(images), True, measure, about, {images.name: images.classes})


def _shuffled(grid: tuple[int, int], draw: dict[str, Any], crops: Tensor, numbers: range) -> Tensor:
    return drops.shuffled(crops, grid, drops.orders(numbers, grid[0] * grid[1], **draw))


def _occlusion(options: RobustnessOptions, subject: Subject) -> Task:
    images, saliency = test_images(options), open_saliency(options, subject)
    caption = f"{images.name}\n{inputs.whose(subject, options.key)}"

    def measure(classifier: Classifier, view: View) -> Measured:
        draw: dict[str, Any] = {"seed": options.seed, "same": options.same_for_batch}
        curves = occlusion.occlude(classifier, images, view, options.batch_size, saliency, **draw)
        more = draw | {"side": view.crop // subject.backbone.shape.stride}
        change: dict[str, Change] = {"as it is": lambda crops, _: crops}
        change |= {kind: functools.partial(_dropped, kind, saliency, more) for kind in occlusion.CATEGORIES}
        examples = occlusion_plots.draw_examples(subject.backbone.shape, images, view, change, caption)
        pictures = [Shown("curves", occlusion_plots.draw_curves(curves, caption), caption), Shown("examples", examples, caption)]
        return Measured(occlusion.salient_numbers(curves) | occlusion.random_numbers(curves), pictures)

    about = {"saliency": saliency.name, "saliency_head": saliency.head, "same_for_batch": options.same_for_batch}
    return Task(len(images), True, measure, about, {images.name: images.classes})


def _dropped(kind: str, saliency: Saliency, more: dict[str, Any], crops: Tensor, numbers: range) -> Tensor:
    return drops.without(crops, occlusion.dropped(kind, occlusion.AT, saliency.maps(crops), numbers, **more))


def open_saliency(options: RobustnessOptions, subject: Subject) -> Saliency:
    """Raises UserError for a network without attention that can be read, or without that head, or for another size of crops."""
    own = subject.backbone, ITSELF
    asked = options.saliency or (ITSELF if options.data == "sample" else DINO)
    backbone, name = own if asked == ITSELF else _another(asked) or own
    try:
        network = require_attention(backbone.to(subject.device))
    except UserError as error:
        raise UserError(f"{error}, or say whose attention counts as saliency with --saliency") from error
    if not 0 <= options.saliency_head < network.shape.num_heads:
        raise UserError(
            f"--saliency-head {options.saliency_head}: the saliency network has heads 0 to {network.shape.num_heads - 1}"
        )
    crop, patch = options.crop or paper_crop(subject.backbone), network.shape.patch_size
    if crop % patch:
        raise UserError(f"--saliency {name} sees patches of {patch} pixels, which do not divide crops of {crop}")
    return Saliency(network, options.saliency_head, name)


def _another(asked: str) -> tuple[Backbone, str] | None:
    """A checkpoint's backbone, and what was loaded: a name of the zoo only where it is the zoo's file. None without DINO's."""
    try:
        loaded = load_backbone(Path(asked))
    except WorkError as error:
        if asked != DINO:
            raise
        terminal.say(
            f"note: {DINO} is not there ({error}): the measured checkpoint itself says what is salient, "
            "and S_.5 and NS_.5 are not comparable with Table 8"
        )
        return None
    published = loaded.path == zoo.kept(asked)
    return loaded.backbone, asked if published or not loaded.path.exists() else os.path.abspath(loaded.path)
