"""The embedded sample as retrieval tasks: landmarks in many views, and copies that were edited.

`python -m pretrain.sample --roxford DIR` writes revisited Oxford's layout, `--copydays DIR` that of Copydays. h w pixels.
"""

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from pretrain.sample import picture_files
from pretrain.sample.scene import CATEGORIES, SEED, Scene, SceneObject, draw_background, draw_object, draw_scene, render

SIZE = 64
LANDMARKS, STRANGERS = 16, 80
VIEWS = {"easy": 4, "hard": 4, "junk": 2}
ORIGINALS = 40
STRONG = 2
"""Strongly edited copies of each original."""
QUALITIES, CUTS = (3, 15, 50), (10, 30, 50, 70)
"""Parameters of the blocks `jpegqual/N` (JPEG quality) and `crops/N` (percent of the area cut away); Copydays has nine each."""

Picture = UInt8[np.ndarray, "_ _ 3"]


class Landmarks(NamedTuple):
    """Pictures by name; for each query the numbers of those that show the same, from easy to see to hardly there."""

    names: list[str]
    images: list[Picture]
    query_names: list[str]
    queries: list[Picture]
    truth: list[dict[str, list[int]]]
    """`easy`, `hard` and `junk` of each query."""


class Copies(NamedTuple):
    """Pictures by the name of their block (`original`, `strong`, `jpegqual/3`, ...), then by file name."""

    blocks: dict[str, dict[str, Picture]]


def landmarks(count: int = LANDMARKS, size: int = SIZE, seed: int = SEED) -> Landmarks:
    """Pairs of things that stand together, seen from elsewhere; strangers show things of the same classes."""
    drawn = Landmarks([], [], [], [], [])
    for number in range(count):
        generator = np.random.default_rng([seed, 30, number])
        scene = _landmark(generator)
        drawn.query_names.append(f"query_{number:03d}")
        drawn.queries.append(render(_seen(generator, scene, "easy"), size).image)
        truth: dict[str, list[int]] = {}
        for kind, views in VIEWS.items():
            truth[kind] = list(range(len(drawn.images), len(drawn.images) + views))
            for view in range(views):
                drawn.names.append(f"landmark_{number:03d}_{kind}_{view}")
                drawn.images.append(render(_seen(generator, scene, kind), size).image)
        drawn.truth.append(truth)
    for number in range(STRANGERS * count // LANDMARKS):
        generator = np.random.default_rng([seed, 31, number])
        drawn.names.append(f"stranger_{number:03d}")
        drawn.images.append(render(_seen(generator, _landmark(generator), "easy"), size).image)
    return drawn


def _landmark(generator: np.random.Generator) -> Scene:
    kinds = generator.choice(len(CATEGORIES), size=2, replace=False)
    things = tuple(
        dataclasses.replace(draw_object(generator, int(kind), (0.45, 0.6)), x=x, y=generator.uniform(-0.3, 0.3))
        for kind, x in zip(kinds, (-0.4, 0.4), strict=True)
    )
    return Scene(things, draw_background(generator), (1.0, 0.0, 0.0))


def _seen(generator: np.random.Generator, scene: Scene, how: str) -> Scene:
    """A view: nearer or farther, turned, moved, in another light, before another background."""
    turn, update_, least, most = {"easy": (0.2, 0.1, 0.8, 1.1), "hard": (1.2, 0.3, 0.5, 1.4), "junk": (3.1, 0.6, 0.12, 0.2)}[how]
    angle, zoom = generator.uniform(-turn, turn), generator.uniform(least, most)
    shift = generator.uniform(-update_, update_, 2)
    things = [_moved(thing, angle, zoom, shift) for thing in scene.things]
    if how == "hard":  # something stands before it
        things.append(draw_object(generator, int(generator.integers(len(CATEGORIES))), (0.2, 0.3)))
    light = (generator.uniform(0.75, 1.1), *generator.uniform(-0.2, 0.2, 2).tolist())
    return Scene(tuple(things), draw_background(generator), (light[0], light[1], light[2]))


def _moved(thing: SceneObject, angle: float, zoom: float, shift: np.ndarray) -> SceneObject:
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    x, y = cos * thing.x - sin * thing.y + shift[0], sin * thing.x + cos * thing.y + shift[1]
    return dataclasses.replace(thing, x=float(x), y=float(y), radius=thing.radius * zoom, turn=thing.turn + angle)


def copies(count: int = ORIGINALS, size: int = SIZE, seed: int = SEED) -> Copies:
    """Originals of two things each, and what became of them."""
    names = ["original", "strong", *(f"jpegqual/{quality}" for quality in QUALITIES), *(f"crops/{cut}" for cut in CUTS)]
    blocks: dict[str, dict[str, Picture]] = {name: {} for name in names}
    for number in range(count):
        generator = np.random.default_rng([seed, 32, number])
        kinds = generator.integers(len(CATEGORIES), size=2)
        image = render(draw_scene(generator, [int(kind) for kind in kinds]), size).image
        name = f"{1000 + number}00.jpg"
        blocks["original"][name] = image
        for turn in range(STRONG):
            blocks["strong"][f"{1000 + number}{turn + 1:02d}.jpg"] = _strong(generator, image)
        for quality in QUALITIES:
            blocks[f"jpegqual/{quality}"][name] = _jpeg(image, quality)
        for cut in CUTS:
            blocks[f"crops/{cut}"][name] = _cut(generator, image, cut)
    return Copies(blocks)


def strangers(count: int, size: int = SIZE, seed: int = SEED) -> list[Picture]:
    """Distractors: pictures like the originals, of which there are no copies."""
    drawn = []
    for number in range(count):
        generator = np.random.default_rng([seed, 33, number])
        drawn.append(
            render(draw_scene(generator, [int(kind) for kind in generator.integers(len(CATEGORIES), size=2)]), size).image
        )
    return drawn


def _jpeg(image: Picture, quality: int) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=quality)
    return np.array(Image.open(stream, formats=["JPEG"]))


def _cut(generator: np.random.Generator, image: Picture, percent: int) -> Picture:
    side = max(round(len(image) * (1 - percent / 100) ** 0.5), 1)
    top, left = generator.integers(len(image) - side + 1, size=2)
    return image[top : top + side, left : left + side]


def _strong(generator: np.random.Generator, image: Picture) -> Picture:
    """Cut, turned, other colours, then blurred, written over or printed badly."""
    edited = Image.fromarray(_cut(generator, image, int(generator.integers(10, 50))))
    edited = edited.rotate(generator.uniform(-25, 25), Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    levels = np.asarray(edited).astype(np.float64) * generator.uniform(0.7, 1.2) * generator.uniform(0.95, 1.05, 3)
    changed = generator.integers(3)
    if changed == 0:
        levels = np.asarray(Image.fromarray(levels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5)))
    elif changed == 1:
        third = len(levels) // 3
        levels[third : third + max(len(levels) // 6, 1)] = generator.uniform(0, 255, 3)
    else:
        levels = levels + generator.normal(0, 25, levels.shape)
    return levels.clip(0, 255).astype(np.uint8)


def write_roxford(root: Path, count: int = LANDMARKS, size: int = SIZE, seed: int = SEED) -> int:
    """`roxford5k/gnd_roxford5k.pkl` and `roxford5k/jpg/*.jpg`; the number of pictures."""
    drawn = landmarks(count, size, seed)
    for names, images in ((drawn.names, drawn.images), (drawn.query_names, drawn.queries)):
        for name, image in zip(names, images, strict=True):
            picture_files.save(image, root, "roxford5k", "jpg", f"{name}.jpg", quality=95)
    truth: list[dict[str, Any]] = [{"bbx": [0.0, 0.0, float(size), float(size)], **one} for one in drawn.truth]
    content = {"gnd": truth, "imlist": drawn.names, "qimlist": drawn.query_names}
    picture_files.save_text(pickle.dumps(content, protocol=2), root, "roxford5k", "gnd_roxford5k.pkl")
    return len(drawn.names) + len(drawn.query_names)


def write_copydays(root: Path, count: int = ORIGINALS, size: int = SIZE, seed: int = SEED) -> int:
    """`original/*.jpg`, `strong/*.jpg`, `jpegqual/N/*.jpg`, `crops/N/*.jpg`; the number of pictures."""
    blocks = copies(count, size, seed).blocks
    for block, pictures in blocks.items():
        for name, image in pictures.items():
            picture_files.save(image, root, *block.split("/"), name, quality=95)
    return sum(len(pictures) for pictures in blocks.values())
