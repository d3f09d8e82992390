"""Boxes of one's own as people have them: other names of files, no test part, no masks. 46c01a2 took COCO's two names only."""

import json
from pathlib import Path
from typing import Any

import pytest

from checkpoints.cli import UserError, run_command
from pretrain.sample import dense

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

from transfer import coco_layout, data, train  # noqa: E402
from transfer.coco_layout import Given  # noqa: E402
from transfer.config import build, fit, read_config, toolboxes  # noqa: E402
from transfer.options import TransferOptions  # noqa: E402

SIDE = 32
KINDS = ("json", "images")


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    toolboxes()
    names = ("sample", "cascade_vits16_1x")
    return {name: read_config(TransferOptions(task="coco", config=name)) for name in names}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten and two images, three classes with gaps between their ids, one without any object, names outside of ASCII."""
    root = tmp_path / "coco"
    dense.write_coco(root, {"train": 10, "val": 2}, size=SIDE)
    for part in ("train", "val"):
        file = root / "annotations" / f"instances_{part}2017.json"
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 3, "name": "Blutkörper"}, {"id": 9, "name": "細胞"}, {"id": 50, "name": "none"}]
        for one in content["annotations"]:
            one["category_id"] = 3 if one["category_id"] % 2 else 9
        for image in content["images"]:
            name = f"bild ü {image['file_name']}"
            (root / f"{part}2017" / image["file_name"]).rename(root / f"{part}2017" / name)
            image["file_name"] = name
        file.write_text(json.dumps(content))
    return root


def looked(root: Path, config: Any, out: Path, **given: Any) -> tuple[data.Found, Any]:
    config = config.__deepcopy__({})
    data.set_root(config, root)
    return data.look_through("coco", root, config, out, given=Given(**given)), config


def loaded(config: Any, part: str) -> Any:
    """The toolbox's own data set, as it is trained on."""
    from mmengine.registry import DATASETS, init_default_scope  # noqa: PLC0415

    init_default_scope("mmdet")
    return DATASETS.build(config[f"{part}_dataloader"].dataset)


MOVED = {
    "json beside folders": (("train.json", "train"), ("val.json", "val")),
    "valid": (("annotations/train.json", "images/train"), ("annotations/valid.json", "images/valid")),
    "a json in each folder": (("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")),
    "all images in one folder": (("annotations/instances_train.json", "images"), ("annotations/instances_val.json", "images")),
}


@pytest.mark.parametrize("kind", MOVED)
def test_layouts_of_other_programs_are_found(kind: str, root: Path, tmp_path: Path, plain: dict[str, Any]) -> None:
    mine = tmp_path / "mine"
    for part, (file, folder) in zip(("train", "val"), MOVED[kind], strict=True):
        (mine / folder).mkdir(parents=True, exist_ok=True)
        for image in (root / f"{part}2017").iterdir():
            image.rename(mine / folder / f"{part} {image.name}")
        content = json.loads((root / "annotations" / f"instances_{part}2017.json").read_text())
        for image in content["images"]:
            image["file_name"] = f"{part} {image['file_name']}"
        (mine / file).parent.mkdir(parents=True, exist_ok=True)
        (mine / file).write_text(json.dumps(content))
    found, config = looked(mine, plain["sample"], tmp_path / "out")
    assert (
        "10 images" in found.lines[0] and "no object of 1 classes (none)" in found.lines[0] and found.protocol == {"classes": 3}
    )
    for part, count in (("train", 10), ("val", 2)):
        dataset = loaded(config, part)
        assert len(dataset) == count and dataset.metainfo["classes"] == ("Blutkörper", "細胞", "none")
        assert all(Path(dataset[k]["data_samples"].img_path).is_file() for k in range(count))


def test_typed_files_and_folders_are_taken(root: Path, tmp_path: Path, plain: dict[str, Any]) -> None:
    names = {part: (root / "annotations" / f"instances_{part}2017.json", root / f"{part}2017") for part in ("train", "val")}
    typed = {
        f"{part}_{kind}": path
        for part, of in (("train", "val"), ("val", "train"))
        for kind, path in zip(KINDS, names[of], strict=True)
    }
    _, config = looked(root, plain["sample"], tmp_path / "out", **typed)
    assert (len(loaded(config, "train")), len(loaded(config, "test"))) == (2, 10)
    assert json.loads(Path(config.test_evaluator.ann_file).read_text())["images"][0]["file_name"].startswith("bild ü")
    with pytest.raises(UserError, match=r"--val-json: there is no file .*none.json"):
        looked(root, plain["sample"], tmp_path / "out", val_json=tmp_path / "none.json")
    with pytest.raises(UserError, match=r"--train-images: there is no folder"):
        looked(root, plain["sample"], tmp_path / "out", train_images=tmp_path / "none")
    with pytest.raises(UserError, match=r"lacks annotations/bild.* \(of instances_val2017.json\).*--val-images names another"):
        looked(root, plain["sample"], tmp_path / "out", val_images=root / "annotations")


def test_images_are_held_out_where_there_is_no_test_part(root: Path, tmp_path: Path, plain: dict[str, Any]) -> None:
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match=r"lacks annotations/instances_val2017.json: .* or --val-percent 20"):
        looked(root, plain["sample"], tmp_path / "out")
    file = root / "annotations" / "instances_train2017.json"

    def parts(seed: int = 0) -> dict[str, set[str]]:
        found, config = looked(root, plain["sample"], tmp_path / "out", val_percent=20, val_seed=seed)
        assert found.protocol == {"classes": 3, "val_percent": 20, "val_seed": seed} and "20 % of the images" in found.lines[-1]
        return {part: {one["img_path"] for one in map(loaded(config, part).get_data_info, range(n))} for part, n in SIZES.items()}

    SIZES = {"train": 8, "val": 2}
    before = parts()
    assert len(before["train"]) == 8 and len(before["val"]) == 2 and not before["train"] & before["val"]
    content = json.loads(file.read_text())
    content["images"].reverse()
    file.write_text(json.dumps(content))
    assert parts() == before and any(parts(seed)["val"] != before["val"] for seed in (1, 2, 3))
    with pytest.raises(UserError, match=r"--val-percent 1 of 10 images leaves 0 to test"):
        looked(root, plain["sample"], tmp_path / "out", val_percent=1)


def test_a_test_part_and_a_share_to_hold_out_are_one_too_many(root: Path) -> None:
    with pytest.raises(UserError, match=r"--val-percent holds training images out, and there is .*instances_val2017.json"):
        coco_layout.find(root, Given(val_percent=20))


@pytest.mark.parametrize("name", ["sample", "cascade_vits16_1x"])
def test_boxes_without_masks_are_learnt_without_a_mask_head(name: str, root: Path, tmp_path: Path, plain: dict[str, Any]) -> None:
    """46c01a2 and later versions refused them."""
    given = looked(root, plain[name], tmp_path / "out", boxes_only=True)[1]
    for part in ("train", "val"):
        file = root / "annotations" / f"instances_{part}2017.json"
        content = json.loads(file.read_text())
        for one in content["annotations"]:
            del one["segmentation"], one["area"]
        file.write_text(json.dumps(content))
    found, config = looked(root, plain[name], tmp_path / "out")
    assert found.protocol == {"classes": 3, "heads": "boxes"} and "boxes without masks" in found.lines[-1]
    for one in (config, given):
        assert "mask_head" not in one.model.roi_head and one.test_evaluator.metric == one.val_evaluator.metric == "bbox"
        assert "mask" not in dict(loaded(one, "train")[0]["data_samples"].gt_instances.items())
    if name == "sample":
        config.model.backbone.update(arch="vit_tiny", patch_size=8)
        fit(config, [192] * 4)
        assert not build(config).with_mask


def test_a_box_without_a_mask_among_others_is_a_crowd_or_all_are_boxes(root: Path, tmp_path: Path, plain: dict[str, Any]) -> None:
    file = root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]["segmentation"]
    content["annotations"][1]["ignore"] = 1
    content["annotations"][2]["iscrowd"] = 1
    content["annotations"][3].update(area=0, id=0)
    file.write_text(json.dumps(content))
    found, _ = looked(root, plain["sample"], tmp_path / "masks")
    assert (
        "1 objects have a box and no mask, the first is annotation 1: among the crowds here; --boxes-only true" in found.lines[0]
    )
    assert "2 crowds neither learnt nor counted" in found.lines[0]
    found, config = looked(root, plain["sample"], tmp_path / "out", boxes_only=True)
    count = len(content["annotations"])
    assert f"{count - 2} usable objects of 3 classes, 2 ignored" in found.lines[0]
    assert "1 annotations marked `ignore` left out, the first is 2" in found.lines[0]
    assert "1 crowds neither learnt nor counted, the first is annotation 3" in found.lines[0]
    kept = json.loads(Path(config.train_dataloader.dataset.ann_file).read_text())["annotations"]
    assert min(one["id"] for one in kept) > 0 and min(one["area"] for one in kept) > 0


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--task", "ade20k", "--boxes-only", "true"], "--boxes-only is for coco"),
        (["--task", "coco", "--val-percent", "20"], "--val-percent belongs to data of your own"),
        (["--task", "coco", "--val-percent", "100"], "--val-percent must lie between 0 and 100"),
    ],
)
def test_flags_that_mean_nothing_are_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.support.networks import VIT, write_moved  # noqa: PLC0415

    ckpt = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4, image_size=32))
    assert run_command(train.main, [*flags, "--ckpt", str(ckpt), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()
