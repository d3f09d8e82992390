"""YOLO's folders as annotations of COCO's kind: a text for each image, a line for each object, lengths as shares of the image.

Folders are told by their names; what `data.yaml` says of paths is not followed, only its names of classes.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import config_file, reading
from checkpoints.cli import UserError, WorkError
from pretrain.images.formats import SUFFIXES
from probes.shared import label_files, label_maps, label_rule

LAYOUTS = (("images/{}", "labels/{}"), ("{}/images", "{}/labels"))
WHOLE = ("images", "labels")
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LISTS = ("classes.txt", "labels/classes.txt", "obj.names")


class Folders(NamedTuple):
    """Where the images and the labels of one part lie."""

    images: Path
    labels: Path


def find(root: Path, names: tuple[str, ...], *, whole: bool) -> Folders | None:
    """The folders of a part by any of its names; `whole`: of data without parts too."""
    pairs = [(images.format(name), labels.format(name)) for name in names for images, labels in LAYOUTS]
    for images, labels in (*pairs, *([WHOLE] if whole else [])):
        folders = Folders(root / images, root / labels)
        if folders.images.is_dir() and folders.labels.is_dir() and pictures(folders.images):
            return folders
    return None


def pictures(folder: Path) -> list[Path]:
    """A folder's images, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def content(root: Path, folders: Folders) -> dict[str, Any]:
    """Annotations in COCO's form. Raises UserError and WorkError naming a file and its line."""
    names = class_names(root)
    images, found = list[dict[str, Any]](), list[dict[str, Any]]()
    paths = label_files.by_stem(folders.images)
    texts = {label_files.composed(path.stem): path for path in sorted(folders.labels.iterdir()) if path.suffix.lower() == ".txt"}
    lost = [path for stem, path in texts.items() if stem not in {*paths, "classes"}]
    if lost:
        more = f" and {len(lost) - 1} more have" if len(lost) > 1 else " has"
        raise UserError(f"{lost[0]}{more} no image in {folders.images}: remove what has none, or fetch the images")
    for number, (stem, path) in enumerate(paths.items(), 1):
        width, height = label_maps.side_lengths(path)
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        labels = texts.get(stem)
        for line, text in enumerate(_text(labels).splitlines(), 1) if labels else ():
            if text.strip():
                one = _object(text.split(), f"{labels}, line {line}", len(names), (width, height))
                found.append(one | {"id": len(found) + 1, "image_id": number, "iscrowd": 0})
    if not found:
        raise UserError(f"{folders.labels} has no objects")
    return {"images": images, "annotations": found, "categories": [{"id": k, "name": name} for k, name in enumerate(names)]}


def _text(path: Path) -> str:
    try:
        return reading.text(path).removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from error


def _object(words: list[str], where: str, classes: int, size: tuple[int, int]) -> dict[str, Any]:
    """A box (centre, width, height) or a polygon."""
    try:
        numbers = [float(word) for word in words[1:]]
        kind = int(words[0])
    except ValueError as error:
        raise WorkError(f"{where}: a class and four numbers, or a polygon, not {' '.join(words)[:80]!r}") from error
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise WorkError(f"{where}: {len(numbers)} numbers after the class, where a box has 4 and a polygon 6, 8, 10, ...")
    if not 0 <= kind < classes:
        raise WorkError(f"{where}: the class {kind}, and there are names for 0 to {classes - 1}")
    if not all(math.isfinite(one) and -0.01 <= one <= 1.01 for one in numbers):
        raise WorkError(f"{where}: a number outside of 0 to 1: lengths are shares of the image's width and height")
    scaled = [one * size[k % 2] for k, one in enumerate(numbers)]
    if len(numbers) > 4:
        return {"category_id": kind, "segmentation": [scaled]}
    x, y, width, height = scaled
    return {"category_id": kind, "bbox": [x - width / 2, y - height / 2, width, height]}


def class_names(root: Path) -> list[str]:
    """Of `data.yaml` (a list, or names by number) or a list of one name a line. Raises UserError where there is none."""
    for path in (root / name for name in YAMLS):
        if path.is_file():
            try:
                names = config_file.read(path).get("names")
            except config_file.Wrong as error:
                raise UserError(f"{path}: {error}") from error
            if isinstance(names, dict) and sorted(names) == sorted(map(str, range(len(names)))):
                names = [names[str(k)] for k in range(len(names))]
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise UserError(f"{path}: its `names` must be a list, or names by number from 0")
            return names
    for path in (root / name for name in LISTS):
        if path.is_file():
            return label_rule.lines(_text(path), path)
    raise UserError(f"{root} has YOLO's labels and no names of classes: give data.yaml with `names:`, or classes.txt")
