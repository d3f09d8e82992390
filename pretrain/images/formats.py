"""The door to picture files: which formats are opened, and what decoding one may take.

A file's first bytes say what it is, never its name, and nothing but FORMATS is looked at: Pillow knows forty more, one of which
starts Ghostscript. What decoding will take at its height is worked out from the header, before anything is decoded.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from checkpoints import reading

SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .jif .mpo .png .apng .webp .tif .tiff .bmp .ppm .pgm .pbm .pnm .gif .npy".split())
"""Suffixes of the formats that are read, and of arrays; a file's first bytes decide its format."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
"""Pillow's names. JPEG includes the several pictures (MPO) that cameras put into one file, of which the first is taken."""
MOST_PIXELS = 1 << 27
"""Width x height. A file that claims more (134 megapixels) is taken for a decompression bomb, before anything is decoded."""
MOST_BYTES = 1 << 30
"""Largest memory for one picture, in each process that decodes, besides its file (which may be as large): 1 GiB is a JPEG of
107 megapixels with all copies that are made on the way to an array."""
MOST_SCANS = 16 * MOST_PIXELS
"""Pixels x scans of a JPEG: each scan goes over the whole picture. Progressive files have about ten, hostile ones thousands."""

NARROW, WIDE = {"1": 1, "L": 1, "P": 1}, {"I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2, "I": 4, "F": 4}
"""Bytes of a pixel in Pillow's memory, where it is not 4 (RGB too)."""
TO_RGB, TO_BANDS, FROM_WIDE = 10, 12, 13
"""Bytes a pixel at the height of the conversion to an array: 4 and two copies of 3, or of 4; floats of 16 and 32 bit."""
IN_WEBP = 13
"""Bytes a pixel in libwebp: two canvases, a frame given out, and its own work; they are there as long as the picture is open."""


class BadImage(Exception):
    """An image that cannot be used; the message says why."""


def reason(error: BaseException) -> str:
    """An error as a few words."""
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def read_file(path: str | Path) -> bytes:
    """A picture file's bytes. Raises BadImage for what is no regular file (a device has no end), and for too large a one."""
    try:
        with reading.opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            check_size(size)
            return file.read(size)
    except OSError as error:
        raise BadImage(error.strerror or reason(error)) from error


def check_size(size: int) -> None:
    """Raises BadImage for a file that is larger than MOST_BYTES."""
    if size > MOST_BYTES:
        raise BadImage(f"too large: a file of {size} bytes")


def afford(needed: int) -> None:
    """Raises BadImage where decoding would need more than MOST_BYTES."""
    if needed > MOST_BYTES:
        raise BadImage(f"too large: decoding it needs {needed / 2**20:.0f} MiB of memory, more than {MOST_BYTES >> 20}")


def open_picture(content: bytes, *, smallest: int = 1) -> Image.Image:
    """A picture of which only the header has been read. A JPEG may be decoded at 1/`smallest` of its size.

    Raises BadImage for what is none of FORMATS, and for what would be too large.
    """
    check_size(len(content))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of sizes, which are judged here
            image = _pillow_open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"too large: {reason(error)}") from error
    except Image.UnidentifiedImageError:
        raise BadImage("no image") from None
    except Exception as error:  # broken bytes make Pillow raise almost anything
        raise BadImage(reason(error)) from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BadImage(f"too large: {width} x {height} pixels")
    if not width * height:
        raise BadImage("no pixels")
    scans = content.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 0
    if width * height * scans > MOST_SCANS:
        raise BadImage(f"too large: {scans} scans of {width} x {height} pixels")
    afford(memory(image, reduction=smallest if image.format == "JPEG" else 1))
    return image


_pillow_open: Any = Image.open


def load_stored(content: bytes) -> Image.Image:
    """A picture's pixels as they are stored: label maps are palettes or numbers. Raises BadImage."""
    image = open_picture(content)
    try:
        image.load()
    except Exception as error:
        raise BadImage(reason(error)) from error
    return image


def memory(image: Image.Image, channels: int = 3, reduction: int = 1) -> int:
    """Bytes at the height of decoding and of making an array of `channels`; an upper bound, from what the header says."""
    width, height = image.size
    pixels = -(-width // reduction) * -(-height // reduction)
    each = (NARROW | WIDE).get(image.mode, 4)
    grey = each + 3 if channels == 1 else TO_BANDS
    after = FROM_WIDE if image.mode in WIDE else TO_RGB if channels == 3 else grey
    return max(pixels * each + _of_decoder(image), pixels * after)


def memory_of_array(size: int, dtype: np.dtype) -> int:
    """Bytes at the height of reading an array of `size` bytes and making pixels of it: it, and a copy or floats of it."""
    elements = size // max(dtype.itemsize, 1)
    return size + (size if dtype == np.uint8 else 5 * elements)  # 4, and a byte each that says whether it is finite


def _of_decoder(image: Image.Image) -> int:
    """Bytes that a decoder holds besides the pixels it fills."""
    area = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        return area * 2 * len(image.getbands())  # coefficients: of the whole picture where there are several scans
    if image.format == "WEBP":
        return area * IN_WEBP
    if image.format == "TIFF":
        return _of_tiff(image)
    if image.format in ("PPM", "BMP"):
        return area * 2 * len(image.getbands())  # plain numbers, run lengths
    return area if image.format == "GIF" else 0


def _of_tiff(image: Image.Image) -> int:
    """A strip or tile, unpacked; a file may name any size for them."""
    tags: Any = getattr(image, "tag_v2", {})
    width, height = image.size
    bits, samples = tags.get(258, (1,)), int(tags.get(277, 1))
    across, down = int(tags.get(322, width)), int(tags.get(323, min(int(tags.get(278, height)), height)))
    return across * down * samples * (max(int(each) for each in bits) + 7) // 8


@contextmanager
def guarded() -> Iterator[None]:
    """While it lasts, Pillow's `open` is this file's: for libraries that open pictures themselves."""

    def through_here(fp: Any, mode: str = "r", formats: Any = None) -> Image.Image:
        return open_picture(fp.read() if hasattr(fp, "read") else read_file(fp))

    pillow: Any = Image
    before, pillow.open = pillow.open, through_here
    try:
        yield
    finally:
        pillow.open = before
