"""The embedded sample as tests of robustness: foregrounds and backgrounds apart, hard cases, renditions, sketches, corruptions.

`python -m pretrain.sample --in9 DIR`, `--ina DIR`, `--inr DIR`, `--sketch DIR`, `--inc DIR` write the layouts of ImageNet-9, -A,
-R, -Sketch and -C. h w pixels.
"""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from checkpoints.cli import UserError
from pretrain.sample import corruptions, picture_files
from pretrain.sample.classification import Drawn, classification
from pretrain.sample.scene import (
    CATEGORIES,
    CLASSES,
    SEED,
    SIZE,
    Background,
    Scene,
    draw_background,
    draw_object,
    draw_scene,
    render,
)

IN9 = ("original", "only_fg", "no_fg", "only_bg_b", "only_bg_t", "mixed_same", "mixed_rand", "mixed_next")
FOREGROUNDS = len(CATEGORIES) - 1
"""Number of classes in the test; the last class is only ever a wrong prediction, as 630 of ImageNet's are."""
COUNTS = {"in9_train": 1800, "in9": 450, "ina": 200, "inr": 200, "sketch": 200, "inc": 200}
SUBSETS = {"ina": (0, 2, 4, 6, 8), "inr": (1, 3, 5, 7, 9), "sketch": tuple(range(len(CATEGORIES)))}
"""Classes of each set."""
TINT, HUE_SPREAD = 0.05, 0.12
"""Saturation of a background, and standard deviation of its hue (in turns) around its class's typical hue."""


def in9_class(kind: int) -> str:
    """The folder of a class, as ImageNet-9 has them."""
    return f"{kind:02d}_{CLASSES[kind]}"


def typical_background(generator: np.random.Generator, kind: int) -> Background:
    """A class's typical background: only here in the sample does the background's hue correlate with the class."""
    hue = 3 * kind / len(CATEGORIES) + HUE_SPREAD * generator.standard_normal()
    red, green, blue = (TINT * np.cos(2 * np.pi * (hue - np.arange(3) / 3))).tolist()
    return dataclasses.replace(draw_background(generator), tint=(red, green, blue))


def _in9_scene(index: int, kind: int, seed: int, part: int) -> Scene:
    generator = np.random.default_rng([seed, 40 + part, index])
    scene = draw_scene(generator, [kind])
    things = (draw_object(generator, kind, (0.4, 0.65)),)
    return Scene(things, typical_background(generator, kind), scene.light)


@functools.cache
def in9_train(count: int = COUNTS["in9_train"], size: int = SIZE, seed: int = SEED) -> Drawn:
    """Training images: all ten classes on their typical backgrounds."""
    labels = np.arange(count) % len(CATEGORIES)
    images = [render(_in9_scene(index, int(kind), seed, 0), size).image for index, kind in enumerate(labels)]
    return Drawn(np.stack(images), labels, CLASSES)


@functools.cache
def in9(variant: str, count: int = COUNTS["in9"], size: int = SIZE, seed: int = SEED) -> Drawn:
    """One of the eight variants of the same pictures (Xiao et al., arXiv 2006.09994, section 2).

    What is behind a thing is known here; ImageNet-9 fills it with tiles of what is beside it.
    """
    labels = np.arange(count) % FOREGROUNDS
    scenes = [_in9_scene(index, int(kind), seed, 1) for index, kind in enumerate(labels)]
    images = []
    for index, scene in enumerate(scenes):
        generator = np.random.default_rng([seed, 42, index])
        picture = render(scene, size)
        inside = picture.owner >= 0
        if variant in ("only_fg", "no_fg"):
            images.append(np.where((inside if variant == "only_fg" else ~inside)[..., None], picture.image, 0))
        elif variant == "only_bg_b":
            images.append(_without_box(picture.image, inside))
        elif variant == "only_bg_t":
            images.append(render(dataclasses.replace(scene, things=()), size).image)
        elif variant == "original":
            images.append(picture.image)
        else:
            other = scenes[_other(generator, variant, index, labels)]
            images.append(render(dataclasses.replace(scene, background=other.background), size).image)
    return Drawn(np.stack(images).astype(np.uint8), labels, tuple(in9_class(kind) for kind in range(FOREGROUNDS)))


def _other(generator: np.random.Generator, variant: str, index: int, labels: np.ndarray) -> int:
    """Whose background a mixed picture has: another of the same class, of any, of the next."""
    wanted = {"mixed_same": labels == labels[index], "mixed_next": labels == (labels[index] + 1) % FOREGROUNDS}
    among = np.flatnonzero(wanted.get(variant, np.ones(len(labels), dtype=bool)))
    return int(generator.choice(among[among != index]))


def _without_box(image: UInt8[np.ndarray, "h w 3"], inside: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """The thing's box black."""
    rows, columns = np.where(inside)
    image = image.copy()
    image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 0
    return image


@functools.cache
def shifted(suite: str, count: int | None = None, size: int = SIZE, seed: int = SEED) -> Drawn:
    """`ina`: small, dim and half hidden. `inr`: any colours. `sketch`: black lines on white."""
    kinds, number = SUBSETS[suite], count or COUNTS[suite]
    labels = np.arange(number) % len(kinds)
    draw = {"ina": _hard, "inr": _rendition, "sketch": _sketch}[suite]
    offset = 43 + list(SUBSETS).index(suite)
    images = [draw(np.random.default_rng([seed, offset, index]), kinds[label], size) for index, label in enumerate(labels)]
    return Drawn(np.stack(images), labels, tuple(CLASSES[kind] for kind in kinds))


def _hard(generator: np.random.Generator, kind: int, size: int) -> UInt8[np.ndarray, "h w 3"]:
    thing = draw_object(generator, kind, (0.4, 0.6))
    before = draw_object(generator, int(generator.integers(len(CATEGORIES))), (0.15, 0.25))
    before = dataclasses.replace(before, x=thing.x + generator.uniform(-0.2, 0.2), y=thing.y + generator.uniform(-0.2, 0.2))
    return render(Scene((thing, before), draw_background(generator), (0.55, 0.0, 0.0)), size).image


def _rendition(generator: np.random.Generator, kind: int, size: int) -> UInt8[np.ndarray, "h w 3"]:
    thing, (dark, bright) = draw_object(generator, kind), generator.uniform((0.0,), (0.45, 1.0), (3, 2)).T
    colours = (dark[0], dark[1], dark[2]), (bright[0], bright[1], bright[2])
    scene = Scene((dataclasses.replace(thing, colours=colours),), draw_background(generator), (1.0, 0.0, 0.0))
    return render(scene, size).image


def _sketch(generator: np.random.Generator, kind: int, size: int) -> UInt8[np.ndarray, "h w 3"]:
    thing = dataclasses.replace(draw_object(generator, kind), colours=((0.1, 0.1, 0.1), (0.55, 0.55, 0.55)))
    white = Background(((0.0, 0.0, 0.0),) * 3, 1.0, (0.0, 0.0, 0.0), 0.0)
    grey = render(Scene((thing,), white, (1.0, 0.0, 0.0)), size).image[..., 0].astype(np.int64)
    steps = np.maximum(abs(np.diff(grey, axis=0, append=grey[-1:])), abs(np.diff(grey, axis=1, append=grey[:, -1:])))
    return np.repeat(np.where(steps > 40, 20, 255)[..., None], 3, axis=2).astype(np.uint8)


def write_classes(root: Path, drawn: Drawn, *inside: str) -> int:
    """Class folders of PNG files, in a folder `inside` the one that was named; their number."""
    for index, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
        picture_files.save(image, root, *inside, drawn.classes[label], f"{index:05d}.png")
    return len(drawn.images)


def write_in9(root: Path, count: int = COUNTS["in9"], size: int = SIZE, seed: int = SEED) -> int:
    """`VARIANT/val/CLASS/*.png`, `train/CLASS/*.png` to learn from, and the classes' map `in_to_in9.json`."""
    if count < 2 * FOREGROUNDS:
        raise UserError(f"--count must be {2 * FOREGROUNDS} or more: backgrounds come from other pictures of the same class")
    total = sum(write_classes(root, in9(variant, count, size, seed), variant, "val") for variant in IN9)
    classes = {name: [CLASSES[kind]] for kind, name in enumerate(CLASSES[:FOREGROUNDS])}
    picture_files.save_text(json.dumps({"source": "the embedded sample", "classes": classes}).encode(), root, "in_to_in9.json")
    return total + write_classes(root, in9_train(count * COUNTS["in9_train"] // COUNTS["in9"], size, seed), "train")


def write_shifted(suite: str, root: Path, count: int, size: int = SIZE, seed: int = SEED) -> int:
    """`CLASS/*.png`."""
    return write_classes(root, shifted(suite, count, size, seed))


def write_inc(root: Path, count: int = COUNTS["inc"], size: int = SIZE, seed: int = SEED) -> int:
    """`CORRUPTION/SEVERITY/CLASS/*.png`, of the pictures that the sample tests on."""
    clean, total = classification("val", count, size, seed), 0
    for name in corruptions.NAMES:
        for severity in corruptions.SEVERITIES:
            images = [corruptions.corrupt(image, name, severity, (0, index)) for index, image in enumerate(clean.images)]
            total += write_classes(root, Drawn(np.stack(images), clean.labels, clean.classes), name, str(severity))
    return total
