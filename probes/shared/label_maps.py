"""Label maps of semantic segmentation, read by one rule in `probes.segment` and `transfer`.

One whole number a pixel, or colours that a table names. Void labels (`probes/shared/label_rule.py`) are neither learnt nor
counted. What 0, 255 and other void labels mean, and how many pixels they concern, is said.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from checkpoints.cli import UserError, WorkError
from pretrain.images.formats import BadImage, load_stored, open_picture, read_file
from probes.shared.label_rule import NOTHING, Colour, Rule

GREY = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})
"""Pillow's modes of one whole number a pixel; of a palette the indices are read, never the colours."""
ORIENTATION = 0x0112
TURNED, SIDEWAYS = frozenset(range(2, 9)), frozenset({5, 6, 7, 8})
"""EXIF orientations that turn or mirror a picture; those that exchange width and height."""
LOOKED_THROUGH = 400
"""Images of a part whose sizes are compared with COCO's annotations before training."""
Item = TypeVar("Item")
Found = TypeVar("Found")
AS_IN_ADE20K = "void, as in ADE20K; --background none if it is a class"
VOIDS_SHOWN = 4


class Survey(NamedTuple):
    """Statistics of label maps: pixels of each value, how many maps were read, and the numbers of those without a label."""

    pixels: Int[np.ndarray, "256"]
    maps: int
    empty: tuple[int, ...] = ()
    turned: int = 0
    """Images that their EXIF turns or mirrors."""


def stored(path: Path) -> Image.Image:
    """A picture or a label map as its file has it. Raises UserError for one that cannot be used."""
    try:
        return load_stored(read_file(path))
    except BadImage as error:
        raise UserError(f"{path} cannot be used ({error}): fetch it again") from error


def turned_note(count: int, of: int, what: str) -> str:
    """A few words on images turned by their EXIF: where their size stays, a file for the picture as stored would fit too."""
    return f"{count} of {of} images are turned or mirrored by their EXIF, {what} taken for the picture as it is seen"


def read(path: Path, colours: Sequence[Colour] = ()) -> UInt8[np.ndarray, "h w"]:
    """A file's labels, 0 to 255. Raises UserError where it cannot be read, WorkError where it is no label map."""
    image = stored(path)
    if colours and image.mode in ("RGB", "P"):
        return _by_colour(path, np.asarray(image.convert("RGB")), colours)
    if image.mode not in GREY:
        raise WorkError(
            f"{path} is a picture of mode {image.mode}, no label map: store one whole number a pixel (grey or palette), "
            "or list the colours in classes.txt, `R G B NAME` a line"
        )
    values = np.asarray(image)
    least, most = (values.min(), values.max()) if values.size else (0, 0)
    if most > NOTHING or least < 0:
        raise WorkError(f"{path} holds the label {most if most > NOTHING else least}: labels are 0 to 254, and 255 is void")
    return values.astype(np.uint8)


def _by_colour(path: Path, picture: UInt8[np.ndarray, "h w 3"], colours: Sequence[Colour]) -> UInt8[np.ndarray, "h w"]:
    """Each pixel's place in the table of colours. Raises WorkError for a colour that is not in it."""
    weights = np.array([1 << 16, 1 << 8, 1])
    codes, table = picture.astype(np.int64) @ weights, np.array(colours, dtype=np.int64) @ weights
    order = np.argsort(table)
    places = np.searchsorted(table[order], codes).clip(max=len(table) - 1)
    unknown = table[order][places] != codes
    if unknown.any():
        colour = " ".join(str(value) for value in picture[unknown][0])
        raise WorkError(f"{path} has {unknown.sum()} pixels in colours that classes.txt does not list, the first is {colour}")
    return order[places].astype(np.uint8)


class Seen(NamedTuple):
    """Width and height of an image as it is seen, turned by its EXIF orientation, and whether that turns or mirrors it."""

    size: tuple[int, int]
    turned: bool


def seen(path: Path) -> Seen:
    """Reads an image's header. Raises UserError where it cannot be used."""
    try:
        image = open_picture(read_file(path))
        orientation = image.getexif().get(ORIENTATION, 1)
    except BadImage as error:
        raise UserError(f"{path} cannot be used ({error}): fetch it again") from error
    except Exception as error:  # broken EXIF makes Pillow raise almost anything
        raise UserError(f"{path} cannot be used (its EXIF: {type(error).__name__}): fetch it again") from error
    return Seen(image.size[::-1] if orientation in SIDEWAYS else image.size, orientation in TURNED)


def side_lengths(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is seen. Raises UserError where it cannot be used."""
    return seen(path).size


def same_size(labels: Path, size: tuple[int, int], image: Path, of_image: tuple[int, int]) -> None:
    """Raise WorkError where a map has another width or height than its image."""
    if size != of_image:
        theirs, its = f"{size[0]} x {size[1]}", f"{of_image[0]} x {of_image[1]}"
        raise WorkError(f"{labels} has {theirs} pixels and its image {image} {its}: a label map has the size of its image")


def survey(
    images: Sequence[Path | np.ndarray],
    labels: Sequence[Path | np.ndarray],
    rule: Rule,
    check: Callable[[Path, int], None] = lambda path, highest: None,
    *,
    decoded: bool = False,
) -> Survey:
    """Read every map, and its image's header, or the whole image; `check` gets each map's highest label that is not void.

    Raises UserError and WorkError naming the first that is wrong, and how many more are.
    """

    def look(number: int) -> tuple[np.ndarray, bool] | UserError | WorkError:
        try:
            return _counts(images[number], labels[number], rule, check, decoded=decoded)
        except (UserError, WorkError) as error:
            return error

    pixels, empty, turned_images = np.zeros(256, dtype=np.int64), list[int](), 0
    for number, (one, turn) in enumerate(each(look, range(len(labels)))):
        pixels += one
        empty += [] if np.delete(one, rule.void).any() else [number]
        turned_images += turn
    return Survey(pixels, len(labels), tuple(empty), turned_images)


def each(look: Callable[[Item], Found | UserError | WorkError], items: Sequence[Item]) -> list[Found]:
    """What is found for each item, in threads. Raises the first of the errors that it gives, with how many there are by kind."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        every = list(pool.map(look, items))
    wrong = [one for one in every if isinstance(one, UserError | WorkError)]
    if wrong:
        kinds = Counter(_kind(error) for error in wrong)
        more = f" (in all {len(wrong)} of {len(items)}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())})"
        raise type(wrong[0])(f"{wrong[0]}{more if len(wrong) > 1 else ''}")
    return [one for one in every if not isinstance(one, UserError | WorkError)]


KINDS = {
    "pixels and its image": "of another size than their image",
    "boxes would not fit": "of another size than the annotations say",
    "cannot be used": "broken",
    "holds the label": "with a label beyond the classes",
    "in colours that": "with colours that are not listed",
    "no label map": "in colours",
}


def _kind(error: Exception) -> str:
    return next((kind for words, kind in KINDS.items() if words in str(error)), "wrong")


def _counts(
    image: Path | np.ndarray, labels: Path | np.ndarray, rule: Rule, check: Callable[[Path, int], None], *, decoded: bool
) -> tuple[np.ndarray, bool]:
    """Pixels of each value of one map, and whether its image is turned or mirrored by its EXIF."""
    values = read(labels, rule.colours) if isinstance(labels, Path) else labels
    counts = np.bincount(values.ravel(), minlength=256)
    if isinstance(labels, Path) and isinstance(image, Path):
        size, turned = seen(image)
        same_size(labels, values.shape[::-1], image, size)
        known = np.delete(np.arange(256), rule.void)
        check(labels, int(known[counts[known] > 0].max(initial=0)))
        if decoded:
            stored(image)
        return counts, turned
    return counts, False


def classes_of(found: Survey, rule: Rule) -> list[int]:
    """The classes that occur, from 0."""
    return [int(value) - rule.first for value in np.flatnonzero(found.pixels) if value not in rule.void]


def count(found: Mapping[str, Survey], rule: Rule) -> int:
    """Number of classes by the largest label; 0 without any label."""
    return 1 + max((number for one in found.values() for number in classes_of(one, rule)), default=-1)


def refuse_higher(path: Path, highest: int, classes: int, rule: Rule, cure: str) -> None:
    """Raise WorkError where a label map has a label beyond the classes."""
    last = classes - 1 + rule.first
    if highest > last:
        raise WorkError(
            f"{path} holds the label {highest}, and there are {classes} classes (labels {rule.first} to {last}): {cure}, "
            f"or give --ignore {highest} if it is void"
        )


def require(found: Mapping[str, Survey], rule: Rule, root: str) -> None:
    """Raise WorkError if a part has no label at all, or both have one class only, with which every prediction is right."""
    has_zero = any(one.pixels[0] for one in found.values())
    cure = "; --background none makes 0 a class" if rule.background == 0 and has_zero else ""
    for part, one in found.items():
        if not classes_of(one, rule):
            words = " and ".join(str(value) for value in rule.void)
            are = "is" if len(rule.void) == 1 else "are"
            raise WorkError(f"the {part} label maps of {root} hold nothing but {words}, which {are} void{cure}")
    every = {number for one in found.values() for number in classes_of(one, rule)}
    if len(every) == 1:
        label = every.pop() + rule.first
        raise WorkError(f"the label maps of {root} have one class only, label {label}: there is nothing to tell apart{cure}")


def meaning(found: Mapping[str, Survey], rule: Rule) -> str:
    """One line with the meaning and the frequency of 0 and of each void value."""
    pixels = np.sum([one.pixels for one in found.values()], axis=0)
    occur = len({number for one in found.values() for number in classes_of(one, rule)})
    zero = AS_IN_ADE20K if rule.background == 0 else "void" if 0 in rule.void else "a class"
    said = [(0, zero), *((value, "void") for value in rule.void if value)]
    shares = [f"{value} is {what} ({100 * pixels[value] / max(pixels.sum(), 1):.1f} % of the pixels)" for value, what in said]
    more = [f"and {len(shares) - VOIDS_SHOWN} more are void"] if len(shares) > VOIDS_SHOWN else []
    return (
        f"{sum(one.maps for one in found.values())} label maps: {occur} classes occur; {'; '.join(shares[:VOIDS_SHOWN] + more)}"
    )


def line(part: str, found: Survey, classes: int, names: Sequence[str] | None) -> str:
    """One line on a part: its images, the classes, and how many are left out and why."""
    listed = "" if names is None else f" ({', '.join(names)})"[:200]
    left_out = f"; {len(found.empty)} left out, whose maps have no label" if found.empty else "; none left out"
    turned = f"; {turned_note(found.turned, found.maps, 'label maps are')}" if found.turned else ""
    return f"{part}: {found.maps} images, {classes} classes{listed}{left_out}{turned}"


def numbered(values: UInt8[np.ndarray, "h w"], rule: Rule) -> UInt8[np.ndarray, "h w"]:
    """Labels of a file as classes from 0, NOTHING where there is none."""
    table = (np.arange(256) - rule.first).astype(np.uint8)
    table[rule.void] = NOTHING
    return table[values]
