"""Label maps as people have them: any format, names in any script, classes and void labels of their own, colours.

46c01a2 took `*.jpg` with `*.png` and 0 as void or as a class, nothing else.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints.cli import UserError, WorkError
from probes.segment import data as segment_data
from probes.segment.options import SegmentOptions
from probes.shared import label_files, label_maps
from probes.shared.label_rule import Rule, chosen, class_list

COLOURS = {"sky": (128, 128, 128), "road": (0, 0, 0), "car": (64, 0, 128)}
VALUES = np.arange(12 * 16).reshape(12, 16) % 3


def write(root: Path, *, names: tuple[str, ...] = ("a", "b", "c"), values: np.ndarray = VALUES, suffix: str = ".png") -> Path:
    for images, labels in segment_data.FOLDERS.values():
        (root / images).mkdir(parents=True)
        (root / labels).mkdir(parents=True)
        for number, name in enumerate(names):
            pixels = np.random.default_rng(number).integers(0, 256, (*values.shape, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / images / f"{name}{suffix}")
            Image.fromarray(values.astype(np.uint8)).save(root / labels / f"{name}.png")
    return root


def opened(root: Path, **flags: Any) -> segment_data.Set:
    return segment_data.open_data(SegmentOptions(data=str(root), **flags))


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpeg", ".bmp", ".tif", ".webp"])
def test_images_have_any_format_and_are_paired_by_name(suffix: str, tmp_path: Path) -> None:
    data = opened(write(tmp_path, names=("a.b", "x 1", "\N{HIRAGANA LETTER A}"), suffix=suffix))
    assert [
        (Path(str(one)).stem, Path(str(two)).stem) for one, two in zip(data.train.pixels, data.train.labels, strict=True)
    ] == [(name, name) for name in ("a.b", "x 1", "\N{HIRAGANA LETTER A}")]


def test_an_accent_is_one_letter_or_two(tmp_path: Path) -> None:
    composed = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    write(tmp_path, names=(composed,))
    for _, labels in segment_data.FOLDERS.values():
        path = tmp_path / labels / f"{composed}.png"
        path.rename(path.with_name(f"{unicodedata.normalize('NFD', composed)}.png"))
    assert len(opened(tmp_path).train.labels) == 1


def test_two_files_of_one_name_are_refused_and_maps_without_images_said(tmp_path: Path) -> None:
    images, labels = (tmp_path / folder for folder in segment_data.FOLDERS["train"])
    write(tmp_path)
    (images / "b.png").rename(tmp_path / "b.png")
    assert "1 label maps have no image, the first is b.png" in label_files.pairs(images, labels).unused
    Image.new("RGB", (4, 4)).save(images / "a.bmp")
    with pytest.raises(UserError, match=r"have one name"):
        opened(tmp_path)


def test_background_and_further_void_labels(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2, 11, 255]], dtype=np.uint8)
    assert label_maps.numbered(values, chosen("0", (11,), 0, None)).tolist() == [[255, 0, 1, 255, 255]]
    assert label_maps.numbered(values, chosen("none", (11,), 0, None)).tolist() == [[0, 1, 2, 255, 255]]
    assert label_maps.numbered(values, chosen("11", (), 0, None)).tolist() == [[0, 1, 2, 255, 255]]
    assert label_maps.numbered(values, chosen(None, (), 0, None)).tolist() == [[255, 0, 1, 10, 255]]
    for word in ("-1", "256", "sky", "1.5", ""):
        with pytest.raises(UserError, match=r"--background"):
            chosen(word, (), 0, None)
    with pytest.raises(UserError, match=r"--ignore 256"):
        chosen("none", (256,), 0, None)


def test_listed_classes_want_a_background_and_bound_the_labels(tmp_path: Path) -> None:
    """46c01a2 took label 0 for void and the last void label for a class, without a word."""
    root = write(tmp_path, values=np.where(VALUES == 2, 11, VALUES))
    (root / "classes.txt").write_text("sky\nbuilding\n")
    with pytest.raises(UserError, match=r"label 1 is sky, or --background none if label 0 is sky"):
        opened(root)
    with pytest.raises(WorkError, match=r"label 11, .*\(labels 0 to 1\).* --ignore 11 .*in all 3 of 3: 3 with"):
        segment_data.look_through(opened(root, background="none"), str(root))
    found = segment_data.look_through(data := opened(root, background="none", ignore=(11,)), str(root))
    assert segment_data.num_classes(data, found) == 2 and data.names == ("sky", "building")
    assert "0 is a class" in label_maps.meaning(found, data.rule) and "11 is void (33.3 %" in label_maps.meaning(found, data.rule)


@pytest.mark.parametrize("mode", ["RGB", "P"])
@pytest.mark.parametrize("kind", ["classes.txt", "classes.json"])
def test_colours_are_labels_by_a_table(mode: str, kind: str, tmp_path: Path) -> None:
    root = write(tmp_path)
    table = np.array(list(COLOURS.values()), dtype=np.uint8)
    for path in (root / "annotations").rglob("*.png"):
        picture = Image.fromarray(table[VALUES])
        (picture if mode == "RGB" else picture.quantize(8)).save(path)
    rows = [{"name": name, "color": list(colour)} for name, colour in COLOURS.items()]
    text = "".join(f"{red} {green} {blue}\t{name}\n" for name, (red, green, blue) in COLOURS.items())
    (root / kind).write_text(text if kind.endswith("txt") else json.dumps(rows))
    data = opened(root, background="none")
    segment_data.look_through(data, str(root))
    assert data.names == tuple(COLOURS)
    assert np.array_equal(label_maps.read(Path(str(data.train.labels[0])), data.rule.colours), VALUES)
    assert opened(root, background="0").names == ("road", "car")
    path = root / segment_data.FOLDERS["train"][1] / "b.png"
    Image.new("RGB", (16, 12), (1, 2, 3)).save(path)
    with pytest.raises(WorkError, match=r"b.png has 192 pixels in colours that classes.txt does not list, the first is 1 2 3"):
        segment_data.look_through(data, str(root))


@pytest.mark.parametrize("text", ["0 0 0 a\nb\n", "0 0 0 a\n0 0 0 b\n", "0 0 300 a\n1 1 1 b\n"])
def test_tables_of_colours_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(WorkError, match=r"classes.txt"):
        class_list(tmp_path)


def test_all_that_is_wrong_is_counted_and_maps_without_a_label_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, names=tuple("abcde"))
    labels = root / segment_data.FOLDERS["train"][1]
    Image.new("L", (16, 12), 255).save(labels / "e.png")
    data = opened(root)
    found = segment_data.look_through(data, str(root))["training"]
    assert found.empty == (4,)
    assert label_maps.line("training", found, 2, None) == "training: 5 images, 2 classes; 1 left out, whose maps have no label"
    Image.new("L", (9, 9)).save(labels / "a.png")
    (labels / "b.png").write_bytes(b"")
    with pytest.raises(WorkError, match=r"a.png has 9 x 9 .*in all 2 of 5: 1 of another size than their image, 1 broken"):
        segment_data.look_through(data, str(root))


def test_broken_images_are_found_before_training(tmp_path: Path) -> None:
    """46c01a2 read headers only: a JPEG that ends early was met by a worker in the middle of a training."""
    root = write(tmp_path, suffix=".jpg")
    image = root / segment_data.FOLDERS["train"][0] / "b.jpg"
    image.write_bytes(image.read_bytes()[:-40])
    part = opened(root).train
    label_maps.survey(part.pixels, part.labels, Rule())
    with pytest.raises(UserError, match=r"b.jpg cannot be used"):
        label_maps.survey(part.pixels, part.labels, Rule(), decoded=True)


def test_a_segmenter_learns_them_too(tmp_path: Path) -> None:
    pytest.importorskip("mmseg", reason="the extra `transfer` is not installed: tools/setup.sh transfer")
    from transfer.config import read_config, toolboxes  # noqa: PLC0415
    from transfer.options import TransferOptions  # noqa: PLC0415

    toolboxes()
    from mmengine.registry import init_default_scope  # noqa: PLC0415
    from mmseg.registry import DATASETS  # noqa: PLC0415

    from transfer.labels import set_labels  # noqa: PLC0415
    from transfer.scenes import MapFlags, look_through, num_classes  # noqa: PLC0415

    root = write(tmp_path, names=("a", "\N{HIRAGANA LETTER A}", "c"), values=np.where(VALUES == 2, 11, VALUES))
    Image.new("L", (16, 12), 255).save(root / segment_data.FOLDERS["train"][1] / "c.png")
    settings = TransferOptions(task="ade20k", config="sample_upernet")
    counted = read_config(settings)
    assert look_through(root, counted, MapFlags("none", (11,), "counted")).protocol["classes"] == num_classes(counted) == 2
    (root / "classes.txt").write_text("sky\nroad\n")
    config = read_config(settings)
    found = look_through(root, config, MapFlags("none", (11,)))
    assert found.lines[0] == "training: 3 images, 2 classes (sky, road); 1 left out, whose maps have no label"
    assert found.lines[1] == "validation: 3 images, 2 classes (sky, road); none left out"
    set_labels(config, 2, found.rule)
    init_default_scope("mmseg")
    rows = DATASETS.build(config.test_dataloader.dataset)
    assert len(rows) == 3 and len(DATASETS.build(config.train_dataloader.dataset)) == 2
    theirs = rows[1]["data_samples"].gt_sem_seg.data[0].numpy()
    assert np.array_equal(theirs, np.where(VALUES == 2, 255, VALUES))


def test_views_follow_the_rule() -> None:
    labels = segment_data.label_view(np.array([[0, 1], [11, 255]], dtype=np.uint8), 2, Rule(None, (11, 255)))
    assert labels.tolist() == [[0, 1], [255, 255]]
