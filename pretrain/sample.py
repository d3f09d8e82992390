"""The embedded data set: a small world of textured things on unrelated textured backgrounds, drawn from a seed.

A scene is a plain description (things, background, light); `render` turns it into pixels and says which pixel belongs to
which thing. The class of a thing is its shape with its texture, and loosely its hue; place, size, turn, tone, background
and light tell nothing about it. Every layout the project reads can be drawn from the same scenes.

`python -m pretrain.sample --show` draws a contact sheet, `--out DIR` writes class folders of PNG files.

h w pixels; coordinates run from -1 to 1, x to the right, y down.
"""

import functools
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from checkpoints import store, terminal
from checkpoints.command import UserError, parse, run_command

SIZE = 48
COUNTS = {"train": 6000, "val": 1000}
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


class Kind(NamedTuple):
    """A class: its name, where it is (x, y -> inside), and which of its two colours a point has (u, v -> second)."""

    name: str
    shape: Callable[[Points, Points], Points]
    texture: Callable[[Points, Points], Points]


KINDS = (
    Kind("striped_disc", _disc, _stripes),
    Kind("checked_square", _square, _checks),
    Kind("dotted_triangle", _triangle, _dots),
    Kind("ringed_star", _star, _rings),
    Kind("zigzag_cross", _cross, _zigzag),
    Kind("blotched_ring", _ring, _blotches),
    Kind("bricked_crescent", _crescent, _bricks),
    Kind("spoked_flower", _flower, _spokes),
    Kind("latticed_ellipse", _ellipse, _lattice),
    Kind("plain_hourglass", _hourglass, _plain),
)
CLASSES = tuple(kind.name for kind in KINDS)


@dataclass(frozen=True)
class Thing:
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

    things: tuple[Thing, ...]
    background: Background
    light: tuple[float, float, float]


class Picture(NamedTuple):
    """A rendered scene."""

    image: UInt8[np.ndarray, "h w 3"]
    owner: Int[np.ndarray, "h w"]
    """Which thing a pixel belongs to, -1 for the background."""


def draw_thing(generator: np.random.Generator, kind: int, radius: tuple[float, float] = (0.55, 0.95)) -> Thing:
    """A thing of a class, everything else by chance."""
    size = generator.uniform(*radius)
    reach = 1.0 - 0.75 * size
    first, second = _two_colours(generator, kind)
    return Thing(
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
    hue = kind / len(KINDS) + HUE_SPREAD * generator.standard_normal()
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
    things = tuple(draw_thing(generator, kind, radius) for kind in kinds)
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


def _paint_thing(thing: Thing, x: Points, y: Points) -> tuple[Points, Points]:
    """Which points lie inside, and the colours of these."""
    kind = KINDS[thing.kind]
    dx, dy = (x - thing.x) / thing.radius, (y - thing.y) / thing.radius
    cos, sin = np.cos(thing.turn), np.sin(thing.turn)
    along, across = cos * dx + sin * dy, (cos * dy - sin * dx) / thing.squeeze
    inside = kind.shape(along, across)
    along, across = along[inside], across[inside]
    shift = thing.phase if kind.texture not in (_spokes, _rings) else (0.0, 0.0)
    second = kind.texture(along * thing.frequency + shift[0], across * thing.frequency + shift[1])
    return inside, np.where(second[:, None], *(np.array(colour) for colour in reversed(thing.colours)))


class Drawn(NamedTuple):
    """The classification part: one thing an image."""

    images: UInt8[np.ndarray, "count h w 3"]
    labels: Int[np.ndarray, " count"]
    classes: tuple[str, ...]


@functools.cache
def classification(part: str, count: int | None = None, size: int = SIZE, seed: int = SEED) -> Drawn:
    """Images of one thing each, classes in equal numbers. `part` is `train` or `val`."""
    number = COUNTS[part] if count is None else count
    labels = np.arange(number) % len(KINDS)
    images = np.empty((number, size, size, 3), dtype=np.uint8)
    for index, label in enumerate(labels):
        generator = np.random.default_rng([seed, list(COUNTS).index(part), index])
        images[index] = render(draw_scene(generator, [int(label)]), size).image
    return Drawn(images, labels, CLASSES)


@dataclass(frozen=True)
class Options:
    """Draw the embedded sample: as class folders of PNG files, in the layouts of dense tasks, as one contact sheet."""

    out: Path | None = None
    """Folder to write train/CLASS/*.png and val/CLASS/*.png to."""
    show: Path | None = None
    """PNG file for a contact sheet, one row a class. Without a file name: sample.png."""
    coco: Path | None = None
    """Folder to write COCO's layout to: one to four things an image, with boxes and masks."""
    ade20k: Path | None = None
    """Folder to write ADE20K's layout to: the same with label maps."""
    davis: Path | None = None
    """Folder to write DAVIS-2017's layout to: short clips with masks."""
    roxford: Path | None = None
    """Folder to write revisited Oxford's layout to: landmarks in many views."""
    copydays: Path | None = None
    """Folder to write Copydays' layout to: originals and edited copies."""
    in9: Path | None = None
    """Folder to write ImageNet-9's layout to: foregrounds and backgrounds apart and mixed, and images to learn from."""
    ina: Path | None = None
    """Folder to write ImageNet-A's layout to: small, dim, half hidden things."""
    inr: Path | None = None
    """Folder to write ImageNet-R's layout to: things in any colours."""
    sketch: Path | None = None
    """Folder to write ImageNet-Sketch's layout to: black lines on white."""
    inc: Path | None = None
    """Folder to write ImageNet-C's layout to: nineteen corruptions in five strengths."""
    size: int | None = None
    """Pixels of an image's side (default: 48; dense tasks and clips 128, retrieval 64)."""
    count: int | None = None
    """Images in each part (default: 6000 to train, 1000 to validate; dense tasks 800 and 200), or
    clips (12), landmarks (16), originals of copies (40),
    variants (450 and 200)."""
    seed: int = SEED
    """Another seed is another draw of the same world."""


TARGETS = ("out", "coco", "ade20k", "davis", "roxford", "copydays", "in9", "ina", "inr", "sketch", "inc", "show")
"""Options that say what to write."""


def write_folders(options: Options, out: Path) -> int:
    """Write both parts as class folders; the number of files."""
    total = 0
    for part in COUNTS:
        drawn = classification(part, options.count, options.size or SIZE, options.seed)
        for index, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
            path = out / part / drawn.classes[label] / f"{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        total += len(drawn.images)
    return total


def contact_sheet(images: UInt8[np.ndarray, "count h w 3"], columns: int, gap: int = 2) -> Image.Image:
    """Images row by row on white."""
    size = images.shape[1] + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * size + gap, columns * size + gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * size + gap, (index % columns) * size + gap
        sheet[top : top + len(image), left : left + len(image)] = image
    return Image.fromarray(sheet)


def _name_the_sheet(arguments: Sequence[str]) -> list[str]:
    """`--show` alone means `--show sample.png`."""
    words = list(arguments)
    for at, word in reversed(list(enumerate(words))):
        if word == "--show" and (at + 1 == len(words) or words[at + 1].startswith("--")):
            words.insert(at + 1, "sample.png")
    return words


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, _name_the_sheet(arguments), prog="python -m pretrain.sample")
    if not any(getattr(options, name) for name in TARGETS):
        raise UserError(f"nothing to do: give --{' DIR, --'.join(TARGETS[:-1])} DIR, --show FILE.png, or several")
    if (options.size or SIZE) < 8 or (options.count is not None and options.count < len(KINDS)):
        raise UserError(f"--size must be 8 or more and --count {len(KINDS)} or more")
    if options.out is not None:
        terminal.say(f"{write_folders(options, options.out)} images written to {options.out}")
    write_dense(options)
    write_variants(options)
    if options.show is not None:
        columns = 12
        drawn = classification("train", columns * len(KINDS), options.size or SIZE, options.seed)
        by_class = np.argsort(drawn.labels, kind="stable")
        stream, kind = io.BytesIO(), Image.registered_extensions().get(options.show.suffix.lower())
        if kind is None:
            raise UserError(f"--show {options.show}: give a file that ends in .png, .jpg or .webp")
        contact_sheet(drawn.images[by_class], columns).save(stream, kind)
        store.write_bytes(options.show, stream.getvalue())
        terminal.say(f"contact sheet written to {options.show}: rows are {', '.join(CLASSES)}")


def write_dense(options: Options) -> None:
    """Write the layouts of dense tasks that are asked for."""
    from pretrain import sample_dense  # noqa: PLC0415 (it draws with this file)

    counts = sample_dense.COUNTS if options.count is None else dict.fromkeys(COUNTS, options.count)
    for folder, write in ((options.coco, sample_dense.write_coco), (options.ade20k, sample_dense.write_ade20k)):
        if folder is not None:
            write(folder, counts, options.size or sample_dense.SIZE, options.seed)
            terminal.say(f"{sum(counts.values())} images written to {folder}")


def write_variants(options: Options) -> None:
    """Write the layouts of the frozen tests that are asked for."""
    from pretrain import sample_clips, sample_pairs, sample_variants  # noqa: PLC0415 (they draw with this file)

    usual = sample_variants.COUNTS
    writers: list[tuple[Path | None, Callable[[Path, int, int, int], int], int, int]] = [
        (options.davis, sample_clips.write_davis, sample_clips.COUNT, sample_clips.SIZE),
        (options.roxford, sample_pairs.write_roxford, sample_pairs.LANDMARKS, sample_pairs.SIZE),
        (options.copydays, sample_pairs.write_copydays, sample_pairs.ORIGINALS, sample_pairs.SIZE),
        (options.in9, sample_variants.write_in9, usual["in9"], SIZE),
        (options.ina, functools.partial(sample_variants.write_shifted, "ina"), usual["ina"], SIZE),
        (options.inr, functools.partial(sample_variants.write_shifted, "inr"), usual["inr"], SIZE),
        (options.sketch, functools.partial(sample_variants.write_shifted, "sketch"), usual["sketch"], SIZE),
        (options.inc, sample_variants.write_inc, usual["inc"], SIZE),
    ]
    for folder, write, count, size in writers:
        if folder is not None:
            terminal.say(
                f"{write(folder, options.count or count, options.size or size, options.seed)} images written to {folder}"
            )


if __name__ == "__main__":
    sys.exit(run_command(main))
