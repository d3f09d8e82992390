"""The embedded sample as short clips with masks, in DAVIS-2017's layout: `python -m pretrain.sample --davis DIR`.

One to three things move, turn and change their size on a background that stays, while the light changes; they may hide
parts of each other. f frames, h w pixels.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pretrain.sample import palette, picture_files
from pretrain.sample.scene import CATEGORIES, SEED, Scene, SceneObject, draw_scene, render

SIZE = 128
COUNT = 12
FRAMES = 12
MOST_THINGS = 3
LEAST_VISIBLE = 0.02
"""Share of the first frame that every thing shows: what is not there cannot be followed."""
SPEED, SPIN, GROWTH, DIMMING = 0.045, 0.09, 0.015, 0.015
"""Most change a frame: half sides of the picture, radians, share of the radius, share of the light."""


class Clip(NamedTuple):
    """Frames and, for each pixel of each, the number of its thing from 1 up; 0 is the background."""

    name: str
    frames: UInt8[np.ndarray, "f h w 3"]
    masks: UInt8[np.ndarray, "f h w"]


class Motion(NamedTuple):
    """An object's motion per frame: translation (x, y), rotation, growth."""

    x: float
    y: float
    turn: float
    growth: float

    def of(self, thing: SceneObject, frame: int) -> SceneObject:
        """The thing after so many frames; it turns back at the picture's edge."""
        x, y = (_bounce(start + speed * frame) for start, speed in ((thing.x, self.x), (thing.y, self.y)))
        radius = thing.radius * (1 + self.growth) ** frame
        return dataclasses.replace(thing, x=x, y=y, radius=radius, turn=thing.turn + self.turn * frame)


def _bounce(place: float, edge: float = 0.85) -> float:
    """Reflected at both edges."""
    around = (place + edge) % (4 * edge)
    return min(around, 4 * edge - around) - edge


def draw(number: int, size: int = SIZE, frames: int = FRAMES, seed: int = SEED) -> Clip:
    """Clip `number`."""
    generator = np.random.default_rng([seed, 20, number])
    scene = _visible_scene(generator, size)
    limits = np.array([SPEED, SPEED, SPIN, GROWTH])
    motions = [Motion(*(limits * generator.uniform(-1, 1, 4))) for _ in scene.things]
    dimming = DIMMING * generator.uniform(-1, 1)
    pictures = []
    for frame in range(frames):
        things = tuple(motion.of(thing, frame) for motion, thing in zip(motions, scene.things, strict=True))
        strength, across, down = scene.light
        pictures.append(render(Scene(things, scene.background, (strength * (1 + dimming) ** frame, across, down)), size))
    masks = np.stack([picture.owner + 1 for picture in pictures]).astype(np.uint8)
    return Clip(f"clip_{number:03d}", np.stack([picture.image for picture in pictures]), masks)


def _visible_scene(generator: np.random.Generator, size: int) -> Scene:
    """Drawn again until every thing is to be seen."""
    while True:
        kinds = generator.choice(len(CATEGORIES), size=generator.integers(1, MOST_THINGS + 1), replace=False)
        scene = draw_scene(generator, [int(kind) for kind in kinds])
        things = tuple(dataclasses.replace(thing, radius=min(thing.radius, 0.5)) for thing in scene.things)
        scene = dataclasses.replace(scene, things=things)
        shares = np.bincount(render(scene, size).owner.ravel() + 1, minlength=len(things) + 1)[1:] / size**2
        if shares.min() >= LEAST_VISIBLE:
            return scene


def write_davis(root: Path, count: int = COUNT, size: int = SIZE, seed: int = SEED) -> int:
    """`JPEGImages/480p/CLIP/*.jpg`, `Annotations/480p/CLIP/*.png`, `ImageSets/2017/val.txt`; the number of frames."""
    names, total = [], 0
    for number in range(count):
        clip = draw(number, size, seed=seed)
        names.append(clip.name)
        for frame, (image, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            picture_files.save(image, root, "JPEGImages", "480p", clip.name, f"{frame:05d}.jpg", quality=95)
            save_mask(mask, root, "Annotations", "480p", clip.name, f"{frame:05d}.png")
        total += len(clip.frames)
    picture_files.save_text("".join(f"{name}\n" for name in names).encode(), root, "ImageSets", "2017", "val.txt")
    return total


def save_mask(mask: UInt8[np.ndarray, "h w"], folder: Path, *names: str) -> None:
    """An indexed PNG, as DAVIS has them. Raises UserError as `picture_files.save`."""
    image = Image.fromarray(mask)
    image.putpalette(palette.table())
    picture_files.save(image, folder, *names)
