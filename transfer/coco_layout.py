"""Where a detector's annotations and images lie: as typed, as COCO publishes them, or in the layouts that other programs write.

A part that lacks is held out of the training images by their names.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import places
from checkpoints.cli import UserError, WorkError
from probes.shared import label_files
from probes.shared.dense_layout import COCO
from transfer import annotations, coco_from_voc, coco_from_yolo

NAMES = {"train": ("train",), "val": ("val", "valid", "validation")}
FILES = (
    "annotations/instances_{}2017.json", "annotations/instances_{}.json", "annotations/{}.json", "{}.json", "instances_{}.json",
    "{}/_annotations.coco.json",
)  # fmt: skip
"""Annotation files of a part, the first that is there is taken."""
WHOLE = (
    "annotations/instances_default.json", "instances_default.json", "annotations.json", "_annotations.coco.json", "coco.json",
    "result.json", "labels.json",
)  # fmt: skip
"""Annotation files of data that has no parts."""
FOLDERS = ("{}2017", "{}", "images/{}", "images/{}2017")
LOOKED_AT = 20
"""Images by which a folder is told."""


class Given(NamedTuple):
    """What was typed; None: looked for."""

    train_json: Path | None = None
    train_images: Path | None = None
    val_json: Path | None = None
    val_images: Path | None = None
    val_percent: float | None = None
    val_seed: int = 0
    boxes_only: bool = False

    def typed(self) -> list[str]:
        """The flags that were given."""
        defaults = Given()
        return [f"--{name.replace('_', '-')}" for name in self._fields if getattr(self, name) != getattr(defaults, name)]


class Part(NamedTuple):
    """An annotation file, its content, and the folder of its images."""

    file: Path
    images: Path
    content: dict[str, Any]
    split: bool = False

    def published(self, root: Path, name: str) -> bool:
        """Whether it lies where COCO has it."""
        file, folder = COCO[name]
        return (self.file, self.images, self.split) == (root / file, root / folder, False)


def find(root: Path, given: Given) -> dict[str, Part]:
    """Both parts of a data set, each with files of the names that it lists.

    Raises UserError naming the first thing that is missing, and WorkError for names that no file has.
    """
    train = _part(root, "train", given.train_json, given.train_images)
    if train is None:
        raise _lacking(root, "train")
    val = _part(root, "val", given.val_json, given.val_images)
    if val is not None and given.val_percent is not None:
        raise UserError(f"--val-percent holds training images out, and there is {val.file}: leave one of them out")
    if val is not None:
        return {"train": train, "val": val}
    if given.val_percent is None:
        raise _lacking(root, "val")
    return split(train, given.val_percent, given.val_seed)


def _lacking(root: Path, part: str) -> UserError:
    cure = ", or --val-percent 20, which holds training images out" if part == "val" else ""
    return UserError(f"{root} lacks {COCO[part][0]}: give --{part}-json FILE and --{part}-images FOLDER{cure}")


def _part(root: Path, part: str, file: Path | None, folder: Path | None) -> Part | None:
    if file is None:
        names = [pattern.format(name) for name in NAMES[part] for pattern in FILES]
        found = [root / name for name in (*names, *(WHOLE if part == "train" else ())) if (root / name).is_file()]
        if not found:
            return _converted(root, part) if folder is None else None
        file = found[0]
    elif not file.is_file():
        raise UserError(f"--{part}-json: there is no file {file}")
    content = annotations.parsed(file)
    listed = _names(content, file)
    if folder is None:
        folder = _folder(root, part, file, listed)
    elif not folder.is_dir():
        raise UserError(f"--{part}-images: there is no folder {folder}")
    remote = [name for name in listed if "://" in name]  # MMEngine would take it for an address
    if remote:
        raise UserError(f"{file} names the address {remote[0]!r}: its images are files of {folder}")
    cure = "fetch the annotations from where they were published"
    paths = places.listed(folder, listed, file=file, cure=cure)
    missing = [path for path in paths if not is_file(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        if label_files.composed(missing[0].name) in {label_files.composed(path.name) for path in folder.iterdir()}:
            raise UserError(f"{missing[0]}{more}: a file's accents are other letters than in {file.name}, rename one of them")
        inside = folder.relative_to(root) if folder.is_relative_to(root) else folder
        raise UserError(
            f"{root} lacks {inside / missing[0].relative_to(folder)} (of {file.name}){more}: --{part}-images names another folder"
        )
    return Part(file, folder, content)


def _converted(root: Path, part: str) -> Part | None:
    """A part in VOC's or YOLO's folders, converted."""
    whole = part == "train"
    xmls = coco_from_voc.find(root, NAMES[part], whole=whole)
    if xmls is not None:
        return Part(xmls.where, xmls.images, coco_from_voc.content(xmls))
    folders = coco_from_yolo.find(root, NAMES[part], whole=whole)
    if folders is not None:
        return Part(folders.labels, folders.images, coco_from_yolo.content(root, folders))
    return None


def _names(content: Mapping[str, Any], file: Path) -> list[str]:
    names = [image["file_name"] for image in content["images"]]
    strange = [name for name in names if not isinstance(name, str) or not name or "\0" in name]
    if strange:
        raise WorkError(f"{file}: an image has the file_name {str(strange[0])[:80]!r}, no name of a file")
    return names


def _folder(root: Path, part: str, file: Path, names: Sequence[str]) -> Path:
    """The usual folder with most of the first images; the first one that there is, where none has any."""
    usual = [root / pattern.format(name) for name in NAMES[part] for pattern in FOLDERS]
    folders = [one for one in (*usual, file.parent, root / "images", root / "images" / "default", root) if one.is_dir()]

    def there(folder: Path) -> int:
        inside = [folder / name for name in names[:LOOKED_AT] if places.leads_inside(folder, folder / name)]
        return sum(map(is_file, inside))

    return max(folders, key=there)


def is_file(path: Path) -> bool:
    """False for names that no file can have, too."""
    try:
        return path.is_file()
    except OSError:  # a name of thousands of letters
        return False


def split(part: Part, percent: float | int, seed: int) -> dict[str, Part]:
    """Two parts by image: the share of names whose hash with the seed is lowest is held out.

    An image stays on its side when others are added to the file or listed in another order, but for a few at the border.
    """
    images = part.content["images"]
    ranked = sorted(images, key=lambda image: hashlib.sha256(f"{seed}/{image['file_name']}".encode()).digest())
    count = round(len(images) * percent / 100)
    if not 0 < count < len(images):
        raise UserError(
            f"--val-percent {percent:g} of {len(images)} images leaves {count} to test and {len(images) - count} to train"
        )
    held = {image["file_name"] for image in ranked[:count]}
    parts = {}
    for name in NAMES:
        mine = [image for image in images if (image["file_name"] in held) == (name == "val")]
        ids = {repr(image.get("id")) for image in mine if isinstance(image, dict)}
        kept = [one for one in part.content["annotations"] if isinstance(one, dict) and repr(one.get("image_id")) in ids]
        parts[name] = part._replace(content={**part.content, "images": mine, "annotations": kept}, split=True)
    return parts
