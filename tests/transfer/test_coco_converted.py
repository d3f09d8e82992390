"""VOC's and YOLO's folders become annotations of COCO's kind. 46c01a2 took COCO's json alone."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from checkpoints.cli import UserError, WorkError
from transfer import annotations, coco_layout
from transfer.coco_layout import Given

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><part><bndbox><xmin>1</xmin></bndbox></part><bndbox>{}</bndbox></object>"
)


def xml(*objects: tuple[str, int, tuple[float, ...]], size: str = "<size><width>20</width><height>10</height></size>") -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    boxes = ["".join(f"<{n}>{v}</{n}>" for n, v in zip(names, box, strict=True)) for _, _, box in objects]
    things = (OBJECT.format(name, hard, box) for (name, hard, _), box in zip(objects, boxes, strict=True))
    return f"<annotation><filename>/etc/passwd</filename>{size}{''.join(things)}</annotation>"


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def entries(part: coco_layout.Part) -> list[tuple[Any, ...]]:
    """Class, box and crowd of what the detector gets, after all checks."""
    masks = annotations.has_masks(part.content)
    found = annotations.read(part.file, part.content, masks=masks)
    annotations.check_images(part.file, part.images, found.content, 400)
    return [(found.classes[one["category_id"]], one["bbox"], one["iscrowd"]) for one in found.content["annotations"]]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name, text in {
        "a": xml(("Zelle ü", 0, (3, 2, 12, 9)), ("cat", 1, (1, 1, 20, 10))),
        "b": xml(("cat", 0, (0, 0, 5, 5)), size=""),
    }.items():
        image(tmp_path / "JPEGImages" / f"{name}.jpg")
        write(tmp_path / "Annotations" / f"{name}.xml", text)
    return tmp_path


def test_voc_has_pixels_from_one_and_difficult_objects(voc: Path) -> None:
    for name, stem in (("train", "a"), ("val", "b")):
        write(voc / "ImageSets" / "Main" / f"{name}.txt", f"{stem}\n")
    parts = coco_layout.find(voc, Given())
    assert entries(parts["train"]) == [("Zelle ü", [2, 1, 10, 8], 0), ("cat", [0, 0, 20, 10], 1)]
    assert entries(parts["val"]) == [("cat", [0, 0, 5, 5], 0)]
    assert parts["train"].content["categories"] == parts["val"].content["categories"]


def test_voc_without_parts_is_split_and_its_files_are_no_programs(voc: Path) -> None:
    with pytest.raises(UserError, match="or --val-percent 20"):
        coco_layout.find(voc, Given())
    parts = coco_layout.find(voc, Given(val_percent=50))
    assert sum(len(part.content["annotations"]) for part in parts.values()) == 3
    write(voc / "Annotations" / "b.xml", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>')
    with pytest.raises(UserError, match=r"b.xml declares a document type"):
        coco_layout.find(voc, Given(val_percent=50))
    write(voc / "Annotations" / "b.xml", xml(("cat", 0, (0, 0, 5, 5))).replace("<ymax>5</ymax>", ""))
    with pytest.raises(WorkError, match=r"b.xml: 'ymax' is no number, or the box lacks one"):
        coco_layout.find(voc, Given(val_percent=50))
    write(voc / "Annotations" / "b.xml", "<annotation>")
    with pytest.raises(UserError, match=r"b.xml is no xml of VOC"):
        coco_layout.find(voc, Given(val_percent=50))
    write(voc / "Annotations" / "c.xml", xml())
    write(voc / "Annotations" / "b.xml", xml())
    with pytest.raises(UserError, match=r"c.xml has no image of its name"):
        coco_layout.find(voc, Given(val_percent=50))


@pytest.mark.parametrize(
    "folders", [("images/train", "labels/train", "images/val"), ("train/images", "train/labels", "valid/images")]
)
def test_yolo_has_shares_of_the_image(folders: tuple[str, str, str], tmp_path: Path) -> None:
    images, labels, val = folders
    for name in ("a", "b"):
        image(tmp_path / images / f"{name}.png")
    image(tmp_path / val / "c.png")
    write(tmp_path / labels / "a.txt", "1 0.5 0.5 0.5 0.4\n\n0 0.25 0.5 0.1 0.2\n")
    write(tmp_path / val.replace("images", "labels") / "c.txt", "0 0.5 0.5 1 1\n")
    write(tmp_path / "data.yaml", "path: /etc\ntrain: ../../elsewhere\nnames: {0: cat, 1: Zelle ü}\n")
    parts = coco_layout.find(tmp_path, Given())
    assert entries(parts["train"]) == [("Zelle ü", [5, 3, 10, 4], 0), ("cat", [4, 4, 2, 2], 0)]
    assert len(parts["train"].content["images"]) == 2 and entries(parts["val"]) == [("cat", [0, 0, 20, 10], 0)]


def test_polygons_of_yolo_are_masks(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "labels" / f"{name}.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n")
    write(tmp_path / "classes.txt", "cat\ndog\n")
    part = coco_layout.find(tmp_path, Given(val_percent=50))["train"]
    assert annotations.has_masks(part.content) and entries(part) == [("cat", [2, 1, 8, 4], 0)]


WRONG = {
    "no numbers": ("0 a b c d", "line 1: a class and four numbers"),
    "five": ("0 0.1 0.1 0.5 0.5 0.9", "5 numbers after the class"),
    "no such class": ("2 0.1 0.1 0.5 0.5", "the class 2, and there are names for 0 to 1"),
    "pixels": ("0 10 10 5 5", "a number outside of 0 to 1"),
    "nan": ("0 nan 0.1 0.5 0.5", "a number outside of 0 to 1"),
    "nothing": ("", "has no objects"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_lines_of_yolo_are_named(kind: str, tmp_path: Path) -> None:
    text, words = WRONG[kind]
    image(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.txt", text)
    with pytest.raises(UserError, match="no names of classes"):
        coco_layout.find(tmp_path, Given(val_percent=50))
    write(tmp_path / "data.yaml", "names: [cat, dog]\n")
    with pytest.raises((UserError, WorkError)) as raised:
        coco_layout.find(tmp_path, Given(val_percent=50))
    assert words in str(raised.value) and "labels" in str(raised.value)
    write(tmp_path / "labels" / "b.txt", "0 0.5 0.5 1 1")
    with pytest.raises(UserError, match=r"b.txt has no image"):
        coco_layout.find(tmp_path, Given(val_percent=50))
