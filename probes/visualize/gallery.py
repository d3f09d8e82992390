"""Pictures on disk: PNG files, and one HTML page that shows them with their captions.

h w pixels.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from checkpoints import escape, fonts, places, store
from checkpoints.cli import UserError
from checkpoints.figures import Axes, Figure, mpl
from pretrain.sample.palette import COLOURS

MAP = "cividis"
"""Colours of a quantity: even steps of lightness, alike for colour-blind eyes."""
DPI = 110


class Shown(NamedTuple):
    """One picture of the page."""

    name: str
    """File name without folder and suffix."""
    content: Figure | Image.Image | list[Image.Image]
    """Several images are the frames of an animated PNG."""
    caption: str


STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
figure { margin: 2rem 0; } img { max-width: 100%; image-rendering: pixelated; } figcaption { color: #444; }"""


def hang(folder: Path, title: str, notes: Sequence[str], pictures: Sequence[Shown]) -> Path:
    """Write all of them and `index.html`; the page's path. Raises UserError where the folder cannot be written."""
    figures = []
    try:
        for picture in pictures:
            store.write_bytes(places.below(folder, f"{picture.name}.png"), encode(picture))
            caption = escape.html(picture.caption)
            figures.append(
                f'<figure><img src="{quote(picture.name)}.png" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
            )
        words = "".join(f"<p>{escape.html(note)}</p>" for note in notes)
        head = f'<meta charset="utf-8"><title>{escape.html(title)}</title><style>{STYLE}</style>'
        body = f"<h1>{escape.html(title)}</h1>{words}{''.join(figures)}"
        page = f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>"
        store.write_bytes(folder / "index.html", page.encode())
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({os.strerror(error.errno or 0)}): give another --out") from error
    return folder / "index.html"


def encode(picture: Shown) -> bytes:
    """A picture as PNG, its caption in the file's metadata."""
    stream = io.BytesIO()
    if isinstance(picture.content, Figure):
        mpl.use("agg")
        picture.content.savefig(stream, format="png", dpi=DPI, metadata={"Description": escape.terminal(picture.caption)})
    elif isinstance(picture.content, list):
        first, *rest = picture.content
        first.save(stream, "png", save_all=True, append_images=rest, duration=150, loop=0)
    else:
        picture.content.save(stream, "png")
    return stream.getvalue()


def panels(count: int, title: str, columns: int = 8, side: float = 1.6) -> tuple[Figure, list[Axes]]:
    """A figure with so many bare panels, row by row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(side * columns, (side + 0.25) * rows + 0.3), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in axes:
        panel.set_axis_off()
    figure.suptitle(fonts.label(title), fontsize=8)
    return figure, axes


def picture(panel: Axes, image: np.ndarray, title: str = "", **how: Any) -> None:
    """An image [h, w, 3], or a map [h, w] in colours of quantity."""
    panel.imshow(image, **({"cmap": MAP} | how if image.ndim == 2 else how))
    panel.set_title(fonts.label(title), fontsize=7)


def blown_up(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map on the grid of patches [gh, gw, ...] at the size of its picture, by nearest neighbour."""
    return small.repeat(-(-height // len(small)), axis=0)[:height].repeat(-(-width // small.shape[1]), axis=1)[:, :width]


def unit_colours(count: int) -> Float[np.ndarray, "count 3"]:
    """Colours of so many things, from 0 to 1."""
    return np.array([COLOURS[1 + number % (len(COLOURS) - 1)] for number in range(count)]) / 255


def paint(image: UInt8[np.ndarray, "h w 3"], strength: Float[np.ndarray, "things h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A grey image with each thing's colour where it is the strongest, as far as it is strong (0 to 1)."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.6 + 90
    strongest = strength.argmax(axis=0)
    colour, how_much = unit_colours(len(strength))[strongest] * 255, strength.max(axis=0)[..., None]
    return (grey * (1 - how_much) + colour * how_much).clip(0, 255).astype(np.uint8)


def hang_one(path: Path, picture: Shown) -> None:
    """Write one picture without a page. Raises UserError where it cannot be written."""
    try:
        store.write_bytes(path, encode(picture))
    except OSError as error:
        raise UserError(f"cannot write {path} ({os.strerror(error.errno or 0)}): give another --out") from error
