"""Bytes to pixels: JPEG, PNG, WebP, TIFF, GIF, BMP, PPM and `.npy`, upright, with the channels that are asked for, or BadImage.

h w pixels, c channels. Three channels are always 8 bit, converted as the original does (`convert("RGB")`: alpha is dropped);
any other number is taken as it is stored, 8 bit or float32 in 0..1.
"""

import contextlib
import io
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

from pretrain.images.formats import BadImage, afford, check_size, memory, memory_of_array, open_picture, reason
from pretrain.images.stacks import is_for_here, read_tiff
from pretrain.images.values import ValueRange, to_unit

REDUCTIONS = (8, 4, 2)
"""Factors by which a JPEG can be reduced while it is decoded."""
NUMPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

Pixels = UInt8[np.ndarray, "h w c"] | Float[np.ndarray, "h w c"]


class LazyImage:
    """An image of which only the header has been read, or an array."""

    def __init__(self, content: bytes | np.ndarray | Image.Image, channels: int = 3, value_range: ValueRange = ()) -> None:
        """`value_range` is what becomes 0 and 1 where values have more than 8 bit; nothing is the rule of their type.

        Raises BadImage for what is no image, or too large to be one.
        """
        self._channels, self._range = channels, value_range
        self._array: np.ndarray | None = None
        self._image: Image.Image | None = None
        try:
            found = self._open(content)
        except BadImage:
            raise
        except Exception as error:  # broken bytes make the libraries raise almost anything
            raise BadImage(reason(error)) from error
        if isinstance(found, np.ndarray):
            self._array = found
            self.height, self.width = found.shape[:2]
        else:
            self._image, self._orientation = found, _orientation(found)
            turned = self._orientation in TURNED and found.format != "TIFF"  # Pillow turns a TIFF by itself, its size too
            self.width, self.height = found.size[::-1] if turned else found.size

    def _open(self, content: bytes | np.ndarray | Image.Image) -> Pixels | Image.Image:
        if isinstance(content, np.ndarray):
            return _as_pixels(content, self._channels, self._range)
        if isinstance(content, Image.Image):
            afford(memory(content, self._channels))
            return content
        if not content:
            raise BadImage("empty file")
        if content.startswith(NUMPY_MAGIC):
            return _as_pixels(_read_numpy(content), self._channels, self._range)
        if content.startswith(TIFF_MAGIC) and is_for_here(content, self._channels, deep=bool(self._range)):
            return _as_pixels(read_tiff(content), self._channels, self._range)
        return _read_header(content)

    def pixels(self, reduction: int = 1) -> Pixels:
        """The pixels upright [h, w, c].

        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size where `reduction` allows at least that; anything else comes
        whole. Raises BadImage where decoding fails.
        """
        if self._array is None:
            try:
                self._array = self._decoded(reduction)
            except BadImage:
                raise
            except Exception as error:  # broken bytes make Pillow raise almost anything
                raise BadImage(reason(error)) from error
        return self._array

    def _decoded(self, reduction: int) -> Pixels:
        image, self._image = self._image, None  # each copy on the way is let go as soon as the next is made
        assert image is not None
        factor = 1
        if reduction >= min(REDUCTIONS) and image.format == "JPEG":
            factor = next(factor for factor in REDUCTIONS if factor <= reduction)
        afford(memory(image, self._channels, factor))
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        image.load()
        if image.format == "WEBP":
            image = image.copy()  # Pillow's keeps its decoder, of two pictures' size
        if self._orientation > 1:
            image = ImageOps.exif_transpose(image)
        image = _converted(image, self._channels, self._range)
        array = _to_array(image, self._channels, self._range)
        if factor == 1 and array.shape[:2] != (self.height, self.width):  # crops were drawn for the size that was known
            raise BadImage(f"its header promises {self.width} x {self.height} pixels, it has {array.shape[1]} x {array.shape[0]}")
        return array


def decode(content: bytes, channels: int = 3, value_range: ValueRange = ()) -> Pixels:
    """The pixels of a whole file [h, w, c]. Raises BadImage."""
    return LazyImage(content, channels, value_range).pixels()


def as_stored(content: bytes | np.ndarray | Image.Image) -> np.ndarray:
    """The numbers of a file as they stand in it, in whatever shape. Raises BadImage."""
    try:
        if isinstance(content, bytes) and content.startswith(NUMPY_MAGIC):
            return _read_numpy(content)
        if isinstance(content, bytes) and content.startswith(TIFF_MAGIC):
            with contextlib.suppress(BadImage):  # compressed as only Pillow reads it
                return read_tiff(content)
        if isinstance(content, np.ndarray):
            return content
        return np.asarray(_read_header(content) if isinstance(content, bytes) else content)
    except BadImage:
        raise
    except Exception as error:  # broken bytes make the libraries raise almost anything
        raise BadImage(reason(error)) from error


def _read_header(content: bytes) -> Image.Image:
    """Raises BadImage for what is no image and for what would be too large a one."""
    image = open_picture(content, smallest=max(REDUCTIONS))
    if image.format == "PNG":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.verify()  # the checksums, which decoding leaves out
        return open_picture(content)
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    except Exception:  # a damaged EXIF block does not make the pixels bad
        return 1


def _is_wide(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _converted(image: Image.Image, channels: int, value_range: ValueRange) -> Image.Image:
    """The image in the mode that `_to_array` takes."""
    if channels == 3:
        if _is_wide(image):
            levels = to_unit(np.asarray(image), value_range)
            levels *= 255
            levels += 0.5
            image = Image.fromarray(levels.clip(0, 255, out=levels).astype(np.uint8))
        return image if image.mode == "RGB" else _to_rgb(image)
    if _is_wide(image):
        return image
    if channels == 1 or image.mode == "1":
        return image.convert("L")
    if image.mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image


def _to_array(image: Image.Image, channels: int, value_range: ValueRange) -> np.ndarray:
    if channels == 3:
        return np.array(image)  # torch wants arrays that may be written
    return _as_pixels(np.asarray(image), channels, value_range)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow asks for this step
    return image.convert("RGB")


def _as_pixels(array: np.ndarray, channels: int, value_range: ValueRange) -> np.ndarray:
    """[h, w], [h, w, c] or [c, h, w] as [h, w, c], 8 bit as it is, else float32 in 0..1. Raises BadImage for anything else."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] != channels and array.shape[0] == channels:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != channels:
        raise BadImage(f"its shape is {list(array.shape)}, not height x width x {channels} channels")
    if not array.size:
        raise BadImage("no pixels")
    return np.ascontiguousarray(array if array.dtype == np.uint8 else to_unit(array, value_range))


def _read_numpy(content: bytes) -> np.ndarray:
    """A `.npy` array, no larger than the file says and never a pickle. Raises BadImage."""
    check_size(len(content))
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        size = int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize
        if size != len(content) - stream.tell():
            raise BadImage(f"its header promises {size} bytes, it has {len(content) - stream.tell()}")
        afford(memory_of_array(size, dtype))
        return np.load(io.BytesIO(content), allow_pickle=False)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(reason(error)) from error
