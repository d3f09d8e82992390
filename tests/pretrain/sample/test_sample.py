"""The embedded data set."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from checkpoints.cli import UserError
from pretrain.images.open import has_part, open_images
from pretrain.sample import __main__ as sample
from pretrain.sample import classification, dense
from pretrain.sample import scene as sample_scene


def test_the_sample_is_the_same_every_time_and_its_parts_differ() -> None:
    first, again = classification.classification.__wrapped__("train", 20), classification.classification.__wrapped__("train", 20)
    other = classification.classification.__wrapped__("val", 20)
    assert (first.images == again.images).all() and not (first.images == other.images).all()
    assert np.bincount(first.labels).tolist() == [2] * len(sample_scene.CATEGORIES)
    assert len(np.unique(first.images.reshape(20, -1), axis=0)) == 20


def test_a_scene_knows_which_pixel_belongs_to_what() -> None:
    scene = sample_scene.draw_scene(np.random.default_rng(3), [0, 4, 7])
    picture = sample_scene.render(scene, 64)
    assert picture.image.shape == (64, 64, 3) and picture.image.dtype == np.uint8
    alone = sample_scene.render(sample_scene.Scene(scene.things[-1:], scene.background, scene.light), 64)
    assert set(np.unique(picture.owner)) <= {-1, 0, 1, 2}
    front = picture.owner == 2
    assert (front == (alone.owner == 0)).all() and front.any()
    inner = front & np.roll(front, 1, 0) & np.roll(front, -1, 0) & np.roll(front, 1, 1) & np.roll(front, -1, 1)
    assert (picture.image[inner] == alone.image[inner]).all()


def test_the_sample_at_another_size_is_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(classification.COUNTS, "train", 20)
    images = open_images("sample:66")
    assert images[3].shape == (66, 66, 3) and images.labels is not None and has_part("sample:66", "val")
    small = classification.classification("train", 20, 22)
    means = np.stack([images[number] for number in range(20)]).reshape(20, 22, 3, 22, 3, 3).mean(axis=(2, 4))
    assert (images.labels == small.labels).all() and abs(means - small.images).mean() < 4 < abs(means - small.images[::-1]).mean()
    for wrong in ("sample:", "sample:7", "sample:scenes", "sample:1000"):
        with pytest.raises(UserError, match="give the pixels of a side, 8 to 256, as in sample:96"):
            open_images(wrong)


def test_every_class_has_its_own_shape_and_texture() -> None:
    assert (
        len({kind.shape for kind in sample_scene.CATEGORIES})
        == len({kind.texture for kind in sample_scene.CATEGORIES})
        == len(sample_scene.CATEGORIES)
    )


def test_the_sample_is_written_as_class_folders_and_as_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample.main(["--out", str(tmp_path / "d"), "--count", "20", "--show", str(tmp_path / "sheet.png"), "--size", "16"])
    train = open_images(str(tmp_path / "d"), "train")
    assert sorted(train.classes) == sorted(sample_scene.CLASSES) and len(train) == 20
    drawn = classification.classification("train", 20, 16)
    files = sorted((tmp_path / "d" / "train").rglob("*.png"), key=lambda path: path.stem)
    for file, image in zip(files, drawn.images, strict=True):
        with Image.open(file) as written:
            assert (np.asarray(written) == image).all()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (12 * 18 + 2, 10 * 18 + 2)
    assert sample._name_the_sheet(["--show", "--size", "8"]) == ["--show", "sample.png", "--size", "8"]
    assert sample._name_the_sheet(["--show"]) == ["--show", "sample.png"]
    with pytest.raises(UserError, match="nothing to do"):
        sample.main([])


@pytest.mark.parametrize("masks", [True, False])
def test_coco_s_layout_has_the_ids_that_were_asked_for(masks: bool, tmp_path: Path) -> None:
    """Three classes with gaps between their ids, as own data sets have them."""
    flags = [] if masks else ["--no-masks"]
    sample.main(["--coco", str(tmp_path / "d"), "--ids", "1", "5", "9", "--count", "12", "--size", "32", *flags])
    for part in ("train", "val"):
        content = json.loads((tmp_path / "d" / "annotations" / f"instances_{part}2017.json").read_text())
        assert [(one["id"], one["name"]) for one in content["categories"]] == list(
            zip((1, 5, 9), sample_scene.CLASSES[:3], strict=True)
        )
        assert len(content["images"]) == 12 and {one["category_id"] for one in content["annotations"]} == {1, 5, 9}
        assert all(("segmentation" in one) == masks for one in content["annotations"])
        drawn = [dense.draw(part, number, 32, classes=3) for number in range(12)]
        kinds = [(number, (1, 5, 9)[thing.kind]) for number, one in enumerate(drawn) for thing in one.scene.things]
        assert {(one["image_id"], one["category_id"]) for one in content["annotations"]} <= set(kinds)
    for wrong in (["1", "1"], [*"123456789", "10", "11"]):
        with pytest.raises(UserError, match="different ids"):
            sample.main(["--coco", str(tmp_path / "e"), "--ids", *wrong])
