"""Pictures on disk: PNG files, and one HTML page that shows them with their captions.

h w pixels.
"""

import io
import os
import struct
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
from probes.report import page as report_page
from probes.report.page import Section

MAP = "cividis"
"""Colours of a quantity: even steps of lightness, alike for colour-blind eyes."""
DPI = 110
WIDER = 1.4
"""How much larger than its file a picture of the page may be shown."""


class Shown(NamedTuple):
    """One picture of the page."""

    name: str
    """File name without folder and suffix."""
    content: Figure | Image.Image | list[Image.Image]
    """Several images are the frames of an animated PNG."""
    caption: str


POLICY = report_page.POLICY.replace("img-src data:", "img-src 'self' file: data:")
"""The pictures lie beside the page."""


def hang(folder: Path, title: str, notes: Sequence[str], pictures: Sequence[Shown]) -> Path:
    """Write all of them and `index.html`; the page's path. Raises UserError where the folder cannot be written."""
    figures = []
    try:
        for picture in pictures:
            content = encode(picture)
            store.write_bytes(places.below(folder, f"{picture.name}.png"), content)
            figures.append(_figure(picture, content))
        section = Section("pictures", "Pictures", f'<div class="gallery">{"".join(figures)}</div>')
        foot = report_page.written_by("probes.visualize")
        page = report_page.document(title, " ".join(notes), [section], foot, policy=POLICY)
        store.write_bytes(folder / "index.html", page.encode())
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({os.strerror(error.errno or 0)}): give another --out") from error
    return folder / "index.html"


def _figure(picture: Shown, content: bytes) -> str:
    """HTML of a picture, as wide as it is or somewhat wider, so that a row is filled."""
    width, height = struct.unpack(">II", content[16:24])  # of a PNG's header
    caption, file = escape.html(picture.caption), f"{quote(picture.name)}.png"
    size = f'style="flex: 1 1 {width}px; max-width: min(100%, {round(WIDER * width)}px)"'
    shown = f'<img src="{file}" alt="{caption}" width="{width}" height="{height}">'
    return f"<figure {size}>{shown}<figcaption>{caption}</figcaption></figure>"


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
