"""TIFFs that Pillow does not read whole: of several pages, or of other than one and three channels."""

import io
import logging
import zlib
from typing import Any

import numpy as np
import tifffile

from pretrain.formats import MOST_BYTES, BadImage, afford, check_size, memory_of_array, reason

MOST_PAGES = 4096
"""Pages are channels; each is an object, made before anything can be judged."""
PLAIN, LZW, PACKBITS, DEFLATE = 1, 5, 32773, frozenset({8, 32946})
PACKED = frozenset({PLAIN, LZW, PACKBITS}) | DEFLATE
"""How the pixels may be compressed. tifffile hands others to a library that knows dozens of formats."""
DEFLATE_RATIO, PACKBITS_RATIO = 1032, 64
"""The most that a byte can be unpacked to: zlib's documentation; TIFF 6.0, section 9 (128 equal bytes are two)."""
PIECE = 1 << 20

logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)  # it says a line for each fault of a file, with the file's own words


def pages(content: bytes) -> int:
    """Pages that belong together, as channels or a stack do; 1 where that cannot be read. Raises BadImage for too many."""
    check_size(len(content))
    try:
        with _opened(content) as file:
            return len(file.series[0].pages)
    except BadImage:
        raise
    except Exception:  # Pillow may still know it
        return 1


def read_tiff(content: bytes) -> np.ndarray:
    """A TIFF with any number of channels, or with one page a channel. Raises BadImage."""
    check_size(len(content))
    try:
        with _opened(content) as file:
            series = file.series[0]
            largest = max(_check_page(page, content) for page in series.pages if page is not None)
            afford(memory_of_array(series.nbytes, series.dtype) + largest)
            return series.asarray(maxworkers=1)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(reason(error)) from error


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
