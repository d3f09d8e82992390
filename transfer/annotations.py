"""COCO's annotation files, read whole before anything is trained: every number is what it should be, or one sentence names it.

What COCO's tools need and other programs leave out (`iscrowd`, `area`, a box beside a mask) is worked out; boxes and polygons
without any area are left out and counted. Everything else that does not fit is an error: which images, classes and boxes were
meant is not guessed.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints import reading
from checkpoints.cli import UserError, WorkError
from probes.shared import label_maps

LISTS = ("images", "annotations", "categories")
SHOWN = 80
MOST_NUMBER = 1 << 63


class Annotations(NamedTuple):
    """Content of a file, ready for COCO's tools: whether it was changed, class names by id, and notes."""

    content: dict[str, Any]
    changed: bool
    classes: dict[int, str]
    notes: list[str]


class Wrong(Exception):
    """A fault of one entry; the message says which."""


def parsed(file: Path) -> dict[str, Any]:
    """Raises UserError where it is no JSON with images and annotations."""
    try:
        content = reading.values(file, reading.MOST_LISTED)
        [image["file_name"] for image in content["images"]]
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise UserError(f"{file} is not an annotation file of COCO ({type(error).__name__}: {str(error)[:SHOWN]})") from error
    if not content.get("annotations"):
        raise UserError(f"{file} has no annotations")
    return content


def has_masks(content: dict[str, Any]) -> bool:
    """Whether any of the result of `parsed` has a mask; the detectors learn boxes alone where none has."""
    entries = content["annotations"] if isinstance(content["annotations"], list) else []
    return any(isinstance(entry, dict) and entry.get("segmentation") not in (None, [], {}) for entry in entries)


def read(file: Path, content: dict[str, Any], *, masks: bool = True) -> Annotations:
    """Validates the result of `parsed`, of which masks are left out unless `masks`.

    Raises WorkError naming the first entry that is wrong.
    """
    for name in LISTS:
        entries = content.get(name)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
            raise WorkError(f"{file} is not an annotation file of COCO: {name} must be a list of objects, not empty")
    try:
        classes = _classes(content["categories"])
        listed = _images(content["images"])
        twice = len(content["images"]) - len(listed)
        content = {**content, "images": listed} if twice else content
        found = _completed(content, classes, {image["id"]: _size(image) for image in listed}, masks)
        notes = [*found.notes, *([f"{twice} images listed twice are taken once"] if twice else [])]
        return found._replace(changed=found.changed or bool(twice), notes=notes)
    except Wrong as error:
        raise WorkError(f"{file}: {error}") from error


def _images(images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each image once. Raises Wrong for an id that two different ones have: objects would be on either."""
    found = dict[int, dict[str, Any]]()
    for image in images:
        number = _whole(image, "id", "one image")
        first = found.setdefault(number, image)
        if any(first.get(name) != image.get(name) for name in ("file_name", "width", "height")):
            files = f"{_short(first.get('file_name'))} and {_short(image.get('file_name'))}"
            raise Wrong(f"two images have the id {number}: {files}; give each its own")
    ids = dict[Any, int]()
    twice = [(ids[name], number) for number, one in found.items() if ids.setdefault(name := one["file_name"], number) != number]
    if twice:  # what is marked under one id would be background under the other
        more = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
        name = _short(found[twice[0][0]]["file_name"])
        raise Wrong(f"images {twice[0][0]} and {twice[0][1]} are the same file {name}{more}: put their objects under one id")
    return list(found.values())


def _once(annotations: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], int, int]:
    """Each annotation once, with an id of its own; how many were repeated whole, and how many had another's id."""
    found, repeated, renumbered = dict[int, dict[str, Any]](), 0, 0
    free = max((one["id"] for one in annotations if isinstance(one.get("id"), int)), default=0)
    for one in annotations:
        number = _whole(one, "id", "one annotation")
        if one == found.get(number):
            repeated += 1
            continue
        if number in found:
            free, renumbered = free + 1, renumbered + 1
            number = free
        found[number] = one if number == one["id"] else one | {"id": number}
    return list(found.values()), repeated, renumbered


def _as_crowd(annotation: dict[str, Any], name: str, size: tuple[int, int]) -> dict[str, Any]:
    """An object without a mask among others: a crowd that fills its box, neither learnt nor counted as missed."""
    left, top, width, height = _box(annotation, None, name)
    mask = np.zeros(size[::-1], dtype=bool)
    mask[
        max(0, math.floor(top)) : max(0, math.ceil(top + height)), max(0, math.floor(left)) : max(0, math.ceil(left + width))
    ] = True
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return annotation | {"iscrowd": 1, "segmentation": {"size": list(mask.shape), "counts": counts}}


def _completed(
    content: dict[str, Any], classes: dict[int, str], images: Mapping[int, tuple[int, int]], masks: bool
) -> Annotations:
    kept, ids, flat, filled = [], set[int](), list[int](), 0
    ignored, bare = list[int](), list[int]()
    every, repeated, renumbered = _once(content["annotations"])
    for annotation in every:
        number = _new(annotation, "annotation", ids)
        for field, known, what in (("image_id", images, "images"), ("category_id", classes, "categories")):
            if _whole(annotation, field, f"annotation {number}") not in known:
                raise Wrong(f"annotation {number} names {field} {annotation[field]}, which is none of its {what}")
        if annotation.get("ignore"):  # the toolbox would leave it out in silence
            ignored.append(number)
            continue
        if masks and annotation.get("segmentation") in (None, [], {}):
            annotation = _as_crowd(annotation, f"annotation {number}", images[annotation["image_id"]])  # noqa: PLW2901
            bare.append(number)
        whole = _whole_annotation(annotation, f"annotation {number}", images[annotation["image_id"]], masks)
        if whole is None:
            flat.append(number)
        else:
            filled += any(name not in annotation for name in whole) or whole["area"] != annotation["area"]
            kept.append(whole)
    if 0 in ids:  # COCO's evaluation takes the id 0 for "no object"
        kept = [one | {"id": max(ids) + 1} if one["id"] == 0 else one for one in kept]
    different = len({(one["image_id"], one["category_id"], *one["bbox"]) for one in kept})
    notes = _notes(content, kept, classes, {"without area or outside their image": flat, "marked `ignore`": ignored})
    if bare:
        cure = "among the crowds here; --boxes-only true learns all boxes"
        notes.append(f"{len(bare)} objects have a box and no mask, the first is annotation {bare[0]}: {cure}")
    notes += [f"{repeated} annotations listed twice are taken once"] if repeated else []
    notes += [f"{renumbered} annotations with the id of another are renumbered"] if renumbered else []
    notes += (
        [f"{len(kept) - different} objects occur more than once (image, class, box): all are kept"]
        if len(kept) > different
        else []
    )
    notes += [f"iscrowd, area or bbox worked out for {filled}"] if filled else []
    return Annotations({**content, "annotations": kept}, kept != content["annotations"], classes, notes)


def _notes(
    content: dict[str, Any], kept: Sequence[dict[str, Any]], classes: Mapping[int, str], dropped: Mapping[str, Sequence[int]]
) -> list[str]:
    """How many images and objects there are, what is ignored and why. Raises Wrong where nothing is left to learn."""
    crowds = [one["id"] for one in kept if one["iscrowd"]]
    usable = [one for one in kept if not one["iscrowd"]]
    why = [f"{len(which)} annotations {reason} left out, the first is {which[0]}" for reason, which in dropped.items() if which]
    why += [f"{len(crowds)} crowds neither learnt nor counted, the first is annotation {crowds[0]}"] if crowds else []
    if not usable:
        what = "no annotation has a box and a mask with any area inside its image" if not crowds else "not one usable object"
        raise Wrong(f"{what} ({'; '.join(why)})" if why else what)
    images = len(content["images"])
    empty = images - len({one["image_id"] for one in usable})
    ignored = len(content["annotations"]) - len(usable)
    notes = [f"{images} images, {len(usable)} usable objects of {len(classes)} classes, {ignored} ignored"]
    notes += [*why, *([f"{empty} images have none"] if empty else [])]
    unused = [name for number, name in classes.items() if number not in {one["category_id"] for one in usable}]
    return notes + ([f"no object of {len(unused)} classes ({', '.join(unused)[:SHOWN]})"] if unused else [])


def _whole_annotation(annotation: dict[str, Any], name: str, size: tuple[int, int], masks: bool) -> dict[str, Any] | None:
    """The annotation with all fields that COCO's tools read; None if it lies outside the image, or is under a pixel wide."""
    bare = annotation.get("bbox") is None and isinstance(annotation.get("segmentation"), list)  # the box is that of its polygons
    mask = _mask(annotation, name, size) if masks or bare else None
    if not masks:
        annotation = {field: value for field, value in annotation.items() if field != "segmentation"}
    if bare and mask is None:
        return None
    box = _box(annotation, mask, name)
    left, top, width, height = box
    across = min(left + width, size[0]) - max(left, 0)
    down = min(top + height, size[1]) - max(top, 0)
    if (mask is None and masks) or min(width, height) < 1 or min(across, down) <= 0:
        return None
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise Wrong(f"{name} has iscrowd {_short(crowd)}: 0 or 1")
    area = annotation.get("area")
    if area is None or (area == 0 and not isinstance(area, bool)):  # what has none, the toolbox leaves out in silence
        area = mask_area(mask, size) if masks else width * height
    elif not _finite(area) or area < 0:
        raise Wrong(f"{name} has the area {_short(area)}, no number of pixels")
    if area == 0:  # a polygon thinner than pixels
        return None
    return annotation | ({"segmentation": mask} if masks else {}) | {"bbox": box, "iscrowd": int(crowd), "area": area}


def _mask(annotation: Mapping[str, Any], name: str, size: tuple[int, int]) -> Any:
    """Polygons that have an area, or run lengths; None where all polygons are flat."""
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        return _runs(mask, name, size)
    if not isinstance(mask, list) or not all(isinstance(one, list) and all(map(_finite, one)) for one in mask):
        raise Wrong(f"{name} has a segmentation that is neither polygons (lists of numbers) nor run lengths: {_short(mask)}")
    if any(len(one) % 2 for one in mask):
        raise Wrong(f"{name} has a polygon of an odd number of coordinates")
    return [one for one in mask if len(one) >= 6 and polygon_area(one) > 0] or None


def _runs(mask: Mapping[str, Any], name: str, size: tuple[int, int]) -> Any:
    counts, of = mask.get("counts"), mask.get("size")
    if of != [size[1], size[0]]:
        raise Wrong(f"{name} has run lengths of size {_short(of)}, its image is [{size[1]}, {size[0]}] (height, width)")
    if isinstance(counts, list):
        if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in counts):
            raise Wrong(f"{name} has run lengths that are no whole numbers")
        if sum(counts) != size[0] * size[1]:
            raise Wrong(f"{name} has run lengths of {sum(counts)} pixels, its image has {size[0] * size[1]}")
        return mask if sum(counts[1::2]) else None
    if not isinstance(counts, str) or not counts:
        raise Wrong(f"{name} has run lengths that are neither a list nor a text: {_short(counts)}")
    return _compressed(mask, name, size)


def _compressed(mask: Mapping[str, Any], name: str, size: tuple[int, int]) -> Any:
    """COCO's text form: groups of five bits, low ones first; each number from the third on is a difference to that two before."""
    runs: list[int] = []
    value = shift = 0
    for letter in str(mask["counts"]):
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise Wrong(f"{name} has a text of run lengths that is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or sum(runs) != size[0] * size[1] or min(runs) < 0:
        raise Wrong(f"{name} has a text of run lengths that is damaged: not the {size[0] * size[1]} pixels of its image")
    return mask if sum(runs[1::2]) else None


def _box(annotation: Mapping[str, Any], mask: Any, name: str) -> list[float | int]:
    box = annotation.get("bbox")
    if box is None and isinstance(mask, list):
        xs, ys = [x for one in mask for x in one[0::2]], [y for one in mask for y in one[1::2]]
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    if box is None:
        raise Wrong(f"{name} has no bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
        raise Wrong(f"{name} has the bbox {_short(box)}: four numbers (x, y, width, height)")
    return box


def polygon_area(points: Sequence[float | int]) -> float:
    """Area of one polygon [x, y, x, y, ...], by the shoelace formula."""
    x, y = points[0::2], points[1::2]
    return abs(sum(x[k - 1] * y[k] - x[k] * y[k - 1] for k in range(len(x)))) / 2


def mask_area(mask: Any, size: tuple[int, int]) -> float:
    """Pixels of a mask, as COCO counts them."""
    from pycocotools import mask as tools  # noqa: PLC0415 (an optional import)

    if isinstance(mask, list):
        return float(tools.area(tools.merge(tools.frPyObjects(mask, size[1], size[0]))))
    return float(sum(mask["counts"][1::2]) if isinstance(mask["counts"], list) else tools.area(mask))


def _classes(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Names by id; ids may have gaps."""
    found, seen = dict[int, str](), set[int]()
    for category in categories:
        number, name = _new(category, "category", seen), category.get("name")
        if not isinstance(name, str) or not name:
            raise Wrong(f"category {number} has the name {_short(name)}, no text")
        if name in found.values():
            raise Wrong(f"two categories have the name {_short(name)}")
        found[number] = name
    return found


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    sides = [_whole(image, side, f"image {image['id']}") for side in ("width", "height")]
    if min(sides) < 1:
        raise Wrong(f"image {image['id']} has {sides[0]} x {sides[1]} pixels")
    return sides[0], sides[1]


def _new(entry: Mapping[str, Any], what: str, seen: set[int]) -> int:
    """An entry's id, added to those seen."""
    number = _whole(entry, "id", f"one {what}")
    if number in seen:
        raise Wrong(f"two {what} entries have the id {number}")
    seen.add(number)
    return number


def _whole(entry: Mapping[str, Any], field: str, name: str) -> int:
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= MOST_NUMBER:
        raise Wrong(
            f"{name} has {f'the {field} {_short(value)}, no whole number of 64 bit' if field in entry else f'no {field}'}"
        )
    return value


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def same_classes(train: tuple[Path, Annotations], val: tuple[Path, Annotations]) -> None:
    """Raise WorkError where both files mean other classes by their ids: what was learnt would be counted as another class."""
    mine, theirs = train[1].classes, val[1].classes
    other = sorted(number for number in mine.keys() | theirs.keys() if mine.get(number) != theirs.get(number))
    if other:
        means = " and ".join(f"{_short(classes.get(other[0]))} in {file.name}" for file, (_, _, classes, _) in (train, val))
        raise WorkError(f"category {other[0]} is {means}: both need the same categories")
    if list(mine) != list(theirs):
        raise WorkError(f"{train[0].name} and {val[0].name} list their categories in another order: give both the same")


def check_images(file: Path, folder: Path, content: Mapping[str, Any], most: int) -> list[str]:
    """Decode images, at most so many spread over all, and compare their sizes with their entries; notes on what was found.

    Raises UserError and WorkError naming the first that is wrong, and how many more are.
    """
    images = content["images"][:: max(1, -(-len(content["images"]) // most))]

    def look(image: Mapping[str, Any]) -> bool | UserError | WorkError:
        path = folder / image["file_name"]
        try:
            size, turned = label_maps.seen(path)
            refuse_size(file, path, (image["width"], image["height"]), size)
            label_maps.stored(path)
            return turned
        except (UserError, WorkError) as error:
            return error

    turned = label_maps.each(look, images)
    return [label_maps.turned_note(sum(turned), len(images), "boxes are")] if any(turned) else []


def refuse_size(file: Path, path: Path, said: tuple[int, int], found: tuple[int, int]) -> None:
    """Raise WorkError where an image as it is seen, turned by its EXIF, has another width or height than its entry says."""
    if said == found:
        return
    why = ""
    if said == found[::-1]:
        why = " (the file describes the picture as it is stored, without the turn of its EXIF)"
    elif abs(said[0] * found[1] - said[1] * found[0]) <= max(*said, *found):
        why = " (the images were scaled and the file was not)"
    sizes = f"{said[0]} x {said[1]} pixels for {path}, which has {found[0]} x {found[1]}"
    raise WorkError(f"{file} says {sizes}{why}: boxes would not fit")
