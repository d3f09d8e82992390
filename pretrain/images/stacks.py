"""TIFFs that Pillow does not read whole: of several pages, of other than one and three channels, of planes of 16 bit."""

import io
import logging
import zlib
from typing import Any

import numpy as np
import tifffile

from pretrain.images.formats import MOST_BYTES, BadImage, afford, check_size, memory_of_array, reason

MOST_PAGES = 4096
"""Pages are channels; each is an object, made before anything can be judged."""
PLAIN, LZW, PACKBITS, DEFLATE = 1, 5, 32773, frozenset({8, 32946})
PACKED = frozenset({PLAIN, LZW, PACKBITS}) | DEFLATE
"""Accepted compressions of pixels. tifffile hands others to a library that knows dozens of formats."""
DEFLATE_RATIO, PACKBITS_RATIO = 1032, 64
"""The most that a byte can be unpacked to: zlib's documentation; TIFF 6.0, section 9 (128 equal bytes are two)."""
PIECE = 1 << 20
UNKNOWN_TO_PILLOW = frozenset({"int8", "int64", "uint64", "float16", "float64"})
PLANES = 2
"""TIFF's planar configuration with one plane a channel."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it says a line for each fault of a file, with the file's own words


TURNS: dict[int, tuple[bool, bool, bool]] = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""Orientation -> whether rows and columns are exchanged, then whether rows are mirrored, then columns (TIFF 6.0, page 36)."""


def is_for_here(content: bytes, channels: int, *, deep: bool) -> bool:
    """Whether Pillow would not give the whole of this TIFF. `deep`: its 16-bit colours are wanted as they are stored.

    Pillow takes the first of several pages, cannot read colours of more than 16 bit, and mistakes planes of 16 bit. Where the
    file cannot be read here, Pillow may still know it. Raises BadImage for too many pages.
    """
    check_size(len(content))
    if channels not in (1, 3):
        return True
    try:
        with _opened(content) as file:
            page = file.pages[0].keyframe
            planes = int(page.planarconfig) == PLANES
            colours = page.samplesperpixel > 1 and page.bitspersample > 8
            odd = page.dtype is not None and page.dtype.name in UNKNOWN_TO_PILLOW
            return len(file.series[0].pages) > 1 or odd or (colours and (planes or deep or page.bitspersample > 16))
    except BadImage:
        raise
    except Exception:
        return False


def read_tiff(content: bytes) -> np.ndarray:
    """A TIFF with any number of channels, or with one page a channel, upright. Raises BadImage."""
    check_size(len(content))
    try:
        with _opened(content) as file:
            series = file.series[0]
            largest = max(_check_page(page, content) for page in series.pages if page is not None)
            afford(memory_of_array(series.nbytes, series.dtype) + largest)
            orientation = series.keyframe.tags.valueof(274, default=1)
            return _upright(series.asarray(maxworkers=1), series.axes, orientation)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(reason(error)) from error


def _upright(array: np.ndarray, axes: str, orientation: Any) -> np.ndarray:
    """Turned by its orientation; planes of one page become the last axis, pages stay the first."""
    if "Y" not in axes or "X" not in axes:
        return array
    if "S" in axes:
        array, axes = np.moveaxis(array, axes.index("S"), -1), axes.replace("S", "") + "S"
    row, column = axes.index("Y"), axes.index("X")
    swapped, mirror_rows, mirror_columns = TURNS.get(orientation, TURNS[1])
    if swapped:
        array = array.swapaxes(row, column)
    turned = tuple(axis for axis, mirrored in ((row, mirror_rows), (column, mirror_columns)) if mirrored)
    return np.flip(array, turned)


def _opened(content: bytes) -> tifffile.TiffFile:
    """No other file is read, though OME's metadata may name some. Raises BadImage for too many pages."""
    file = tifffile.TiffFile(io.BytesIO(content), _multifile=False)
    if len(file.pages) > MOST_PAGES:
        raise BadImage(f"it has more than {MOST_PAGES} pages")
    return file


def _check_page(page: Any, content: bytes) -> int:
    """Bytes that unpacking one of its strips or tiles takes. Raises BadImage for a compression that is not PACKED."""
    page = page.keyframe
    if page.compression not in PACKED:
        raise BadImage(f"its compression ({page.compression}) is none of those that are read: none, LZW, deflate, PackBits")
    if page.compression == PLAIN:
        return 0
    if page.compression == PACKBITS:
        afford(max(page.databytecounts) * PACKBITS_RATIO)
    if page.compression in DEFLATE:
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            _check_deflated(content[offset : offset + size])
    return 2 * int(np.prod(page.chunks, dtype=object)) * page.dtype.itemsize


def _check_deflated(packed: bytes) -> None:
    """Python's zlib unpacks all there is, whatever the header says. Raises BadImage where that is too much."""
    if len(packed) * DEFLATE_RATIO <= MOST_BYTES:
        return
    inflate, total = zlib.decompressobj(), 0
    while packed and not inflate.eof:
        total += len(inflate.decompress(packed, PIECE))
        afford(total)
        packed = inflate.unconsumed_tail
