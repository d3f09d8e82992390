"""A dense training never goes on in silence. 46c01a2 ended with exit code 0 and a record for each of these."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")
pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things

from checkpoints.cli import FAILED, WRONG_COMMAND, WorkError, run_command  # noqa: E402
from pretrain.sample import dense  # noqa: E402
from tests.support.networks import VIT, bare, original_names, write_moved  # noqa: E402
from transfer import annotations, train  # noqa: E402
from transfer.config import toolboxes  # noqa: E402
from transfer.report import refuse_without  # noqa: E402

toolboxes()

from transfer import watching  # noqa: E402
from transfer.coco_used import used  # noqa: E402


def runner(tmp_path: Path) -> Any:
    return SimpleNamespace(model=nn.Linear(2, 2), iter=6, rank=0, work_dir=str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(float("nan")), torch.tensor(float("-inf"))])
def test_a_loss_that_is_not_finite_stops_at_its_step(value: Any, tmp_path: Path) -> None:
    batch = {"data_samples": [SimpleNamespace(img_path="/a/7.jpg")]}
    hook, mine = watching.WatchHook(), runner(tmp_path)
    fine = {"loss": torch.tensor(1.0), "acc": torch.tensor(float("nan"))}
    hook.after_train_iter(mine, 0, batch, fine)
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        WorkError, match=r"the loss of step 7 is not finite \(loss_cls -?(nan|inf)\).*nothing was recorded"
    ) as raised:
        hook.after_train_iter(mine, 0, batch, {**fine, "loss_cls": value})
    assert "\n" not in str(raised.value)
    kept = json.loads((tmp_path / watching.STEP).read_text())
    assert kept["step"] == 7 and kept["images"] == ["/a/7.jpg"] and kept["losses"]["loss"] == "1.0"


def test_weights_that_are_not_finite_are_not_trained_saved_or_tested(tmp_path: Path) -> None:
    hook, mine = watching.WatchHook(), runner(tmp_path)
    steps = (hook.before_train, lambda mine: hook.before_save_checkpoint(mine, {}), hook.after_train)
    for step in steps:
        step(mine)
    with torch.no_grad():
        mine.model.bias[0] = float("inf")
    for step in steps:
        with pytest.raises(WorkError, match="the weight bias of the model is not finite"):
            step(mine)


@pytest.mark.parametrize("found", [{}, {"box_ap": float("nan")}, {"box_ap_50": 3.0}])
def test_there_is_no_record_without_its_number(found: dict[str, float]) -> None:
    refuse_without({"box_ap": 0.0}, ["box_ap"])
    with pytest.raises(WorkError, match=r"the test has no box_ap .*no results are written"):
        refuse_without(found, ["box_ap"])


def test_a_rate_that_is_far_too_high_stops_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, on boxes alone: the first step is finite, its weights are not of any use in the second."""
    root = tmp_path / "coco"
    dense.write_coco(root, {"train": 4, "val": 2}, size=32)
    ckpt = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4, image_size=32))
    change = ["train_dataloader.batch_size=1", "optim_wrapper.optimizer.lr=1e30"]
    flags = ["--task", "coco", "--ckpt", ckpt, "--data", root, "--config", "sample", "--out", tmp_path / "out"]
    typed = [*map(str, flags), "--boxes-only", "true", "--cfg-options", *change]
    assert run_command(train.main, typed) == FAILED
    said = capsys.readouterr().err
    assert "is not finite" in said and "Traceback" not in said and "nothing was recorded" in said
    assert not (tmp_path / "out" / "results").exists() and not list((tmp_path / "out").glob("*.pth"))


def test_a_checkpoint_that_is_not_finite_is_not_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command, on a segmenter. It trained to the end, and its record had mIoU 28.5 where 44.9 is right."""
    dense.write_ade20k(tmp_path / "ade", {"train": 2, "val": 2}, size=32)
    weights = original_names(VIT._replace(depth=4, image_size=32))
    next(weight for name, weight in weights.items() if name.startswith("blocks.1") and weight.dim() == 2)[0, 0] = float("nan")
    ckpt = bare(weights, tmp_path / "b.pth")
    flags = ["--task", "ade20k", "--ckpt", ckpt, "--data", tmp_path / "ade", "--out", tmp_path / "out", "--iters", "2"]
    assert run_command(train.main, [*map(str, flags), "--config", "sample_upernet"]) in (FAILED, WRONG_COMMAND)
    said = capsys.readouterr().err
    assert "finite" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "results").exists() and not list((tmp_path / "out").glob("*.pth"))


def test_an_image_of_another_size_is_named_with_why(tmp_path: Path) -> None:
    """Of 401 and more images those that are not looked at before are compared when they are trained on."""
    from transfer.coco_images import IBOTImage  # noqa: PLC0415

    picture, path = Image.new("RGB", (20, 10)), tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, exif=exif.tobytes())
    load = IBOTImage()
    assert load({"img_path": str(path), "width": 10, "height": 20})["img"].shape[:2] == (20, 10)
    with pytest.raises(WorkError, match=r"20 x 10 pixels for .*a.jpg, which has 10 x 20 \(.*without the turn of its EXIF\)"):
        load({"img_path": str(path), "width": 20, "height": 10})
    with pytest.raises(WorkError, match=r"20 x 40 pixels .*\(the images were scaled and the file was not\)"):
        annotations.check_images(
            tmp_path / "t.json", tmp_path, {"images": [{"file_name": "a.jpg", "width": 20, "height": 40}]}, 400
        )


def test_what_the_config_leaves_out_is_said() -> None:
    content = {
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "images": [{"id": k, "width": 40, "height": side} for k, side in enumerate((40, 40, 40, 20))],
        "annotations": [{"image_id": k, "category_id": k + 1, "iscrowd": 0} for k in (0, 1)]
        + [{"image_id": 2, "category_id": 1, "iscrowd": 0}],
    }
    rules = {"filter_cfg": {"filter_empty_gt": True, "min_size": 32}, "indices": 1}
    ((said,), images) = used("train", rules, content, ["a"])
    assert said.startswith("train: 1 objects of categories that the config does not name") and "the first 1 images" in said
    assert [image["id"] for image in images] == [0]
    assert "1 images with a side under 32 pixels" in said and "1 images without objects are left out" in said
    assert used("val", {}, content, ["a", "b"]) == ([], content["images"])
    with pytest.raises(WorkError, match="nothing is left for train"):
        used("train", rules, content, ["c"])
