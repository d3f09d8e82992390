"""Predictions and exports of a run: as data, by the user's own ids and labels, and nothing in the run's folder is run."""

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

from checkpoints.cli import FAILED, WRONG_COMMAND, UserError, run_command
from pretrain.sample import dense
from transfer import pictures, trained
from transfer.config import CONFIGS, read_config, toolboxes
from transfer.options import TransferOptions

toolboxes()

from mmengine.config import Config  # noqa: E402

from transfer.predict import __main__ as predict  # noqa: E402
from transfer.predict import export, rebuild  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the toolboxes remark on many things
IDS = {0: 3, 1: 9, 2: 50}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moved(tmp_path_factory.mktemp("ckpt") / "b.safetensors", VIT._replace(depth=4, image_size=32))


def transfer(task: str, ckpt: Path, data: Path, out: Path, config: str, *options: str) -> Path:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # the other package family is tested through it
    flags = ["--ckpt", ckpt, "--data", data, "--config", config, "--out", out, "--cfg-options", *options]
    words = command("-m", "transfer.train", "--task", task, *map(str, flags), PYTHONPATH=paths)
    done = subprocess.run(**words, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with gaps between their ids."""
    root = tmp_path_factory.mktemp("coco")
    dense.write_coco(root, {"train": 24, "val": 6}, size=64)
    for part in ("train", "val"):
        file = root / "annotations" / f"instances_{part}2017.json"
        content = json.loads(file.read_text())
        content["categories"] = [{"id": one, "name": f"thing {one}"} for one in IDS.values()]
        for thing in content["annotations"]:
            thing["category_id"] = IDS[thing["category_id"] % 3]
        file.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def detector(tiny: Path, coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "detector"
    return transfer("coco", tiny, coco, out, "sample", "train_cfg.max_epochs=6", "train_dataloader.batch_size=4")


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade20k")
    dense.write_ade20k(root, {"train": 12, "val": 4}, size=64)
    return root


@pytest.fixture(scope="module", params=["upernet", "linear"])
def segmenter(request: pytest.FixtureRequest, tiny: Path, ade20k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, length = tmp_path_factory.mktemp("run") / "segmenter", ["train_cfg.max_iters=8", "default_hooks.checkpoint.interval=4"]
    return transfer("ade20k", tiny, ade20k, out, f"sample_{request.param}", *length)


def predicted(*flags: object) -> int:
    return run_command(predict.main, [str(flag) for flag in flags])


def test_detections_are_coco_results_by_the_users_ids_and_measure_as_the_test_did(
    detector: Path, coco: Path, tmp_path: Path
) -> None:
    from pycocotools.coco import COCO  # noqa: PLC0415
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    truth = coco / "annotations" / "instances_val2017.json"
    flags = ["--run", detector, "--images", coco / "val2017", "--out", tmp_path / "o", "--score", "0", "--draw", "2"]
    assert predicted(*flags, "--ids", truth) == 0
    found = json.loads((tmp_path / "o" / "results.json").read_text())
    assert {one["category_id"] for one in found} <= set(IDS.values())
    for kind, name in (("bbox", "box_ap"), ("segm", "mask_ap")):
        own = [{key: value for key, value in one.items() if key != "bbox" or kind == "bbox"} for one in found]
        annotations = COCO(str(truth))
        measure = COCOeval(annotations, annotations.loadRes(own), kind)
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
        record = json.loads((detector / "results" / "transfer_coco.json").read_text())
        assert 100 * measure.stats[0] == pytest.approx(record["metrics"][name], abs=0.06)  # MMDetection rounds to 0.1
    opened = COCO(str(tmp_path / "o" / "images.json")).loadRes(str(tmp_path / "o" / "results.json"))
    assert opened.cats[50]["name"] == "thing 50" and len(opened.imgs) == 6
    assert opened.annToMask(opened.anns[1]).shape == (64, 64)
    assert sorted(path.name for path in (tmp_path / "o" / "drawn").iterdir()) == ["000000000000.jpg.png", "000000000001.jpg.png"]


def test_label_maps_have_the_datas_own_labels_and_colours(segmenter: Path, ade20k: Path, tmp_path: Path) -> None:
    assert predicted("--run", segmenter, "--images", ade20k / "images" / "validation", "--out", tmp_path / "o") == 0
    counts = np.zeros(256, np.int64)
    for path in sorted((tmp_path / "o" / "labels").iterdir()):
        picture = Image.open(path)
        assert picture.mode == "P" and picture.size == (64, 64)
        counts += np.bincount(np.asarray(picture).ravel(), minlength=256)
    rows = (segmenter / "results" / "transfer_ade20k_classes.csv").read_text().splitlines()[1:]
    assert counts[0] == 0  # void in the data: no class answers it
    truth = {int(row.split(",")[1]): int(row.split(",")[3]) for row in rows}
    void = 4 * 64 * 64 - sum(truth.values())  # pixels whose truth is void are predicted, but were not counted
    assert all(0 <= counts[label] - count <= void for label, count in truth.items())
    colour = trained.read(segmenter).palette[1]
    assert tuple(picture.getpalette()[6:9]) == tuple(colour)  # type: ignore[index]


def test_names_are_drawn_with_letters_that_the_toolbox_can_draw() -> None:
    """MMSegmentation draws by OpenCV, which has a question mark for what is not ASCII."""
    assert pictures.drawn_names(["細胞", "Käse", "a\nb"], "ade20k") == ["U+7D30 U+80DE", "Kase", "a b"]
    assert pictures.drawn_names(["a\nb", "$x$"], "coco") == ["a b", "$x$"]


def test_one_pixel_is_segmented(segmenter: Path, tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "i" / "one.png")
    assert predicted("--run", segmenter, "--images", tmp_path / "i", "--out", tmp_path / "o") == 0
    assert Image.open(tmp_path / "o" / "labels" / "one.png.png").size == (1, 1)


def test_broken_images_are_counted_and_named_turned_ones_are_turned_and_any_name_is_taken(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bilder ü"
    (folder / "細胞").mkdir(parents=True)
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(folder / "細胞" / "turned <b>.jpg", exif=exif)
    wide.convert("L").save(folder / "grey.png")
    (folder / "broken.png").write_bytes((folder / "grey.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    Image.new("RGB", (900, 3)).save(folder / "flat.png")  # OpenCV cannot resize it
    assert predicted("--run", detector, "--images", folder) == FAILED
    said = capsys.readouterr()
    assert "broken.png cannot be used" in said.err and "2 of 4 images could not be used" in said.err
    assert "flat.png: the run's model cannot be applied to it" in said.err
    out = detector / "predictions-bilder ü"
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in json.loads((out / "images.json").read_text())["images"]}
    assert sizes == {"grey.png": (60, 40), "細胞/turned <b>.jpg": (40, 60)}
    assert Image.open(out / "drawn" / "細胞" / "turned <b>.jpg.png").size == (40, 60)
    assert predicted("--run", detector, "--images", folder) == WRONG_COMMAND
    assert "is there already, and nothing in it is replaced" in capsys.readouterr().err
    shutil.rmtree(out)


def test_wrong_command_lines_are_one_sentence(
    detector: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    images = coco / "val2017"
    train = coco / "annotations" / "instances_train2017.json"
    for flags, sentence in (
        (("--run", detector, "--images", tmp_path / "none"), "there is no folder"),
        (("--run", detector, "--images", tmp_path / "empty"), "holds no images"),
        (("--run", tmp_path / "empty", "--images", images, "--out", tmp_path / "o"), "has no model.json"),
        (("--run", detector, "--images", images, "--out", tmp_path / "o", "--ids", images), "is no annotation file"),
        (("--run", detector, "--images", images, "--out", tmp_path / "o", "--score", "2"), "--score"),
    ):
        assert predicted(*flags) == WRONG_COMMAND
        error = capsys.readouterr().err
        assert sentence in error and "Traceback" not in error and not (tmp_path / "o").exists()
    content = json.loads(train.read_text())
    content["images"] = content["images"][:1]
    (tmp_path / "few.json").write_text(json.dumps(content))
    assert predicted("--run", detector, "--images", images, "--out", tmp_path / "o", "--ids", tmp_path / "few.json") == 2
    assert "lists no image 00000000000" in capsys.readouterr().err


def changed(run: Path, folder: Path, change: Any) -> Path:
    """A copy of a run's folder whose model.json is changed."""
    folder.mkdir()
    for name in ("last_checkpoint", trained.FILE):
        shutil.copy(run / name, folder / name)
    for file in run.glob("*.pth"):
        os.link(file, folder / file.name)
    content = json.loads((folder / trained.FILE).read_text())
    change(content)
    (folder / trained.FILE).write_text(json.dumps(content))
    return folder


def named(content: dict[str, Any]) -> None:
    content["model"]["neck"]["type"] = "os.system"


def of_the_registry(content: dict[str, Any]) -> None:
    content["model"]["neck"]["type"] = "TIMMBackbone"


def scoped(content: dict[str, Any]) -> None:
    content["model"]["neck"]["_scope_"] = "antigravity"


def fetched(content: dict[str, Any]) -> None:
    content["model"]["backbone"]["init_cfg"] = {"type": "Pretrained", "checkpoint": "http://127.0.0.1:9/x.pth"}


def of_a_step(content: dict[str, Any]) -> None:
    content["pipeline"].append({"type": "subprocess.run", "args": "true"})


def of_a_list(content: dict[str, Any]) -> None:
    content["model"]["neck"]["type"] = ["FPN"]


def doubled(content: dict[str, Any]) -> None:
    content["ids"] = [3, 3, 50]


def wider(content: dict[str, Any]) -> None:
    content["model"]["neck"]["out_channels"] = 32


def argued(content: dict[str, Any]) -> None:
    content["model"]["neck"]["colour"] = "red"


def put(*path: Any) -> Any:
    """A change that puts the last word where the others lead."""

    def change(content: Any) -> None:
        for name in path[:-2]:
            content = content[name]
        content[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (put("model", "neck", "out_channels", 10**9), "out_channels is 1000000000, not a whole number"),
        (put("model", "neck", "num_outs", 10**9), "num_outs is 1000000000, not a whole number"),
        (put("model", "roi_head", "mask_head", "num_convs", 60000), "asks for a model far larger than the run's weights"),
        (put("model", "roi_head", "bbox_head", "fc_out_channels", 60000), "asks for a model far larger than the run's weights"),
        (put("shape", "embed_dim", 2**15), "asks for a model far larger than the run's weights"),
        (put("model", "roi_head", "mask_roi_extractor", "roi_layer", "output_size", 2000), "output_size is 2000, not a whole"),
        (put("model", "backbone", "grid", [60000, 60000]), "grid is 60000 x 60000, not two numbers with a product"),
        (put("model", "backbone", "x"), "backbone is 'x', not a dict"),
        (put("model", "data_preprocessor", "pad_size_divisor", 10**9), "pad_size_divisor is 1000000000, not a whole number"),
        (put("model", "data_preprocessor", "mean", [1]), "mean is 1 numbers, not one for each of 3 channels"),
        (put("model", "data_preprocessor", "std", [0, 0, 0]), "std: a channel is 0, not a number"),
        (put("model", "data_preprocessor", "mean", [float("nan")] * 3), "mean is nan, not a number"),
        (put("pipeline", 1, "scale", [10**9, 10**9]), "scale is 1000000000, not a whole number"),
        (put("pipeline", 1, "Resize"), "pipeline is 'Resize', not a dict"),
        (put("pipeline", []), "pipeline is empty, not steps from reading an image"),
        (put("pipeline", 0, "imdecode_backend", "tifffile"), "imdecode_backend is 'tifffile', not one of cv2, pillow"),
        (put("model", "roi_head", "mask_head", "num_classes", 4), "classes is a list of 3, not one of 4"),
        (named, "names 'os.system', which no config of this project uses"),
        (of_the_registry, "names 'TIMMBackbone', which no config of this project uses"),
        (scoped, "'_scope_' is there, not in such a file"),
        (fetched, "'init_cfg' is there, not in such a file"),
        (of_a_step, "names 'subprocess.run', which no config"),
        (of_a_list, "which no config of this project uses"),
        (doubled, "a number of its own for each of 3 classes"),
        (wider, "does not fit the model of model.json: "),
        (argued, "says nothing that can be built"),
    ],
)
def test_nothing_that_a_runs_folder_names_is_run_or_fetched(detector: Path, tmp_path: Path, change: Any, sentence: str) -> None:
    """The config that MMEngine leaves there is a program; it is not read."""
    run = changed(detector, tmp_path / "run", change)
    (run / "sample.py").write_text("raise SystemExit(77)")
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        rebuild.rebuilt(run, None)


def test_steps_that_cannot_be_made_or_applied_are_one_sentence(
    detector: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (change, code, sentence) in enumerate(
        [
            (put("pipeline", 1, "colour", 3), WRONG_COMMAND, "the steps of the test cannot be made"),
            (put("pipeline", 1, "scale", ["a", "b"]), FAILED, "the run's model cannot be applied to it"),
        ]
    ):
        run = changed(detector, tmp_path / f"run{number}", change)
        assert predicted("--run", run, "--images", coco / "val2017", "--out", tmp_path / f"o{number}") == code
        assert sentence in capsys.readouterr().err


def test_no_name_in_a_runs_folder_becomes_a_part_of_an_exports_program(detector: Path, tmp_path: Path) -> None:
    """MMEngine's own writer puts keys down as they are, and its reader replaces double braces."""
    marker = tmp_path / "marker"
    names = ["{{ fileDirname }}", "{{$HOME:none}} ' \" \n $x$ \\", "=1+1 <b> 細胞"]

    def hostile(content: dict[str, Any]) -> None:
        content["model"]["test_cfg"]["rcnn"][f"b': open({str(marker)!r}, 'w'), 'd"] = 1
        content["classes"] = names

    run = changed(detector, tmp_path / "run", hostile)
    assert run_command(export.main, ["--run", str(run), "--out", str(tmp_path / "e")]) == 0
    config = Config.fromfile(tmp_path / "e" / "config.py")
    assert not marker.exists()
    assert list(config.test_dataloader.dataset.metainfo.classes) == names


def test_parts_that_may_be_built_are_those_of_this_projects_configs() -> None:
    models, steps = set[str](), set[str]()
    for task, name in (
        ("coco", "sample"),
        ("coco", "cascade_swint_1x"),
        ("ade20k", "upernet_vits16"),
        ("ade20k", "linear_vitb16"),
    ):
        config = read_config(TransferOptions(task=task, config=name))  # type: ignore[arg-type]
        models |= set(rebuild.types(config.model.to_dict()))
        steps |= set(rebuild.types([dict(step) for step in config.test_dataloader.dataset.pipeline]))
    assert (CONFIGS / "coco" / "sample.py").is_file()
    assert models - {"IBOTBackbone", "Pretrained"} <= rebuild.MODEL_PARTS and steps <= rebuild.STEPS


PLAIN = """
import json, sys
from transfer import ops  # mmcv's operations where no compiled ones are installed; nothing else of this project
ops.register()
from transfer.exports.reload import mmpretrain  # both toolboxes import it, with parts that break beside newer libraries
mmpretrain()
folder, image, task = sys.argv[1:]
if task == "coco":
    from mmdet.apis import inference_detector, init_detector
    model = init_detector(f"{folder}/config.py", f"{folder}/weights.pth", device="cpu")
    found = inference_detector(model, image).pred_instances
    answer = {"boxes": found.bboxes.tolist(), "scores": found.scores.tolist(), "pixels": found.masks.sum((1, 2)).tolist()}
else:
    from mmseg.apis import inference_model, init_model
    model = init_model(f"{folder}/config.py", f"{folder}/weights.pth", device="cpu")
    found = inference_model(model, image)
    answer = {"logits": found.seg_logits.data.flatten()[::17].tolist(), "labels": found.pred_sem_seg.data.flatten().tolist()}
assert model.dataset_meta["classes"] and not [name for name in sys.modules if name.startswith(("pretrain", "probes"))]
print("ANSWER" + json.dumps(answer))
"""


def plain(folder: Path, image: Path, task: str) -> dict[str, Any]:
    """What the plain toolbox answers, in a process that imports nothing else of this project."""
    done = subprocess.run(**command("-c", PLAIN, str(folder), str(image), task), check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.rpartition("ANSWER")[2])
    return found


def ours(run: Path, image: Path) -> Any:
    from transfer.predict.steps import Predictor  # noqa: PLC0415

    return Predictor(rebuild.rebuilt(run, None))(image)[1]


def test_plain_mmdetection_loads_a_detector_and_answers_the_same(detector: Path, coco: Path, tmp_path: Path) -> None:
    assert run_command(export.main, ["--run", str(detector), "--out", str(tmp_path / "e")]) == 0
    image = coco / "val2017" / "000000000002.jpg"
    theirs, mine = plain(tmp_path / "e", image, "coco"), ours(detector, image).pred_instances
    assert len(theirs["scores"]) == len(mine.scores) > 3
    assert np.allclose(theirs["boxes"], mine.bboxes.numpy(), atol=1e-4)
    assert np.allclose(theirs["scores"], mine.scores.numpy(), atol=1e-5)
    assert np.abs(np.subtract(theirs["pixels"], mine.masks.sum((1, 2)).numpy())).max() <= 1
    assert run_command(export.main, ["--run", str(detector), "--out", str(tmp_path / "e")]) == WRONG_COMMAND


def test_plain_mmsegmentation_loads_a_segmenter_and_answers_the_same(segmenter: Path, ade20k: Path, tmp_path: Path) -> None:
    """With both heads: the linear one's taps are normed, which a config that lacks `norm` would lose."""
    assert run_command(export.main, ["--run", str(segmenter), "--out", str(tmp_path / "e")]) == 0
    image = ade20k / "images" / "validation" / "00001.jpg"
    theirs, mine = plain(tmp_path / "e", image, "ade20k"), ours(segmenter, image)
    assert np.allclose(theirs["logits"], mine.seg_logits.data.flatten()[::17].numpy(), atol=1e-4)
    assert np.mean(np.equal(theirs["labels"], mine.pred_sem_seg.data.flatten().numpy())) > 0.999


def test_the_checkpoint_in_an_export_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    assert export.absolute(Path("timm:resnet18@w.pth")) == Path(f"timm:resnet18@{tmp_path}/w.pth")
    assert export.absolute(Path("w.pth")) == tmp_path / "w.pth"
    assert export.absolute(Path("timm:resnet18")) == Path("timm:resnet18")


def test_an_export_that_differs_is_not_left_behind(detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standalone = export._standalone

    def with_other_heads(backbone: Any) -> dict[str, Any]:
        return standalone(backbone) | {"heads": 1 if backbone.shape.num_heads > 1 else 2}

    monkeypatch.setattr(export, "_standalone", with_other_heads)
    assert run_command(export.main, ["--run", str(detector), "--out", str(tmp_path / "e")]) == FAILED
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [8, 16])
def test_the_standalone_backbone_is_ours(size: int) -> None:
    """Patches of both kinds, with and without norm and levels, on an image whose grid is another."""
    from pretrain.models.backbone import make  # noqa: PLC0415
    from transfer.backbone import Pyramid  # noqa: PLC0415
    from transfer.predict.vit_pyramid import ViTPyramid  # noqa: PLC0415

    shape = VIT._replace(depth=4, image_size=64, patch_size=size)
    for how in ({"norm_taps": True}, {"levels": False, "frozen": True}, {"grid": (3, 5)}):
        mine = Pyramid(make(shape, maskable=False), **how).eval()
        theirs = ViTPyramid(**{name: value for name, value in export._standalone(mine).items() if name != "type"}).eval()
        theirs.load_state_dict(mine.state_dict())
        images = torch.randn(1, 3, 50, 70, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for one, other in zip(mine(images), theirs(images), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
