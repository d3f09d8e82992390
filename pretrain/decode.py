"""Bytes to pixels: JPEG, PNG, WebP, TIFF, GIF, BMP and `.npy`, upright, with the channels that are asked for, or BadImage.

h w pixels, c channels. Three channels are always 8 bit, converted as the original does (`convert("RGB")`: alpha is dropped);
any other number is taken as it is stored, 8 bit or float32 in 0..1.
"""

import io
import warnings
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

MOST_PIXELS = 1 << 27
"""Width x height. A file that claims more (134 megapixels) is taken for a decompression bomb, before anything is decoded."""
REDUCTIONS = (8, 4, 2)
"""What a JPEG can be shrunk by while it is decoded."""
NUMPY_MAGIC = b"\x93NUMPY"
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_END = b"\xff\xd9"
LONGEST_SURPLUS = 64
TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""

Pixels = UInt8[np.ndarray, "h w c"] | Float[np.ndarray, "h w c"]


class BadImage(Exception):
    """An image that cannot be used; the message says why."""


class Opened:
    """An image of which only the header has been read, or an array."""

    def __init__(self, content: bytes | np.ndarray | Image.Image, channels: int = 3) -> None:
        """Raises BadImage for what is no image, or too large to be one."""
        self._channels = channels
        self._array: np.ndarray | None = None
        self._image: Image.Image | None = None
        self.encoded = content if isinstance(content, bytes) else b""
        if isinstance(content, np.ndarray):
            self._array = _as_pixels(content, channels)
        elif isinstance(content, Image.Image):
            self._image = content
        elif not content:
            raise BadImage("empty file")
        elif content.startswith(NUMPY_MAGIC):
            self._array = _as_pixels(_read_numpy(content), channels)
        elif content.startswith(TIFF_MAGIC) and (channels not in (1, 3) or _pages(content) > 1):  # Pillow takes the first page
            self._array = _as_pixels(_read_tiff(content), channels)
        else:
            self._image = _read_header(content)
        if self._array is not None:
            self.height, self.width = self._array.shape[:2]
        elif self._image is not None:
            self._orientation = _orientation(self._image)
            turned = self._orientation in TURNED
            self.width, self.height = self._image.size[::-1] if turned else self._image.size

    def plain_jpeg(self) -> bool:
        """Whether a GPU may decode it: a whole, upright JPEG in colour or grey. Its decoder would not notice a missing end."""
        image = self._image
        return (
            image is not None
            and image.format == "JPEG"
            and image.mode in ("RGB", "L")
            and self._orientation == 1
            and self._channels == 3
            and JPEG_END in self.encoded[-LONGEST_SURPLUS:]
        )

    def pixels(self, reduction: int = 1) -> Pixels:
        """The pixels upright [h, w, c].

        A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size where `reduction` allows at least that; anything else comes
        whole. Raises BadImage where decoding fails.
        """
        if self._array is not None:
            return self._array
        image = self._image
        assert image is not None
        try:
            if reduction >= min(REDUCTIONS) and image.format == "JPEG":
                factor = next(factor for factor in REDUCTIONS if factor <= reduction)
                image.draft(None, (image.width // factor, image.height // factor))
            image.load()
            if self._orientation > 1:
                image = ImageOps.exif_transpose(image)
            return _from_pillow(image, self._channels)
        except BadImage:
            raise
        except Exception as error:  # broken bytes make Pillow raise almost anything
            raise BadImage(_reason(error)) from error


def decode(content: bytes, channels: int = 3) -> Pixels:
    """The pixels of a whole file [h, w, c]. Raises BadImage."""
    return Opened(content, channels).pixels()


def _reason(error: Exception) -> str:
    """An error as a few words."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _read_header(content: bytes) -> Image.Image:
    """Raises BadImage for what is no image and for what would be too large a one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, and of sizes, which are judged here
            image = Image.open(io.BytesIO(content))
            if image.format == "PNG":
                image.verify()  # the checksums, which decoding leaves out
                image = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise BadImage(f"too large: {_reason(error)}") from error
    except Image.UnidentifiedImageError:
        raise BadImage("no image") from None
    except Exception as error:
        raise BadImage(_reason(error)) from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BadImage(f"too large: {width} x {height} pixels")
    if not width * height:
        raise BadImage("no pixels")
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


def _from_pillow(image: Image.Image, channels: int) -> np.ndarray:
    wide = image.mode.startswith("I") or image.mode == "F"
    if channels == 3:
        if wide:
            image = Image.fromarray((_to_unit(np.asarray(image)) * 255 + 0.5).clip(0, 255).astype(np.uint8))
        return np.array(image if image.mode == "RGB" else _to_rgb(image))  # torch wants arrays that may be written
    if wide:
        return _as_pixels(np.asarray(image), channels)
    if channels == 1 or image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return _as_pixels(np.asarray(image), channels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow asks for this step
    return image.convert("RGB")


def _as_pixels(array: np.ndarray, channels: int) -> np.ndarray:
    """[h, w], [h, w, c] or [c, h, w] as [h, w, c], 8 bit as it is, else float32 in 0..1. Raises BadImage for anything else."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] != channels and array.shape[0] == channels:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != channels:
        raise BadImage(f"its shape is {list(array.shape)}, not height x width x {channels} channels")
    if not array.size:
        raise BadImage("no pixels")
    return np.ascontiguousarray(array if array.dtype == np.uint8 else _to_unit(array))


def _to_unit(array: np.ndarray) -> np.ndarray:
    """Whole numbers by the range of 16 bit, floats as they are. Raises BadImage for infinite and other numbers."""
    if array.dtype == bool:
        return array.astype(np.float32)
    if array.dtype.kind in "ui":  # Pillow widens 16 bit to 32
        return array.astype(np.float32) / np.float32(65535)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise BadImage(f"its numbers ({array.dtype}) are not all finite")
    return array.astype(np.float32)


def _read_numpy(content: bytes) -> np.ndarray:
    """A `.npy` array, no larger than the file says and never a pickle. Raises BadImage."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        size = int(np.prod([int(side) for side in shape], dtype=object)) * dtype.itemsize
        if size != len(content) - stream.tell():
            raise BadImage(f"its header promises {size} bytes, it has {len(content) - stream.tell()}")
        return np.load(io.BytesIO(content), allow_pickle=False)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(_reason(error)) from error


def _pages(content: bytes) -> int:
    """Pages of a TIFF that belong together, as channels or a stack do; 1 where that cannot be read."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            return len(file.series[0].pages)
    except Exception:  # Pillow may still know it
        return 1


def _read_tiff(content: bytes) -> np.ndarray:
    """A TIFF with any number of channels, or with one page a channel. Raises BadImage."""
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            if series.size > MOST_PIXELS * 4:
                raise BadImage(f"too large: {list(series.shape)}")
            return series.asarray()
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(_reason(error)) from error
