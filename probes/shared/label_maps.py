"""Label maps of semantic segmentation, read by one rule in `probes.segment` and `transfer`.

One whole number a pixel. 255 is void everywhere: no pixel of it is learnt or counted. 0 is void too where the data set is ADE20K
or like it (`reduce_zero_label`; classes are 1 and more), or it is the first class (`--zero class`). Nothing is guessed from the
values: both meanings, and how many pixels they concern, are said.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from checkpoints.cli import UserError, WorkError
from pretrain.images.formats import BadImage, load_stored, open_picture, read_file

NOTHING = 255
"""Void, in files and in memory."""
GREY = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's modes of one whole number a pixel; of a palette the indices are read, never the colours."""
TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""
LOOKED_THROUGH = 400
"""Maps of a part that `transfer` reads before training; the others are looked at when they are read."""
Zero = Literal["void", "class"]


def images_of(folder: Path) -> tuple[list[Path], str]:
    """The images of a part, `*.jpg` of one folder as MMSegmentation takes them, and a few words on files that are none, or "".

    Raises UserError for images in folders below it, which MMSegmentation would take too.
    """
    files = sorted(path for path in folder.glob("*") if not path.is_dir()) if folder.is_dir() else []
    names = [path for path in files if path.suffix == ".jpg" and not path.name.startswith(".")]
    below = next(folder.glob("*/**/*.jpg"), None)
    if below is not None:
        raise UserError(f"{below} lies in a folder of its own: put all images of {folder} into it, none into folders below it")
    others = sorted(set(files) - set(names))
    return names, f" ({len(others)} files are not used, no .jpg, the first is {others[0].name})" if others else ""


def class_names(root: Path) -> tuple[str, ...] | None:
    """The names of a data set of one's own, first class first: `classes.txt`, one a line, or `classes.json`, a list.

    None where there is neither. Raises WorkError where it is no list of 2 to 254 different names.
    """
    file = next((root / name for name in ("classes.txt", "classes.json") if (root / name).is_file()), None)
    if file is None:
        return None
    try:
        text = read_file(file).decode()
        names = json.loads(text) if file.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
    except (BadImage, ValueError, RecursionError) as error:
        raise WorkError(f"{file} cannot be read ({type(error).__name__}): one name a line (.txt), or a list (.json)") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise WorkError(f"{file} is no list of names")
    if not 2 <= len(set(names)) == len(names) < NOTHING:
        raise WorkError(f"{file} has {len(names)} names, {len(set(names))} of them different: 2 to 254 different ones are needed")
    return tuple(names)


class Survey(NamedTuple):
    """Statistics of label maps: pixels of each value, and how many of how many maps were read."""

    pixels: Int[np.ndarray, "256"]
    maps: int
    of: int


def stored(path: Path) -> Image.Image:
    """A picture or a label map as its file has it. Raises UserError for one that cannot be used."""
    try:
        return load_stored(read_file(path))
    except BadImage as error:
        raise UserError(f"{path} cannot be used ({error}): fetch it again") from error


def read(path: Path) -> UInt8[np.ndarray, "h w"]:
    """A file's labels, 0 to 255. Raises UserError where it cannot be read, WorkError where it is no label map."""
    image = stored(path)
    if image.mode not in GREY:
        raise WorkError(
            f"{path} is a picture of mode {image.mode}, no label map: store one whole number a pixel (grey or palette)"
        )
    values = np.asarray(image)
    least, most = (values.min(), values.max()) if values.size else (0, 0)
    if most > NOTHING or least < 0:
        raise WorkError(f"{path} holds the label {most if most > NOTHING else least}: labels are 0 to 254, and 255 is void")
    return values.astype(np.uint8)


def side_lengths(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is seen: turned by its EXIF orientation. Raises UserError where it cannot be used."""
    try:
        image = open_picture(read_file(path))
        turned = image.getexif().get(0x0112) in TURNED
    except BadImage as error:
        raise UserError(f"{path} cannot be used ({error}): fetch it again") from error
    except Exception as error:  # broken EXIF makes Pillow raise almost anything
        raise UserError(f"{path} cannot be used (its EXIF: {type(error).__name__}): fetch it again") from error
    return image.size[::-1] if turned else image.size


def same_size(labels: Path, size: tuple[int, int], image: Path, of_image: tuple[int, int]) -> None:
    """Raise WorkError where a map has another width or height than its image."""
    if size != of_image:
        theirs, its = f"{size[0]} x {size[1]}", f"{of_image[0]} x {of_image[1]}"
        raise WorkError(f"{labels} has {theirs} pixels and its image {image} {its}: a label map has the size of its image")


def survey(
    images: Sequence[Path | np.ndarray],
    labels: Sequence[Path | np.ndarray],
    most: int | None = None,
    check: Callable[[Path, int], None] = lambda path, highest: None,
) -> Survey:
    """Read maps, at most so many, spread over all, and their images' headers; `check` gets each map's highest label.

    Raises UserError and WorkError naming the first that is wrong.
    """
    count = len(labels) if most is None else min(most, len(labels))
    pixels = np.zeros(256, dtype=np.int64)
    for number in np.linspace(0, len(labels) - 1, count).round().astype(int):
        image, one = images[number], labels[number]
        values = read(one) if isinstance(one, Path) else one
        if isinstance(one, Path) and isinstance(image, Path):
            same_size(one, values.shape[::-1], image, side_lengths(image))
        if isinstance(one, Path):
            check(one, int(values[values != NOTHING].max(initial=0)))
        pixels += np.bincount(values.ravel(), minlength=256)
    return Survey(pixels, count, len(labels))


def void(zero: Zero) -> list[int]:
    """The values that are no class."""
    return [0, NOTHING] if zero == "void" else [NOTHING]


def classes_of(found: Survey, zero: Zero) -> list[int]:
    """The classes that occur, from 0: label 1 is the first where 0 is void."""
    first = 1 if zero == "void" else 0
    return [int(value) - first for value in np.flatnonzero(found.pixels[:NOTHING]) if value >= first]


def count(found: Mapping[str, Survey], zero: Zero) -> int:
    """Number of classes by the largest label; 0 without any label."""
    return 1 + max((number for one in found.values() for number in classes_of(one, zero)), default=-1)


def refuse_higher(path: Path, highest: int, classes: int, zero: Zero, cure: str) -> None:
    """Raise WorkError where a label map has a label beyond the classes."""
    last = classes if zero == "void" else classes - 1
    if highest > last:
        first = 1 if zero == "void" else 0
        raise WorkError(f"{path} holds the label {highest}, and there are {classes} classes (labels {first} to {last}): {cure}")


def require(found: Mapping[str, Survey], zero: Zero, root: str) -> None:
    """Raise WorkError if a part has no label at all, or both have one class only, with which every prediction is right."""
    has_zero = any(one.pixels[0] for one in found.values())
    cure = "; --zero class makes 0 a class" if zero == "void" and has_zero else ""
    for part, one in found.items():
        if not classes_of(one, zero):
            what = "0 and 255, which are void" if zero == "void" else "255, which is void"
            raise WorkError(f"the {part} label maps of {root} hold nothing but {what}{cure}")
    every = {number for one in found.values() for number in classes_of(one, zero)}
    if len(every) == 1:
        label = every.pop() + (zero == "void")
        raise WorkError(f"the label maps of {root} have one class only, label {label}: there is nothing to tell apart{cure}")


def meaning(found: Mapping[str, Survey], zero: Zero) -> str:
    """One line with the meaning and the frequency of each value."""
    pixels = np.sum([one.pixels for one in found.values()], axis=0)
    share = {value: f"{100 * pixels[value] / max(pixels.sum(), 1):.1f} % of the pixels" for value in (0, NOTHING)}
    occur = len({number for one in found.values() for number in classes_of(one, zero)})
    first = "void, as in ADE20K; --zero class if it is a class" if zero == "void" else "a class"
    maps, of = (sum(counts) for counts in zip(*((one.maps, one.of) for one in found.values()), strict=True))
    looked = f"{of} label maps" if maps == of else f"{maps} of {of} label maps"
    return f"{looked}: {occur} classes occur; 0 is {first} ({share[0]}); 255 is void ({share[NOTHING]})"


def numbered(values: UInt8[np.ndarray, "h w"], zero: Zero) -> UInt8[np.ndarray, "h w"]:
    """Labels of a file as classes from 0, NOTHING where there is none."""
    if zero == "class":
        return values
    known = (values != 0) & (values != NOTHING)
    return np.where(known, values - 1, NOTHING).astype(np.uint8)
