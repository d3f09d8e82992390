"""Scenes of the sample: objects of ten categories on textured backgrounds, drawn from a seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

SIZE = 48


SEED = 2111


SMOOTH = 2
"""Pixels are averaged over SMOOTH x SMOOTH points."""


HUE_SPREAD = 0.05
"""Standard deviation of a thing's hue around its class's, in turns; the classes are a tenth of a turn apart."""


CHROMA = (0.06, 0.16)
"""Least and most colour of a thing, as the amplitude of its channels around their grey."""


Points = np.ndarray


Colour = tuple[float, float, float]


def _polar(x: Points, y: Points) -> tuple[Points, Points]:
    return np.hypot(x, y), np.arctan2(y, x)


def _disc(x: Points, y: Points) -> Points:
    return x**2 + y**2 < 0.81


def _square(x: Points, y: Points) -> Points:
    return np.maximum(abs(x), abs(y)) < 0.78


def _triangle(x: Points, y: Points) -> Points:
    return np.maximum(y, abs(x) * 0.87 - y * 0.5) < 0.52


def _star(x: Points, y: Points) -> Points:
    r, angle = _polar(x, y)
    return r < 0.5 + 0.5 * abs(((angle * 5 / np.pi) % 2) - 1)


def _cross(x: Points, y: Points) -> Points:
    return (np.minimum(abs(x), abs(y)) < 0.34) & (np.maximum(abs(x), abs(y)) < 0.95)


def _ring(x: Points, y: Points) -> Points:
    return abs(np.hypot(x, y) - 0.7) < 0.28


def _crescent(x: Points, y: Points) -> Points:
    return (np.hypot(x, y) < 0.97) & (np.hypot(x - 0.5, y) > 0.66)


def _flower(x: Points, y: Points) -> Points:
    r, angle = _polar(x, y)
    return r < 0.7 + 0.27 * np.cos(6 * angle)


def _ellipse(x: Points, y: Points) -> Points:
    return x**2 + (y * 2.1) ** 2 < 0.95


def _hourglass(x: Points, y: Points) -> Points:
    return (abs(x) < abs(y) * 0.85 + 0.12) & (abs(y) < 0.85)


def _stripes(u: Points, v: Points) -> Points:
    return np.sin(u) > 0


def _checks(u: Points, v: Points) -> Points:
    return np.sin(u) * np.sin(v) > 0


def _dots(u: Points, v: Points) -> Points:
    return np.cos(u) + np.cos(v) > 0.75


def _rings(u: Points, v: Points) -> Points:
    return np.sin(1.2 * np.hypot(u, v)) > 0


def _zigzag(u: Points, v: Points) -> Points:
    return np.sin(1.3 * u + 2.4 * abs((v / np.pi) % 2 - 1)) > 0


def _blotches(u: Points, v: Points) -> Points:
    return np.sin(0.9 * u + 1.7 * np.sin(0.7 * v)) + np.sin(0.8 * v + 1.9 * np.sin(0.6 * u)) > 0.2


def _spokes(u: Points, v: Points) -> Points:
    return np.sin(5 * np.arctan2(v, u)) > 0


def _bricks(u: Points, v: Points) -> Points:
    row = np.floor(v / np.pi)
    return ((v / np.pi) % 1 < 0.24) | (((u / np.pi) * 0.6 + 0.5 * row) % 1 < 0.16)


def _lattice(u: Points, v: Points) -> Points:
    return (abs(np.sin(0.5 * u)) < 0.28) | (abs(np.sin(0.5 * v)) < 0.28)


def _plain(u: Points, v: Points) -> Points:
    return np.zeros_like(u, dtype=bool)


class Category(NamedTuple):
    """A class: its name, where it is (x, y -> inside), and which of its two colours a point has (u, v -> second)."""

    name: str
    shape: Callable[[Points, Points], Points]
    texture: Callable[[Points, Points], Points]


CATEGORIES = (
    Category("striped_disc", _disc, _stripes),
    Category("checked_square", _square, _checks),
    Category("dotted_triangle", _triangle, _dots),
    Category("ringed_star", _star, _rings),
    Category("zigzag_cross", _cross, _zigzag),
    Category("blotched_ring", _ring, _blotches),
    Category("bricked_crescent", _crescent, _bricks),
    Category("spoked_flower", _flower, _spokes),
    Category("latticed_ellipse", _ellipse, _lattice),
    Category("plain_hourglass", _hourglass, _plain),
)


CLASSES = tuple(kind.name for kind in CATEGORIES)


@dataclass(frozen=True)
class SceneObject:
    """One thing of a scene."""

    kind: int
    x: float
    y: float
    radius: float
    turn: float
    """Radians."""
    squeeze: float
    """Height over width, as if seen from the side."""
    frequency: float
    """Texture periods: phase in radians at the thing's edge."""
    phase: tuple[float, float]
    colours: tuple[Colour, Colour]


@dataclass(frozen=True)
class Background:
    """Three plane waves of one hue around a grey."""

    waves: tuple[tuple[float, float, float], ...]
    """Wave vector (x, y) in radians and phase, each."""
    grey: float
    tint: tuple[float, float, float]
    depth: float


@dataclass(frozen=True)
class Scene:
    """Things from back to front, what is behind them, and the light: strength and direction (x, y) of its fall-off."""

    things: tuple[SceneObject, ...]
    background: Background
    light: tuple[float, float, float]


class Picture(NamedTuple):
    """A rendered scene."""

    image: UInt8[np.ndarray, "h w 3"]
    owner: Int[np.ndarray, "h w"]
    """Index of the object that a pixel belongs to, -1 for the background."""


def draw_object(generator: np.random.Generator, kind: int, radius: tuple[float, float] = (0.55, 0.95)) -> SceneObject:
    """A thing of a class, everything else by chance."""
    size = generator.uniform(*radius)
    reach = 1.0 - 0.75 * size
    first, second = _two_colours(generator, kind)
    return SceneObject(
        kind=kind,
        x=generator.uniform(-reach, reach),
        y=generator.uniform(-reach, reach),
        radius=size,
        turn=generator.uniform(-np.pi, np.pi),
        squeeze=generator.uniform(0.75, 1.0),
        frequency=generator.uniform(11.0, 16.0),
        phase=(generator.uniform(-np.pi, np.pi), generator.uniform(-np.pi, np.pi)),
        colours=(first, second),
    )


def _two_colours(generator: np.random.Generator, kind: int) -> tuple[Colour, Colour]:
    """A dark and a bright tone of one hue, in either order. The hue is typical of the class, but neighbours overlap."""
    hue = kind / len(CATEGORIES) + HUE_SPREAD * generator.standard_normal()
    chroma = np.cos(2 * np.pi * (hue - np.arange(3) / 3)) * generator.uniform(*CHROMA)
    tones = generator.uniform(0.1, 0.4), generator.uniform(0.6, 0.9)
    pair = [_colour(tone + chroma) for tone in tones]
    if generator.random() < 0.5:
        pair.reverse()
    return pair[0], pair[1]


def _colour(channels: np.ndarray) -> Colour:
    red, green, blue = np.clip(channels, 0, 1).tolist()
    return red, green, blue


def draw_background(generator: np.random.Generator) -> Background:
    """Soft waves of low contrast."""
    waves = tuple((generator.uniform(-5, 5), generator.uniform(-5, 5), generator.uniform(-np.pi, np.pi)) for _ in range(3))
    return Background(
        waves=waves,
        grey=generator.uniform(0.35, 0.65),
        tint=tuple(generator.uniform(-0.04, 0.04, 3)),
        depth=generator.uniform(0.02, 0.08),
    )


def draw_scene(generator: np.random.Generator, kinds: Sequence[int]) -> Scene:
    """A scene with one thing for each entry of `kinds`; several are smaller and may hide parts of each other."""
    radius = (0.55, 0.95) if len(kinds) == 1 else (0.3, 0.55)
    things = tuple(draw_object(generator, kind, radius) for kind in kinds)
    light = (generator.uniform(0.8, 1.1), generator.uniform(-0.2, 0.2), generator.uniform(-0.2, 0.2))
    return Scene(things, draw_background(generator), light)


def render(scene: Scene, size: int = SIZE) -> Picture:
    """Pixels of a scene, `size` x `size`."""
    points = (np.arange(size * SMOOTH) + 0.5) / (size * SMOOTH) * 2 - 1
    x, y = np.meshgrid(points.astype(np.float32), points.astype(np.float32))
    colour = _paint_background(scene.background, x, y)
    owner = np.full(x.shape, -1)
    for number, thing in enumerate(scene.things):
        inside, painted = _paint_thing(thing, x, y)
        colour[inside] = painted
        owner[inside] = number
    strength, across, down = scene.light
    colour = np.clip(colour * (strength + across * x + down * y)[..., None], 0, 1)
    colour = colour.reshape(size, SMOOTH, size, SMOOTH, 3).mean(axis=(1, 3))
    return Picture((colour * 255 + 0.5).astype(np.uint8), owner[SMOOTH // 2 :: SMOOTH, SMOOTH // 2 :: SMOOTH])


def _paint_background(background: Background, x: Points, y: Points) -> Float[np.ndarray, "h w 3"]:
    wave = sum(np.sin(across * x + down * y + phase) for across, down, phase in background.waves)
    value = background.grey + background.depth * np.asarray(wave)
    return value[..., None] + np.array(background.tint, dtype=np.float32)


def _paint_thing(thing: SceneObject, x: Points, y: Points) -> tuple[Points, Points]:
    """Mask of the points inside the object, and their colours."""
    kind = CATEGORIES[thing.kind]
    dx, dy = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
    cos, sin = np.cos(thing.turn), np.sin(thing.turn)
    along, across = cos * dx + sin * dy, (cos * dy - sin * dx) / thing.squeeze
    inside = kind.shape(along, across)
    along, across = along[inside], across[inside]
    shift = thing.phase if kind.texture not in (_spokes, _rings) else (0.0, 0.0)
    second = kind.texture(along * thing.frequency + shift[0], across * thing.frequency + shift[1])
    return inside, np.where(second[:, None], *(np.array(colour) for colour in reversed(thing.colours)))
