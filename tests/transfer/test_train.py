"""Dense transfer as it is typed: from a checkpoint to a record, and what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.commands import ROOT, command
from tests.support.networks import VIT, write_moved

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

from transfer import ops

ops.register()


from checkpoints.cli import WRONG_COMMAND, UserError, run_command  # noqa: E402
from pretrain.models.backbone import load_backbone  # noqa: E402
from pretrain.sample import dense as sample_dense  # noqa: E402
from transfer import hooks, train  # noqa: E402
from transfer.prepare import SHOWN  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things


def test_a_run_of_another_grid_or_another_model_is_not_continued() -> None:
    """46c01a2 knew no grid; weights that did not fit were left out with a warning, and the training went on."""
    weights = {"backbone.net.pos_embed": torch.zeros(1, 197, 8), "head.weight": torch.zeros(2, 3)}
    now = weights | {"backbone.net.pos_embed": torch.zeros(1, 1025, 8)}
    hooks.refuse_another(weights, dict(weights), "runs/a")
    with pytest.raises(UserError, match=r"runs/a was trained with 197 position embeddings, the config has 1025: .*grid=None"):
        hooks.refuse_another(now, weights, "runs/a")
    for other in ({"head.weight": torch.zeros(3, 3)}, {"more": torch.zeros(1)}, {"head.weight": 3}, {"head.weight": None}):
        with pytest.raises(UserError, match=r"runs/a holds another model than the config's, first in (head.weight|more)"):
            hooks.refuse_another(weights, weights | other, "runs/a")
    strange: tuple[Any, ...] = (None, [], {}, "weights")
    for nothing in strange:
        with pytest.raises(UserError, match="holds another model"):
            hooks.refuse_another(weights, nothing, "runs/a")
    groups = {"param_groups": [{"params": [0, 1]}, {"params": [2]}]}
    hooks.refuse_other_groups(groups, {**groups, "loss_scaler": {}}, "runs/a")
    for bad in ({"param_groups": [{"params": [0, 1, 2]}]}, {}, None, {"param_groups": [{"params": 3}, 4]}, {"param_groups": 1}):
        with pytest.raises(UserError, match="other groups of parameters in its optimizer"):
            hooks.refuse_other_groups(groups, bad, "runs/a")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with four blocks."""
    return write_moved(tmp_path_factory.mktemp("ckpt") / "b.safetensors", VIT._replace(depth=4, image_size=32))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    sample_dense.write_coco(root, {"train": 16, "val": 8}, size=64)
    return root


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade20k")
    sample_dense.write_ade20k(root, {"train": 16, "val": 8}, size=64)
    return root


def transfer(task: str, *flags: object) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # the other package family is tested through it
    arguments = command("-m", "transfer.train", "--task", task, *map(str, flags), PYTHONPATH=paths)
    return subprocess.run(**arguments, check=False, timeout=600)


def test_detection_trains_saves_goes_on_tests_and_draws(tiny: Path, coco: Path, tmp_path: Path) -> None:
    flags = [
        "--ckpt",
        tiny,
        "--data",
        coco,
        "--config",
        "sample",
        "--out",
        tmp_path,
        "--cfg-options",
        "train_dataloader.batch_size=4",
    ]
    first = transfer("coco", *flags, "train_cfg.max_epochs=1")
    assert first.returncode == 0, first.stderr[-3000:]
    assert "4 images a step; the config's learning rate 0.003 is for 8: 0.0015 is used" in first.stdout
    assert "the checkpoint's weights, verified" in (tmp_path / "log.txt").read_text()
    said = first.stdout + first.stderr
    assert "16 to train, 8 to test" in said and "step 4/4  epoch 1/1, loss" in said and "test 1/1" in said
    for chatter in ("mmengine", "Could not import", "Average Precision", "Warning", "System environment", "index created"):
        assert chatter not in said
    assert "Average Precision" in (tmp_path / "log.txt").read_text()
    assert "train_dataloader = dict(" in (tmp_path / "config.py").read_text()
    again = transfer("coco", *flags, "train_cfg.max_epochs=2")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "goes on after step 4 of 8" in again.stdout and (tmp_path / "epoch_2.pth").exists()
    record = json.loads((tmp_path / "results" / "transfer_coco.json").read_text())
    assert {"box_ap", "mask_ap", "box_ap_50", "box_ap_m"} <= record["metrics"].keys() and record["checkpoint"]["epoch"] == 3
    pictures = sorted((tmp_path / "predictions").glob("*.png"))
    assert len(pictures) == SHOWN and Image.open(pictures[0]).size == (128, 64)


@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_segmentation_trains_saves_goes_on_tests_and_draws(tiny: Path, ade20k: Path, tmp_path: Path, head: str) -> None:
    flags = [
        "--ckpt",
        tiny,
        "--data",
        ade20k,
        "--config",
        f"sample_{head}",
        "--out",
        tmp_path,
        "--cfg-options",
        "train_dataloader.batch_size=4",
    ]
    first = transfer("ade20k", *flags, "train_cfg.max_iters=4", "default_hooks.checkpoint.interval=2")
    assert first.returncode == 0, first.stderr[-3000:]
    more = ["--multi-scale", "true"] if head == "upernet" else []
    again = transfer("ade20k", *flags, "train_cfg.max_iters=6", "default_hooks.checkpoint.interval=2", *more)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "goes on after step 4 of 6" in again.stdout and (tmp_path / "iter_6.pth").exists()
    record = json.loads((tmp_path / "results" / "transfer_ade20k.json").read_text())
    assert {"miou", "macc", "aacc"} | ({"miou_ms", "macc_ms"} if more else set()) == record["metrics"].keys()
    assert len(list((tmp_path / "predictions").glob("*.png"))) == SHOWN
    if head == "linear":
        state = torch.load(tmp_path / "iter_6.pth", weights_only=False)["state_dict"]
        loaded = load_backbone(tiny).backbone.state_dict()
        assert all(torch.equal(state[f"backbone.net.{name}"], weight) for name, weight in loaded.items())  # frozen means frozen
        other = transfer("ade20k", *flags, "train_cfg.max_iters=8", "model.backbone.grid=3,5")
        assert other.returncode == WRONG_COMMAND and "Traceback" not in other.stdout + other.stderr
        assert (
            "was trained with 17 position embeddings, the config has 16: --cfg-options model.backbone.grid=None" in other.stderr
        )


def test_what_is_missing_is_named_before_anything_is_trained(
    tiny: Path, coco: Path, ade20k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: object) -> str:
        assert run_command(train.main, [*map(str, flags), "--out", str(tmp_path / "out")]) == WRONG_COMMAND
        found = capsys.readouterr().err
        assert found.count("\n") == 1 and "Traceback" not in found
        assert not (tmp_path / "out").exists()
        return found

    ckpt = ["--ckpt", tiny]
    shutil.copytree(coco, tmp_path / "coco")
    next((tmp_path / "coco" / "train2017").iterdir()).unlink()
    assert "lacks train2017/0000000000" in said("--task", "coco", "--data", tmp_path / "coco", *ckpt, "--config", "sample")
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text("{}")
    assert "is not an annotation file of COCO" in said("--task", "coco", "--data", tmp_path / "coco", *ckpt, "--config", "sample")
    shutil.copytree(ade20k, tmp_path / "ade")
    (tmp_path / "ade" / "annotations" / "validation" / "00003.png").unlink()
    assert "lacks annotations/validation/00003.png" in said(
        "--task", "ade20k", "--data", tmp_path / "ade", *ckpt, "--config", "sample_upernet"
    )
    assert "there is no folder" in said("--task", "coco", "--data", tmp_path / "nowhere", *ckpt, "--config", "sample")
    assert "there is no config swin_t: choose from cascade_swint_1x" in said("--task", "coco", *ckpt, "--config", "swin_t")
    assert "the config is for vit_small" in said("--task", "coco", "--data", coco, *ckpt, "--config", "cascade_vits16_1x")
    assert "give KEY=VALUE" in said("--task", "coco", *ckpt, "--cfg-options", "train_cfg.max_epochs")
    assert "there is no checkpoint at" in said("--task", "coco", "--ckpt", tmp_path / "none.pth")
    assert "--background is for ade20k" in said("--task", "coco", *ckpt, "--background", "0")
    assert "--multi-scale is for ade20k" in said("--task", "coco", *ckpt, "--multi-scale")
    assert "give rows and columns" in said("--task", "coco", *ckpt, "--cfg-options", "model.backbone.grid=0,5")
    gird = said("--task", "coco", *ckpt, "--cfg-options", "model.backbone.gird=3,5")
    assert "model.backbone has no gird: the nearest is model.backbone.grid" in gird


def test_average_precision_is_what_a_hand_computes(tmp_path: Path) -> None:
    """Two things, one found exactly, then a wrong answer: precision 1 up to recall 0.5, then none: AP is 51 of 101 points."""
    from pycocotools.coco import COCO  # noqa: PLC0415
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    square = np.zeros((32, 32), dtype=bool)
    square[4:12, 6:20] = True
    other = np.zeros((32, 32), dtype=bool)
    other[20:30, 20:30] = True
    things = [
        sample_dense.outline(mask) | {"id": n + 1, "image_id": 0, "category_id": 1, "iscrowd": 0}
        for n, mask in enumerate((square, other))
    ]
    assert things[0]["bbox"] == [6, 4, 14, 8] and things[0]["area"] == 112
    content = {
        "images": [{"id": 0, "height": 32, "width": 32}],
        "annotations": things,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    truth = COCO(str(tmp_path / "a.json"))
    assert np.array_equal(truth.annToMask(truth.anns[1]), square)
    wrong = {"image_id": 0, "category_id": 1, "bbox": [0, 25, 5, 5], "score": 0.8}
    found = truth.loadRes([{"image_id": 0, "category_id": 1, "bbox": [6, 4, 14, 8], "score": 0.9}, wrong])
    measure = COCOeval(truth, found, "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    assert measure.stats[0] == pytest.approx(51 / 101)
