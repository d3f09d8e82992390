"""Pascal VOC's xml files as annotations of COCO's kind.

An image is that of the xml's own name; what its text names is not opened.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from checkpoints import places, reading
from checkpoints.cli import UserError, WorkError
from probes.shared import label_files, label_maps

PIXELS = ("xmin", "ymin", "xmax", "ymax")


class Listed(NamedTuple):
    """One part: its xml files, the folder of their images, and all xml files of the data, for the classes."""

    where: Path
    files: list[Path]
    images: Path
    all: list[Path]


def find(root: Path, names: tuple[str, ...], *, whole: bool) -> Listed | None:
    """VOC's own folders (Annotations, JPEGImages, ImageSets/Main), or xml files beside images in a folder of the part's name."""
    folder = root / "Annotations"
    if folder.is_dir():
        every = _xmls(folder)
        images = next((root / name for name in ("JPEGImages", "images") if (root / name).is_dir()), folder)
        for path in (root / "ImageSets" / "Main" / f"{name}.txt" for name in names):
            if path.is_file():
                stems = [line.split()[0] for line in reading.text(path).splitlines() if line.strip()]
                files = places.listed(folder, [f"{stem}.xml" for stem in stems], file=path, cure="give names without folders")
                return Listed(path, files, images, every)
        parts = (root / "ImageSets" / "Main" / "train.txt").is_file()
        return Listed(folder, every, images, every) if whole and every and not parts else None
    for path in (root / name for name in names):
        if path.is_dir() and (files := _xmls(path)):
            beside = [one for other in root.iterdir() if other.is_dir() for one in _xmls(other)]
            return Listed(path, files, path, beside)
    return None


def _xmls(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")


def content(listed: Listed) -> dict[str, Any]:
    """Annotations in COCO's form: classes sorted by name, `difficult` objects as crowds. Raises UserError and WorkError."""
    names = sorted({_name(one, path) for path in listed.all for one in _read(path).findall("object")})
    pictures = label_files.by_stem(listed.images)
    images, found = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, path in enumerate(listed.files, 1):
        picture = pictures.get(label_files.composed(path.stem))
        if picture is None:
            raise UserError(f"{path} has no image of its name in {listed.images}")
        tree = _read(path)
        said = [_number(tree.find(f"size/{side}"), path, "0") for side in ("width", "height")]
        width, height = map(int, said) if min(said) >= 1 else label_maps.side_lengths(picture)
        images.append({"id": number, "file_name": picture.name, "width": width, "height": height})
        for one in tree.findall("object"):
            kind, crowd = names.index(_name(one, path)) + 1, int(_number(one.find("difficult"), path, "0") > 0)
            entry = {"id": len(found) + 1, "image_id": number, "category_id": kind, "iscrowd": crowd}
            found.append(entry | {"bbox": _box(one, path)})
    if not found:
        raise UserError(f"{listed.where} has no objects")
    return {"images": images, "annotations": found, "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)]}


def _read(path: Path) -> ElementTree.Element:
    try:
        text = reading.text(path)
        declared = "<!DOCTYPE" in text or "<!ENTITY" in text  # entities may name files, and grow without end
        tree = None if declared else ElementTree.fromstring(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}): store it as UTF-8") from error
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is no xml of VOC ({str(error)[:80]}): fetch it again") from error
    if tree is None:
        raise UserError(f"{path} declares a document type, which VOC's files do not: remove it")
    return tree


def _name(one: ElementTree.Element, path: Path) -> str:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise WorkError(f"{path}: an object has no name")
    return name


def _box(one: ElementTree.Element, path: Path) -> list[float]:
    """From pixels counted from 1, the last one inside, to x, y, width and height."""
    left, top, right, bottom = (_number(one.find(f"bndbox/{name}"), path, name) for name in PIXELS)
    left, top = max(left - 1, 0.0), max(top - 1, 0.0)  # programs that count from 0 write 0
    return [left, top, right - left, bottom - top]


def _number(element: ElementTree.Element | None, path: Path, otherwise: str) -> float:
    """The number of an element. Raises WorkError; `otherwise` is taken where there is none, unless it is a name."""
    text = otherwise if element is None else (element.text or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise WorkError(f"{path}: {text[:40]!r} is no number, or the box lacks one")
    return value
