"""Odd data as it is typed: a note and the training begins, or one sentence with its exit code before anything is trained."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")
pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things

from checkpoints.cli import FAILED, WRONG_COMMAND, UserError, run_command  # noqa: E402
from pretrain.sample import dense  # noqa: E402
from tests.support.networks import VIT, write_moved  # noqa: E402
from transfer import train  # noqa: E402
from transfer.config import toolboxes  # noqa: E402

toolboxes()

from transfer.pictures import Pictures  # noqa: E402

BEGINS = "the training begins"
Change = Callable[[Path], Any]


class Begun(BaseException):
    """Everything was looked at, and the training would begin."""


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moved(tmp_path_factory.mktemp("ckpt") / "b.safetensors", VIT._replace(depth=4, image_size=32))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("drawn")
    dense.write_coco(root / "coco", {"train": 4, "val": 3}, size=32)
    dense.write_ade20k(root / "ade20k", {"train": 4, "val": 2}, size=32)
    return {task: root / task for task in ("coco", "ade20k")}


def typed(
    task: str, root: Path, ckpt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[Any, str]:
    """Exit code and what was said, in one line."""

    def begin(config: Any) -> float:
        raise Begun

    monkeypatch.setattr(train, "state_the_rate", begin)
    config = {"coco": "sample", "ade20k": "sample_upernet"}[task]
    words = ["--task", task, "--ckpt", ckpt, "--data", root, "--config", config, "--out", root.parent / "out", *flags]
    try:
        code: Any = run_command(train.main, list(map(str, words)))
    except Begun:
        code = BEGINS
    out, said = capsys.readouterr()
    assert "Traceback" not in out + said
    if code != BEGINS:
        assert len(said.splitlines()) == 1
        assert not list((root.parent / "out").glob("*.pth"))
        assert not (root.parent / "out" / "results").exists()
    return code, unicodedata.normalize("NFC", out + said)


def entries(change: Callable[[dict[str, Any]], Any], *parts: str) -> Change:
    """A change of annotation files."""

    def changed(root: Path) -> None:
        for part in parts or ("train",):
            file = root / f"annotations/instances_{part}2017.json"
            content = json.loads(file.read_text())
            change(content)
            file.write_text(json.dumps(content, ensure_ascii=False))

    return changed


def every(name: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: [one.update(values) for one in content[name]]


def cut(*names: str) -> Change:
    """Files that were not written to their end: their headers are whole."""
    return lambda root: [(root / name).write_bytes((root / name).read_bytes()[:-200]) for name in names]


def exif(orientation: int, *names: str) -> Change:
    def turn(root: Path) -> None:
        tag = Image.Exif()
        tag[0x0112] = orientation
        for name in names:
            Image.open(root / name).save(root / name, exif=tag.tobytes())

    return turn


def without_val(root: Path) -> None:
    shutil.rmtree(root / "val2017")
    (root / "annotations/instances_val2017.json").unlink()


def val_is_train(root: Path) -> None:
    shutil.rmtree(root / "val2017")
    (root / "val2017").symlink_to(root / "train2017")
    shutil.copy(root / "annotations/instances_train2017.json", root / "annotations/instances_val2017.json")


def named(form: str) -> Change:
    """Names beyond ASCII in the annotations (composed) and on disk, in this form."""
    first = "Größe 猫 "

    def rename(root: Path) -> None:
        for path in list((root / "train2017").iterdir()):
            path.rename(path.with_name(unicodedata.normalize(form, first) + path.name))  # type: ignore[arg-type]
        entries(lambda content: [one.update(file_name=first + one["file_name"]) for one in content["images"]])(root)

    return rename


def one_file(content: dict[str, Any]) -> None:
    content["images"][1]["file_name"] = content["images"][0]["file_name"]


def again(content: dict[str, Any]) -> None:
    content["annotations"].append(content["annotations"][0] | {"id": 1000})


def polygons_without_boxes(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        one["segmentation"] = [[4, 4, 12, 4, 12, 12, 4, 12]]
        del one["bbox"], one["area"], one["iscrowd"]


J0, J1 = "train2017/000000000000.jpg", "train2017/000000000001.jpg"
COCO: dict[str, tuple[Change, tuple[str, ...], Any, str]] = {
    "cut off": (cut(J0, J1), (), WRONG_COMMAND, "cannot be used (image file is truncated"),
    "counted by kind": (cut(J0, J1), (), WRONG_COMMAND, "(in all 2 of 4: 2 broken)"),
    "half a turn by EXIF": (exif(3, J0), (), BEGINS, "1 of 4 images are turned or mirrored by their EXIF, boxes are taken for"),
    "a quarter, square": (exif(6, J0, J1), (), BEGINS, "2 of 4 images are turned or mirrored by their EXIF"),
    "one file, two ids": (entries(one_file), (), FAILED, "images 0 and 1 are the same file '000000000000.jpg'"),
    "an object twice": (entries(again), (), BEGINS, "1 objects occur more than once (image, class, box)"),
    "tested on what was trained on": (val_is_train, (), BEGINS, "4 of the test images are training images too"),
    "names of any script": (named("NFC"), (), BEGINS, "4 images"),
    "accents of other letters": (named("NFD"), (), WRONG_COMMAND, "a file's accents are other letters than in"),
    "ids beyond 64 bit": (entries(every("images", id=2**64)), (), FAILED, "no whole number of 64 bit"),
    "no test part": (without_val, (), WRONG_COMMAND, "--val-percent 20, which holds training images out"),
    "a part held out": (without_val, ("--val-percent", "25"), BEGINS, "25 % of the images are held out"),
    "nothing held out": (without_val, ("--val-percent", "1"), WRONG_COMMAND, "leaves 0 to test"),
    "only crowds in the test": (entries(every("annotations", iscrowd=1), "val"), (), FAILED, "not one usable object"),
    "an unlisted category": (entries(every("annotations", category_id=99)), (), FAILED, "names category_id 99"),
    "polygons alone": (entries(polygons_without_boxes), (), BEGINS, "iscrowd, area or bbox worked out"),
    "polygons alone, as boxes": (entries(polygons_without_boxes), ("--boxes-only", "true"), BEGINS, "learns boxes alone"),
    "scaled": (
        entries(lambda content: [change(content) for change in (every("images", width=64, height=64), polygons_without_boxes)]),
        (),
        FAILED,
        "(the images were scaled and the file was not): boxes would not fit (in all 4 of 4: 4 of another size than",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", COCO)
def test_odd_annotations_of_coco(
    kind: str,
    drawn: dict[str, Path],
    ckpt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, flags, code, words = COCO[kind]
    root = shutil.copytree(drawn["coco"], tmp_path / "data")
    change(root)
    found, said = typed("coco", root, ckpt, monkeypatch, capsys, *flags)
    assert (found, words in said) == (code, True), said


VOC: dict[str, tuple[Change, Any, str]] = {
    "a size without end": (lambda root: xml(root, 0, size="inf"), FAILED, "0.xml: 'inf' is no number"),
    "a box without end": (lambda root: xml(root, 0, right="1e400"), FAILED, "0.xml: '1e400' is no number"),
    "a box of nan": (lambda root: xml(root, 0, right="nan"), FAILED, "0.xml: 'nan' is no number"),
    "sides exchanged": (lambda root: xml(root, 0, right="1"), BEGINS, "1 annotations without area or outside their image"),
    "another size": (lambda root: xml(root, 0, size="64"), FAILED, "boxes would not fit"),
    "two images of a name": (lambda root: shutil.copy(root / J0_VOC, root / "JPEGImages/0.png"), WRONG_COMMAND, "have one name"),
    "another encoding": (
        lambda root: (root / "Annotations/0.xml").write_bytes("<a>ä</a>".encode("latin-1")),
        WRONG_COMMAND,
        "0.xml is not UTF-8",
    ),
    "listed twice": (lambda root: lists(root, "0 1 1 2", "3"), FAILED, "are the same file '1.jpg'"),
    "listed for both": (lambda root: lists(root, "0 1 2", "2 3"), BEGINS, "1 of the test images are training images too"),
    "listed, not there": (lambda root: lists(root, "0 9", "3"), WRONG_COMMAND, "9.xml has no image of its name"),
}
J0_VOC = "JPEGImages/0.jpg"


def xml(root: Path, number: int, *, size: str = "32", right: str = "20") -> None:
    text = f"<annotation><size><width>{size}</width><height>32</height></size><object><name>cat</name><bndbox>"
    sides = {"xmin": "5", "ymin": "5", "xmax": right, "ymax": "20"}
    text += "".join(f"<{side}>{value}</{side}>" for side, value in sides.items()) + "</bndbox></object></annotation>"
    (root / f"Annotations/{number}.xml").write_text(text)


def lists(root: Path, train: str, val: str) -> None:
    (root / "ImageSets/Main").mkdir(parents=True)
    for name, stems in (("train", train), ("val", val)):
        (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(stems.split()))


@pytest.mark.parametrize("kind", VOC)
def test_odd_files_of_voc(
    kind: str,
    drawn: dict[str, Path],
    ckpt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, code, words = VOC[kind]
    root = tmp_path / "data"
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for number in range(4):
        shutil.copy(drawn["coco"] / f"train2017/{number:012d}.jpg", root / f"JPEGImages/{number}.jpg")
        xml(root, number)
    change(root)
    flags = () if (root / "ImageSets").exists() else ("--val-percent", "25")
    found, said = typed("coco", root, ckpt, monkeypatch, capsys, *flags)
    assert (found, words in said) == (code, True), said


BOX = "0 0.5 0.5 0.4 0.4\n"
YOLO: dict[str, tuple[Change, Any, str]] = {
    "an empty line among the names": (
        lambda root: (root / "data.yaml").rename(root / "classes.txt").write_text("cat\n\ndog\n"),
        FAILED,
        "classes.txt: line 2 is empty",
    ),
    "polygons to train, boxes to test": (
        lambda root: (root / "labels/train/0.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n"),
        BEGINS,
        "learns boxes alone",
    ),
    "a line twice": (lambda root: (root / "labels/train/0.txt").write_text(2 * BOX), BEGINS, "1 objects occur more than once"),
    "a label without image": (lambda root: (root / "labels/train/9.txt").write_text(BOX), WRONG_COMMAND, "9.txt has no image"),
    "nothing in the test": (
        lambda root: [one.write_text("") for one in (root / "labels/val").iterdir()], WRONG_COMMAND, "labels/val has no",
    ),
    "cut off": (cut("images/train/0.jpg"), WRONG_COMMAND, "0.jpg cannot be used"),
    "accents of other letters": (
        lambda root: [
            (root / f"{kind}/train/0.{ending}").rename(root / f"{kind}/train/{stem}.{ending}")
            for kind, ending, stem in (("images", "jpg", "e\u0301"), ("labels", "txt", "\u00e9"))
        ],
        BEGINS,
        "3 images, 3 usable objects",
    ),
    "suffixes in capitals": (
        lambda root: (root / "labels/train/0.txt").rename(root / "labels/train/0.TXT"), BEGINS, "3 images, 3 usable objects",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", YOLO)
def test_odd_files_of_yolo(
    kind: str,
    drawn: dict[str, Path],
    ckpt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, code, words = YOLO[kind]
    root = tmp_path / "data"
    for part in ("train", "val"):
        (root / "images" / part).mkdir(parents=True)
        (root / "labels" / part).mkdir(parents=True)
        for number in range(3):
            shutil.copy(drawn["coco"] / f"{part}2017/{number:012d}.jpg", root / f"images/{part}/{number}.jpg")
            (root / f"labels/{part}/{number}.txt").write_text(BOX)
    (root / "data.yaml").write_text("names: [cat, dog]\n")
    change(root)
    found, said = typed("coco", root, ckpt, monkeypatch, capsys)
    assert (found, words in said) == (code, True), said


M0, I0 = "annotations/training/00000.png", "images/training/00000.jpg"


def drawn_map(image: Any) -> Change:
    return lambda root: image.save(root / M0)


MAPS: dict[str, tuple[Change, tuple[str, ...], Any, str]] = {
    "half a turn by EXIF": (exif(3, I0), (), BEGINS, "1 of 4 images are turned or mirrored by their EXIF, label maps are taken"),
    "cut off": (cut(I0), (), WRONG_COMMAND, "00000.jpg cannot be used (image file is truncated"),
    "another size": (drawn_map(Image.new("L", (16, 16), 3)), (), FAILED, "a label map has the size of its image"),
    "beyond the classes": (drawn_map(Image.new("L", (32, 32), 77)), (), FAILED, "holds the label 77"),
    "no label": (drawn_map(Image.new("L", (32, 32), 0)), (), BEGINS, "1 left out, whose maps have no label"),
    "colours": (drawn_map(Image.new("RGB", (32, 32))), (), FAILED, "is a picture of mode RGB, no label map"),
    "16 bit": (drawn_map(Image.fromarray(np.full((32, 32), 300, np.uint16))), (), FAILED, "holds the label 300"),
    "an empty line among the classes": (
        lambda root: (root / "classes.txt").write_text("a\n\nb\n"), ("--background", "0"), FAILED, "classes.txt: line 2 is empty",
    ),
    "no map": (lambda root: (root / M0).unlink(), (), WRONG_COMMAND, "lacks annotations/training/00000.png"),
    "no image": (lambda root: (root / I0).unlink(), (), BEGINS, "1 label maps have no image, the first is 00000.png"),
    "names of any script": (
        lambda root: [(root / one).rename((root / one).with_stem("猫 é")) for one in (I0, M0)],
        (), BEGINS, "training: 4 images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAPS)
def test_odd_label_maps(
    kind: str,
    drawn: dict[str, Path],
    ckpt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, flags, code, words = MAPS[kind]
    root = shutil.copytree(drawn["ade20k"], tmp_path / "data")
    change(root)
    found, said = typed("ade20k", root, ckpt, monkeypatch, capsys, *flags)
    assert (found, words in said) == (code, True), said


def test_a_file_that_was_cut_off_is_refused_when_it_is_read(drawn: dict[str, Path], tmp_path: Path) -> None:
    """OpenCV fills what is missing with grey and only prints a word."""
    whole = drawn["coco"] / J0
    assert Pictures().get(whole) == Pictures().get(whole) == whole.read_bytes()
    shutil.copy(whole, tmp_path / "a.jpg")
    cut("a.jpg")(tmp_path)
    with pytest.raises(UserError, match=r"a.jpg cannot be used \(image file is truncated"):
        Pictures().get(tmp_path / "a.jpg")
