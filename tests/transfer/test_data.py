"""Odd data sets of dense tasks: each gets its right number or one sentence before anything is trained. 255 is void everywhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from checkpoints.cli import DONE, FAILED, UserError, WorkError, run_command
from pretrain.sample import dense
from probes.segment import __main__ as segment
from probes.segment import data as segment_data
from probes.segment.options import SegmentOptions
from probes.segment.scores import Confusion
from probes.shared import label_maps
from probes.shared.label_rule import Rule, chosen, class_list
from tests.support import networks
from tests.support.networks import VIT, write_moved

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

from transfer import annotations, data  # noqa: E402
from transfer.config import read_config, toolboxes  # noqa: E402
from transfer.options import TransferOptions  # noqa: E402
from transfer.scenes import MapFlags  # noqa: E402

SIDE = 32
TRAIN, VAL = "annotations/training/00000.png", "annotations/validation/00000.png"


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    toolboxes()
    names = {"coco": "sample", "ade20k": "sample_upernet"}
    return {task: read_config(TransferOptions(task=task, config=name)) for task, name in names.items()}  # type: ignore[arg-type]


def prepared(task: str, root: Path, configs: dict[str, Any], out: Path, **flags: Any) -> tuple[data.Found, Any]:
    config = configs[task].__deepcopy__({})
    data.set_root(config, root)
    return data.look_through(task, root, config, out, **flags), config


# ---- COCO ----

Change = Callable[[dict[str, Any]], Any]


def each(field: str, value: Any) -> Change:
    return lambda content: [one.update({field: value}) for one in content["annotations"]]


def first(entries: str, **values: Any) -> Change:
    return lambda content: content[entries][0].update(values)


def without(entries: str, field: str) -> Change:
    return lambda content: [one.pop(field) for one in content[entries]]


def twice(entries: str) -> Change:
    return lambda content: content[entries].append(dict(content[entries][0]))


def _no_runs(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        one["segmentation"] = [SQUARE]


def _other_width(content: dict[str, Any]) -> None:
    """Of polygons, whose size nothing else says."""
    for image in content["images"]:
        image.update(width=31)
    _no_runs(content)


SQUARE = [4, 4, 12, 4, 12, 12, 4, 12]
WRONG: dict[str, tuple[Change, str]] = {
    "text for a mask": (each("segmentation", "abc"), "neither polygons"),
    "odd polygon": (first("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "odd number of coordinates"),
    "nan in a polygon": (first("annotations", segmentation=[[1, 2, 3, float("nan"), 5, 6]]), "neither polygons"),
    "only flat polygons": (each("segmentation", [[1, 1, 5, 5, 9, 9]]), "no annotation has a box and a mask with any area"),
    "only points": (each("segmentation", [[1, 1, 5, 5]]), "no annotation has a box and a mask with any area"),
    "runs of another size": (first("annotations", segmentation={"size": [9, 9], "counts": [81]}), "its image is [32, 32]"),
    "runs that are short": (first("annotations", segmentation={"size": [32, 32], "counts": [5, 5]}), "run lengths of 10 pixels"),
    "runs of text": (first("annotations", segmentation={"size": [32, 32], "counts": "!!"}), "damaged"),
    "runs of null": (first("annotations", segmentation={"size": [32, 32], "counts": None}), "neither a list nor a text"),
    "no box for runs": (without("annotations", "bbox"), "annotation 1 has no bbox"),
    "three numbers for a box": (first("annotations", bbox=[1, 2, 3]), "four numbers"),
    "text for a box": (first("annotations", bbox="1 2 3 4"), "four numbers"),
    "infinite box": (first("annotations", bbox=[0, 0, float("inf"), 3]), "four numbers"),
    "all boxes empty": (each("bbox", [3, 3, 0, 5]), "no annotation has a box"),
    "all boxes outside": (each("bbox", [40, 3, 5, 5]), "no annotation has a box"),
    "no such image": (first("annotations", image_id=99), "annotation 1 names image_id 99"),
    "no such category": (first("annotations", category_id=99), "annotation 1 names category_id 99"),
    "null for a category": (first("annotations", category_id=None), "category_id None, no whole number"),
    "two images of an id": (
        lambda c: c["images"][1].update(id=c["images"][0]["id"]),
        "two images have the id 0: '000000000000.jpg'",
    ),
    "two categories of an id": (twice("categories"), "two category entries have the id 1"),
    "two categories of a name": (lambda c: c["categories"][0].update(name=c["categories"][1]["name"]), "have the name"),
    "no name of a category": (first("categories", name=None), "category 1 has the name None"),
    "annotations without ids": (without("annotations", "id"), "one annotation has no id"),
    "images without heights": (without("images", "height"), "image 0 has no height"),
    "negative height": (first("images", height=-5), "image 0 has 32 x -5 pixels"),
    "another size than the file": (_other_width, "which has 32 x 32"),
    "iscrowd of text": (first("annotations", iscrowd="yes"), "iscrowd 'yes': 0 or 1"),
    "area of text": (first("annotations", area="big"), "the area 'big'"),
    "negative area": (first("annotations", area=-1), "the area -1"),
    "categories that are no list": (lambda c: c.update(categories={"a": 1}), "categories must be a list"),
    "no categories": (lambda c: c.pop("categories"), "categories must be a list"),
    "only crowds": (each("iscrowd", 1), "not one usable object"),
    "only ignored": (each("ignore", 1), "annotations marked `ignore` left out"),
    "boxes under a pixel": (each("bbox", [3, 3, 0.5, 5]), "no annotation has a box"),
    "annotations of numbers": (lambda c: c.update(annotations=[1, 2]), "annotations must be a list"),
    "name of a file is a number": (first("images", file_name=7), "no name of a file"),
    "name of a file has a null": (first("images", file_name="a\0.jpg"), "no name of a file"),
    "other classes than in val": (lambda c: c["categories"][0].update(name="cat"), "both need the same categories"),
    "other order than in val": (lambda c: c["categories"].reverse(), "in another order"),
}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    dense.write_coco(root, {"train": 2, "val": 2}, size=SIDE)
    return root


def changed(root: Path, change: Change, parts: tuple[str, ...] = ("train",)) -> None:
    for part in parts:
        file = root / "annotations" / f"instances_{part}2017.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", WRONG)
def test_annotations_that_are_wrong_are_one_sentence(kind: str, coco: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    change, words = WRONG[kind]
    changed(coco, change)
    with pytest.raises(WorkError) as raised:
        prepared("coco", coco, configs, tmp_path / "out")
    said = str(raised.value)
    assert words in said
    assert "instances_train2017.json" in said
    assert "\n" not in said
    assert len(said) < 500


def test_what_is_listed_twice_is_counted_and_taken_once(coco: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    file = coco / "annotations" / "instances_train2017.json"
    before = json.loads(file.read_text())["annotations"]

    def change(content: dict[str, Any]) -> None:
        content["images"].append(dict(content["images"][0]))
        content["annotations"].append(dict(before[0]))
        content["annotations"].append(dict(before[0]) | {"bbox": [1, 1, 9, 9]})

    changed(coco, change)
    found, config = prepared("coco", coco, configs, tmp_path / "out")
    for words in ("1 images listed twice", "1 annotations listed twice", "1 annotations with the id of another are renumbered"):
        assert words in found.lines[0]
    content = json.loads(Path(config.train_dataloader.dataset.ann_file).read_text())
    assert len(content["images"]) == 2
    assert [one["id"] for one in content["annotations"]] == [*range(1, len(before) + 2)]


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_an_object_without_a_mask_among_others_is_neither_learnt_nor_missed(
    nothing: Any, coco: Path, tmp_path: Path, configs: dict[str, Any]
) -> None:
    changed(coco, first("annotations", segmentation=nothing, bbox=[-2, 3, 6, 4.5]))
    found, config = prepared("coco", coco, configs, tmp_path / "out")
    assert "1 objects have a box and no mask, the first is annotation 1" in found.lines[0] and "1 crowds" in found.lines[0]
    one = completed(config)[0]
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[3:8, 0:4] = True
    from pycocotools import mask as tools  # noqa: PLC0415

    assert np.array_equal(tools.decode(tools.frPyObjects(one["segmentation"], SIDE, SIDE)), mask) and one["iscrowd"] == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"images": 3}', b"[" * 100_000], ids=repr)
def test_what_is_no_json_of_coco_is_one_sentence(content: bytes, coco: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    (coco / "annotations" / "instances_val2017.json").write_bytes(content)
    with pytest.raises(UserError, match=r"instances_val2017.json is not an annotation file of COCO"):
        prepared("coco", coco, configs, tmp_path / "out")


def completed(config: Any, part: str = "train") -> list[dict[str, Any]]:
    return json.loads(Path(config[f"{part}_dataloader"].dataset.ann_file).read_text())["annotations"]


def test_a_sample_as_it_is_changes_nothing(coco: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    found, config = prepared("coco", coco, configs, tmp_path / "out")
    assert config.train_dataloader.dataset.ann_file == "annotations/instances_train2017.json" and not (tmp_path / "out").exists()
    assert config.model == configs["coco"].model and found.protocol == {"classes": 10}


@pytest.mark.parametrize("field", ["iscrowd", "area"])
def test_what_coco_s_tools_need_is_worked_out(field: str, coco: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    whole = json.loads((coco / "annotations" / "instances_train2017.json").read_text())["annotations"]
    changed(coco, without("annotations", field), ("train", "val"))
    found, config = prepared("coco", coco, configs, tmp_path / "out")
    assert completed(config) == whole and f"worked out for {len(whole)}" in found.lines[0]
    assert Path(config.test_evaluator.ann_file) == Path(config.test_dataloader.dataset.ann_file) and completed(config, "test")


def test_polygons_have_their_area_and_box_and_flat_ones_are_left_out(coco: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    def change(content: dict[str, Any]) -> None:
        one = content["annotations"][0]
        shared = {"image_id": one["image_id"], "category_id": one["category_id"]}
        content["annotations"] = [
            shared | {"id": 1, "segmentation": [SQUARE, [1, 1, 9, 9]]},  # a square and a line
            shared | {"id": 2, "segmentation": [[1, 1, 9, 9, 5, 5]], "bbox": [1, 1, 8, 8]},  # a line
            shared | {"id": 3, "segmentation": [SQUARE], "bbox": [4, 4, 8, 0]},
            shared | {"id": 4, "segmentation": [SQUARE], "bbox": [-9, 4, 8, 8]},
        ]

    changed(coco, change)
    found, config = prepared("coco", coco, configs, tmp_path / "out")
    (one,) = completed(config)
    assert (one["id"], one["bbox"], one["area"], one["iscrowd"]) == (1, [4, 4, 8, 8], 64, 0) and one["segmentation"] == [SQUARE]
    assert "3 annotations without area or outside their image left out, the first is 2" in found.lines[0]
    assert "1 images have none" in found.lines[0]


def test_compressed_run_lengths_are_read_as_coco_s_tools_read_them(coco: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    from pycocotools import mask as tools  # noqa: PLC0415

    def change(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            packed = tools.frPyObjects(one["segmentation"], SIDE, SIDE)
            one["segmentation"] = {"size": packed["size"], "counts": packed["counts"].decode()}

    changed(coco, change, ("train", "val"))
    _, config = prepared("coco", coco, configs, tmp_path / "out")
    assert config.train_dataloader.dataset.ann_file.startswith("annotations/")
    changed(coco, lambda content: content["annotations"][0]["segmentation"].update(counts="04"))
    with pytest.raises(WorkError, match=r"annotation 1 has a text of run lengths that is damaged"):
        prepared("coco", coco, configs, tmp_path / "out")


def test_own_classes_and_ids_with_gaps_are_those_of_the_data(coco: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 7, "name": "cat"}, {"id": 300, "name": "[/b]"}]
        for one in content["annotations"]:
            one["category_id"] = 7 if one["category_id"] < 5 else 300

    changed(coco, change, ("train", "val"))
    found, config = prepared("coco", coco, configs, tmp_path / "out")
    heads = config.model.roi_head
    assert (heads.bbox_head.num_classes, heads.mask_head.num_classes) == (2, 2) and found.protocol == {"classes": 2}
    assert config.test_dataloader.dataset.metainfo["classes"] == ("cat", "[/b]")
    assert "classes of the annotations, not the config's: 2" in found.lines[-1]


@pytest.mark.parametrize("name", ["cascade_vits16_1x", "mask_rcnn_swint_1x"])
def test_own_classes_reach_every_head_of_the_full_size_configs(name: str, coco: Path, tmp_path: Path) -> None:
    config = read_config(TransferOptions(task="coco", config=name))
    data.set_root(config, coco)
    assert data.look_through("coco", coco, config, tmp_path / "out").protocol == {"classes": 10}
    heads = config.model.roi_head.bbox_head
    counts = [head.num_classes for head in (heads if isinstance(heads, list) else [heads])]
    assert set(counts) == {config.model.roi_head.mask_head.num_classes} == {10}
    assert config.model.rpn_head.get("num_classes", 1) == 1


def test_the_area_of_a_polygon_is_its_formula() -> None:
    assert annotations.polygon_area(SQUARE) == 64 and annotations.polygon_area([0, 0, 4, 0, 0, 3]) == 6
    assert annotations.polygon_area([0, 0, 3, 3, 9, 9]) == 0


# ---- label maps ----


def drawn(mode: str, value: Any = 3, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.new(mode, size, value)


def palette(colours: list[int]) -> Image.Image:
    """Indices 1 and 2, whose colours are none of them."""
    image = Image.fromarray(np.tile(np.array([1, 2], dtype=np.uint8), (SIDE, SIDE // 2)), "P")
    image.putpalette(colours)
    return image


MAPS: dict[str, tuple[Any, str]] = {
    "rgb": (drawn("RGB", (3, 3, 3)), "is a picture of mode RGB, no label map"),
    "rgba": (drawn("RGBA", (3, 0, 0, 255)), "is a picture of mode RGBA, no label map"),
    "grey and alpha": (drawn("LA", (3, 255)), "is a picture of mode LA, no label map"),
    "16 bit, too high": (Image.fromarray(np.full((SIDE, SIDE), 300, np.uint16)), "holds the label 300: labels are 0 to 254"),
    "16 bit, highest": (Image.fromarray(np.full((SIDE, SIDE), 65535, np.uint16)), "holds the label 65535"),
    "smaller": (drawn("L", 3, (16, 16)), "00000.png has 16 x 16 pixels and its image"),
    "turned": (drawn("L", 3, (SIDE, SIDE + 1)), "00000.png has 32 x 33 pixels and its image"),
    "beyond the classes": (drawn("L", 12), "holds the label 12, and there are 11 classes (labels 1 to 11)"),
    "254": (drawn("L", 254), "holds the label 254, and there are 11 classes"),
    "no picture": (b"abc", "cannot be used (no image)"),
    "empty": (b"", "cannot be used (no image)"),
}


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    root = tmp_path / "ade"
    dense.write_ade20k(root, {"train": 3, "val": 2}, size=SIDE)
    return root


def put(content: Any, path: Path) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)


def segmented(root: Path, background: str | None = None) -> dict[str, label_maps.Survey]:
    return segment_data.look_through(segment_data.open_data(SegmentOptions(data=str(root), background=background)), str(root))


def rule_of(background: str) -> Rule:
    return chosen(background, (), 0, None)


@pytest.mark.parametrize("place", [TRAIN, VAL])
@pytest.mark.parametrize("kind", MAPS)
def test_what_is_no_label_map_of_its_image_is_named_by_both(
    kind: str, place: str, ade20k: Path, tmp_path: Path, configs: dict[str, Any]
) -> None:
    content, words = MAPS[kind]
    put(content, ade20k / place)
    with pytest.raises((WorkError, UserError)) as raised:
        prepared("ade20k", ade20k, configs, tmp_path / "out")
    assert words in str(raised.value) and place in str(raised.value) and "\n" not in str(raised.value)
    if "11 classes" not in words:  # the probe has as many classes as there are labels
        with pytest.raises((WorkError, UserError)) as raised:
            segmented(ade20k)
        assert words in str(raised.value) and place in str(raised.value)


@pytest.mark.parametrize("colours", [[0, 0, 0] * 256, [255, 255, 255] * 256, list(range(256)) * 3], ids=["black", "white", "any"])
def test_of_a_palette_the_indices_are_read(colours: list[int], tmp_path: Path) -> None:
    palette(colours).save(tmp_path / "a.png")
    assert np.array_equal(np.unique(label_maps.read(tmp_path / "a.png")), [1, 2])


@pytest.mark.parametrize(
    "array", [np.eye(8, dtype=bool), np.full((8, 8), 254, np.uint8), np.full((8, 8), 200, np.uint16)], ids=["1", "8", "16 bit"]
)
def test_whole_numbers_of_any_depth_are_read(array: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(array).save(tmp_path / "a.png")
    assert np.array_equal(label_maps.read(tmp_path / "a.png"), array)


NOTHING_TO_TELL: dict[str, tuple[int, int, str, str]] = {
    "0 only": (0, 0, "0", "nothing but 0 and 255, which are void; --background none"),
    "255 only": (255, 255, "0", "nothing but 0 and 255, which are void"),
    "255 only, 0 a class": (255, 255, "none", "nothing but 255, which is void"),
    "none in val": (1, 255, "0", "the validation label maps"),
    "one class": (1, 1, "0", "one class only, label 1"),
    "0 and 1": (1, 0, "0", "--background none makes 0 a class"),
    "one class, 0": (0, 0, "none", "one class only, label 0"),
}


@pytest.mark.parametrize("kind", NOTHING_TO_TELL)
def test_maps_without_labels_or_with_one_class_are_one_sentence(
    kind: str, ade20k: Path, tmp_path: Path, configs: dict[str, Any]
) -> None:
    mine, theirs, background, words = NOTHING_TO_TELL[kind]
    for part, value in (("training", mine), ("validation", theirs)):
        for path in (ade20k / "annotations" / part).iterdir():
            drawn("L", value).save(path)
    flags = {"maps": MapFlags(background)}
    for look in (
        lambda: prepared("ade20k", ade20k, configs, tmp_path / "out", **flags),
        lambda: segmented(ade20k, background),
    ):
        with pytest.raises(WorkError) as raised:
            look()
        assert words in str(raised.value)


@pytest.mark.parametrize("background", ["0", "none"])
def test_both_say_what_0_and_255_mean_and_read_the_same_labels(
    background: str, ade20k: Path, tmp_path: Path, configs: dict[str, Any]
) -> None:
    from mmengine.registry import init_default_scope  # noqa: PLC0415
    from mmseg.registry import DATASETS  # noqa: PLC0415

    from transfer.labels import set_labels  # noqa: PLC0415

    for path in sorted((ade20k / "annotations").rglob("*.png")):
        labels = np.asarray(Image.open(path)).copy()
        labels[:8], labels[8:12] = 255, 0
        Image.fromarray(np.where(labels == 11, 10, labels)).save(path)
    found, config = prepared("ade20k", ade20k, configs, tmp_path / "out", maps=MapFlags(background))
    said, rule = found.lines[-1], rule_of(background)
    assert "255 is void (25.0 % of the pixels)" in said and "(12.5 % of the pixels)" in said
    assert ("0 is void, as in ADE20K" if background == "0" else "0 is a class") in said
    assert said.startswith(label_maps.meaning(segmented(ade20k, background), rule))
    assert found.protocol == {"classes": 11, "void_labels": rule.void} and found.rule == rule
    set_labels(config, 11, rule)
    init_default_scope("mmseg")
    rows = DATASETS.build(config.test_dataloader.dataset)
    mine = segment_data.open_data(SegmentOptions(data=str(ade20k))).val
    for row, labels in zip(rows, mine.labels, strict=True):
        theirs = row["data_samples"].gt_sem_seg.data[0].long()
        assert torch.equal(theirs, segment_data.label_view(labels, SIDE, rule)) and (theirs == 255).any()


def test_a_map_that_is_changed_later_is_named_when_it_is_read(ade20k: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    from mmengine.registry import init_default_scope  # noqa: PLC0415
    from mmseg.registry import DATASETS  # noqa: PLC0415

    from transfer.labels import set_labels  # noqa: PLC0415

    right = (ade20k / "annotations/training/00001.png").read_bytes()
    for content, words in ((drawn("L", 99), "holds the label 99"), (drawn("L", 2, (8, 8)), "has 8 x 8 pixels and its image")):
        put(right, ade20k / "annotations/training/00001.png")
        found, config = prepared("ade20k", ade20k, configs, tmp_path / "out")
        assert found.lines[-1].startswith("5 label maps")
        set_labels(config, 11, found.rule)
        put(content, ade20k / "annotations/training/00001.png")
        init_default_scope("mmseg")
        config.train_dataloader.dataset.indices = None
        rows = DATASETS.build(config.train_dataloader.dataset)
        with pytest.raises(WorkError, match=rf"00001.png {words}"):
            rows[1]


def test_a_run_goes_on_with_the_labels_that_it_began_with(tmp_path: Path) -> None:
    labels = {"classes": 11, "void_labels": [0, 255]}
    for _ in range(2):
        data.same_as_before(tmp_path, labels, write=True)
    for other in ({"classes": 11, "void_labels": [255]}, {"classes": 12, "void_labels": [0, 255]}):
        with pytest.raises(UserError, match=r"was trained with other labels .*give the same --background"):
            data.same_as_before(tmp_path, other, write=True)
    (tmp_path / "labels.json").write_text("{")
    data.same_as_before(tmp_path, labels, write=True)
    assert json.loads((tmp_path / "labels.json").read_text()) == labels


@pytest.mark.parametrize("name, text", [("classes.txt", "cat\ndog\nfish\n"), ("classes.json", '["cat", "dog", "fish"]')])
def test_own_classes_of_label_maps(name: str, text: str, ade20k: Path, tmp_path: Path, configs: dict[str, Any]) -> None:
    for path in (ade20k / "annotations").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) % 4).save(path)
    (ade20k / name).write_text(text)
    with pytest.raises(UserError, match=r"lists classes: give --background 0 if label 0 is void and label 1 is cat"):
        prepared("ade20k", ade20k, configs, tmp_path / "out")
    flags = {"maps": MapFlags("0")}
    found, config = prepared("ade20k", ade20k, configs, tmp_path / "out", **flags)
    assert config.model.decode_head.num_classes == config.model.auxiliary_head.num_classes == 3 == found.protocol["classes"]
    assert config.test_dataloader.dataset.metainfo["classes"] == ("cat", "dog", "fish") and "cat, dog, fish" in found.lines[0]
    drawn("L", 4).save(ade20k / TRAIN)
    with pytest.raises(WorkError, match=r"00000.png holds the label 4, and there are 3 classes .* --ignore 4 if it is void"):
        prepared("ade20k", ade20k, configs, tmp_path / "out", **flags)


@pytest.mark.parametrize("text", [b"", b"cat\n", b"cat\ncat\n", b"\xff\xfe\n", b"\n".join(b"%d" % n for n in range(300))])
def test_lists_of_classes_that_are_none(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(WorkError, match=r"classes.txt"):
        class_list(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1, 2]", '["a", ""]', "3"])
def test_lists_of_classes_that_are_no_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(WorkError, match=r"classes.json"):
        class_list(tmp_path)


def test_files_that_are_no_images_are_counted_and_folders_below_refused(
    ade20k: Path, tmp_path: Path, configs: dict[str, Any]
) -> None:
    folder = ade20k / "images" / "training"
    (folder / "._00000.jpg").write_bytes(b"")
    found, _ = prepared("ade20k", ade20k, configs, tmp_path / "out")
    assert found.lines[0].endswith("none left out (1 files are not used, no pictures, the first is ._00000.jpg)")
    (folder / "more").mkdir()
    (folder / "00000.jpg").rename(folder / "more" / "00000.jpg")
    for look in (lambda: prepared("ade20k", ade20k, configs, tmp_path / "out"), lambda: segmented(ade20k)):
        with pytest.raises(UserError, match=r"lies in a folder of its own"):
            look()


def test_images_are_turned_as_their_maps_are(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    Image.open(tmp_path / "a.jpg").transpose(Image.Transpose.ROTATE_270).save(tmp_path / "b.jpg", format="PNG")
    assert label_maps.side_lengths(tmp_path / "a.jpg") == (8, 12)
    turned, upright = (segment_data.view(tmp_path / name, networks.backbone(), 8) for name in ("a.jpg", "b.jpg"))
    assert torch.equal(turned, upright)


# ---- the number ----


@pytest.mark.parametrize("background", ["0", "none"])
def test_miou_is_that_of_a_slow_count_that_leaves_255_out(background: str) -> None:
    rule = rule_of(background)
    generator = np.random.default_rng(0)
    values = generator.choice(np.array([0, 1, 2, 3, 5, 255], dtype=np.uint8), size=(3, SIDE, SIDE))
    said = generator.integers(6, size=values.shape)
    confusion = Confusion(6)
    labels = torch.stack([segment_data.label_view(one, SIDE, rule) for one in values])
    confusion.add(torch.from_numpy(said), labels)
    first, of_class = rule.first, []
    known = [
        (int(value) - first, int(answer))
        for value, answer in zip(values.ravel(), said.ravel(), strict=True)
        if value != 255 and value >= first
    ]
    for number in range(6):
        both = sum(pair == (number, number) for pair in known)
        either = sum(number in pair for pair in known)
        of_class += [both / either] if either else []
    assert confusion.metrics()["miou"] == pytest.approx(100 * np.mean(of_class))
    right = sum(value == answer for value, answer in known)
    assert confusion.metrics()["aacc"] == pytest.approx(100 * right / len(known))


def test_miou_is_mmsegmentation_s() -> None:
    from mmseg.evaluation import IoUMetric  # noqa: PLC0415

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (1, SIDE, SIDE), generator=generator)
    labels[:, :4] = 255
    said = torch.randint(0, 5, labels.shape, generator=generator)  # class 3 and 4 are answers only
    confusion = Confusion(6)
    confusion.add(said, labels)
    areas = IoUMetric.intersect_and_union(said[0], labels[0], 6, 255)
    theirs = IoUMetric.total_area_to_metrics(*areas, metrics=["mIoU"])
    mine = confusion.metrics()
    assert mine["miou"] == pytest.approx(100 * np.nanmean(theirs["IoU"]))
    assert mine["macc"] == pytest.approx(100 * np.nanmean(theirs["Acc"]))


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_the_probe_says_it_measures_it_and_records_it(
    head: str, ade20k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4, image_size=32))
    flags = ["--ckpt", str(checkpoint), "--data", str(ade20k), "--head", head, "--size", "32", "--epochs", "1"]
    flags += ["--batch-size", "1", "--out", str(tmp_path / "r.json")]
    drawn("L", 255).save(ade20k / TRAIN)  # one image of no label, a batch of its own
    assert run_command(segment.main, flags) == DONE
    assert (
        "0 is void, as in ADE20K; --background none if it is a class (0.0 % of the pixels); 255 is void"
        in capsys.readouterr().out
    )
    protocol = json.loads((tmp_path / "r.json").read_text())["protocol"]
    assert protocol["void_labels"] == [0, 255] and protocol["classes"] <= 11
    for path in (ade20k / "annotations").rglob("*.png"):
        drawn("L", 255).save(path)
    (tmp_path / "r.json").unlink()
    assert run_command(segment.main, flags) == FAILED and not (tmp_path / "r.json").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nothing but 0 and 255" in error
