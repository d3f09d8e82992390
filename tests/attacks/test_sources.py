"""Names that are attacks: commands and addresses in files, and files and folders that are called like them (issue 18, 1 and 2).

PWNED is the file that a command in a name would leave in the current folder.
"""

import ast
import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
from scipy.io import savemat

from checkpoints import store, zoo
from checkpoints.cli import DONE, WRONG_COMMAND, UserError, run_command
from pretrain import train
from pretrain.engine.options import as_values
from pretrain.images import open as door
from pretrain.images.decode import BadImage
from pretrain.images.open import has_part, open_images
from pretrain.options.stored import from_values
from pretrain.run import replay, report_process
from pretrain.tokenizers import __main__ as tokenizers
from pretrain.tokenizers import open as tokenizer_open
from probes.finetune import data as finetune_data
from probes.report import __main__ as report
from probes.retrieval import tasks
from probes.video import davis
from tests.support import networks
from tests.support.commands import ROOT
from tests.support.pictures import encoded, noise, write_flat, write_folders, write_list, write_parquet, write_shard
from transfer import data as dense
from transfer import prepare

COMMAND = "pipe:touch PWNED #.tar"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a test; nothing may leave PWNED in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    yield folder
    assert not (folder / "PWNED").exists()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What has been asked for by name or over the network; `{port}` in an address is that of a server that takes it down."""
    names: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            names.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            """Not on the screen."""

    def hub(source: str, part: str | None) -> None:
        names.append(source)
        raise UserError(f"{source} was asked for")

    def fetch(address: str, *rest: object) -> None:
        names.append(address)
        raise UserError(f"{address} was asked for")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PORT", str(server.server_port))
        monkeypatch.setattr(door, "open_hub", hub)
        monkeypatch.setattr(zoo, "fetch", fetch)
        monkeypatch.setattr(timm, "create_model", fetch)
        yield names
        server.shutdown()


def write_run(folder: Path, **config: Any) -> Path:
    """A run's folder with a backbone and a log, as somebody may have sent it."""
    folder.mkdir(parents=True)
    networks.write(folder / store.BACKBONE)
    (folder / "config.json").write_text(json.dumps({"recipe": None, "arch": "vit", "patch_size": 8} | config))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 1.0, "loss_cls": 3.0}) + "\n")
    return folder


SOURCES: list[Any] = [COMMAND, "pipe:touch PWNED; cat x.tar", "hf:somebody/images", "torchvision:CIFAR10"]
SOURCES += ["http://127.0.0.1:{port}/train.tar", "file:../elsewhere", "../elsewhere", "{tmp}/elsewhere", "run/../../elsewhere"]
SOURCES += ["run/link", ".", "/", "", "nothing", "run\0x", 5, None, ["pipe:touch PWNED"], {"pipe": "x"}]


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_a_run_cannot_say_what_its_report_opens(source: object, asked: list[str], tmp_path: Path, here: Path) -> None:
    """On 46c01a2 `pipe:` ran the command, `hf:`, `torchvision:` and http were asked, images outside of the folder were shown."""
    write_folders(tmp_path / "elsewhere")
    if isinstance(source, str):
        source = source.replace("{tmp}", str(tmp_path)).replace("{port}", os.environ["PORT"])
    run = write_run(here / "run", data=source)
    (run / "link").symlink_to(tmp_path / "elsewhere")
    assert run_command(report.main, ["run"]) == DONE
    text = (run / "report.html").read_text()
    assert "Not available: run/config.json names" in text and "is not opened: give --data" in text
    assert "Nearest neighbours" not in text and not asked and not (here / "PWNED").exists()


@pytest.mark.parametrize("channels", ["3; touch PWNED", None, 1.5, [3]], ids=repr)
def test_a_run_with_nonsense_for_channels_has_a_page_without_pictures(channels: object, here: Path) -> None:
    """On 46c01a2 a traceback."""
    run = write_run(here / "run", data="sample", channels=channels)
    assert run_command(report.main, ["run"]) == DONE
    assert "says nothing of channels" in (run / "report.html").read_text()


def test_a_run_may_name_images_in_its_folder_and_the_command_line_any_others(tmp_path: Path, here: Path) -> None:
    """The control: pictures are shown of what may be opened (on 46c01a2 too; there the last of these had no --data to say so)."""
    write_folders(here / "run-with-images" / "pipe:images")
    (tmp_path / "elsewhere").mkdir()
    write_folders(tmp_path / "elsewhere")
    (here / "run-with-images").rename(here / "moved")
    inside = write_run(here / "a" / "run", data="moved/pipe:images")
    (here / "moved").rename(inside / "moved")
    (inside / "config.json").write_text(json.dumps({"arch": "vit", "patch_size": 8, "data": "a/run/moved/pipe:images"}))
    assert run_command(report.main, ["a/run"]) == DONE
    assert "Nearest neighbours" in (inside / "report.html").read_text()
    outside = write_run(here / "b" / "run", data=str(tmp_path / "elsewhere"))
    assert run_command(report.main, ["b/run", "--data", str(tmp_path / "elsewhere")]) == DONE
    text = (outside / "report.html").read_text()
    assert "Nearest neighbours" in text and f"--data {tmp_path / 'elsewhere'}" in re.sub("<[^>]*>", "", text)
    (outside / "report.html").unlink()
    assert report_process.write(outside, str(tmp_path / "elsewhere")).startswith("report: ")
    assert "Nearest neighbours" in (outside / "report.html").read_text()


STORED = [("codes", "dalle"), ("codes", "dalle:../encoder.pkl"), ("codes", "kmeans:../codes.safetensors"), ("codes", "hf:x")]
STORED += [
    ("codes", "kmeans:"),
    ("codes", "pipe:touch PWNED"),
    ("frozen", "timm:vit_tiny_patch16_224"),
    ("frozen", "dino_vits8_full"),
]
STORED += [("frozen", "../last.pt")]


@pytest.mark.parametrize(("targets", "tokenizer"), STORED)
def test_a_refused_step_cannot_say_which_tokenizer_is_opened(
    targets: str, tokenizer: str, asked: list[str], tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 the tokenizer that the file names was fetched or opened, wherever it lies."""
    for name in ("encoder.pkl", "codes.safetensors", "last.pt"):
        (tmp_path / name).write_bytes(b"\x80x")
    values = as_values(from_values(targets=targets, tokenizer=tokenizer, shared_head=False))
    about = {"format": replay.FORMAT, "config": values, "shape": networks.FAN_IN._asdict(), "fused": False}
    state = dict.fromkeys(replay.PARTS) | about  # the rest is looked at later
    store.save_file(here / "run" / "refused-000001-0.pt", state)
    assert run_command(train.main, ["--replay", "run/refused-000001-0.pt"]) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert not asked and "is not opened: give --tokenizer as the run had it" in said and said.count("\n") == 1


def test_a_refused_step_may_name_a_tokenizer_beside_it(here: Path) -> None:
    """The control of the one above; there was no such function on 46c01a2."""
    made = ["patches", "--data", "sample", "--patch-size", "8", "--size", "32", "--codes", "4", "--share", "0.001"]
    assert run_command(tokenizers.main, [*made, "--out", "run/codes.safetensors"]) == DONE
    file = here / "run" / "refused-000001-0.pt"
    assert tokenizer_open.from_file("kmeans:run/codes.safetensors", file=file) == f"kmeans:{here}/run/codes.safetensors"
    assert tokenizer_open.from_file("colour", file=file) == "colour"


NAMES = [COMMAND, "pipe:touch PWNED; cat x #.tar", "http:example.tar", "https:x.tar", "file:x.tar", "hf:x.tar", "gs:x.tar"]
NAMES += ["torchvision:CIFAR10.tar", "sample.tar", "a{0..3}.tar", "a::b.tar", "a@b.tar", "[x]*?.tar", "100%.tar", "${WDS_X}.tar"]
NAMES += ["-rf.tar", " x .tar", "train {a..b}.tar", "$(touch PWNED).tar", "`touch PWNED`.tar", "a\nb.tar"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", [".", "../here", "{here}"])
def test_shards_in_a_folder_are_files_whatever_they_are_called(name: str, data: str, here: Path) -> None:
    """On 46c01a2 `pipe:` ran the command; http:, file:, hf: and gs: were taken for addresses, so that files were missing."""
    write_shard(here / name, noise(2))
    opened = open_images(data.format(here=here) if "{" in data else data)
    assert len(opened) == 2 and opened[1].shape == (20, 24, 3) and opened.labels is not None


@pytest.mark.parametrize("name", [COMMAND, "http:train.tar", "file:train.tar", "[x]{0..1}::@.tar"])
def test_shards_of_a_part_are_files_whatever_they_are_called(name: str, here: Path) -> None:
    """On 46c01a2 a part's shards were addresses too, where the folder of a relative --data was the current one."""
    for part in ("train", "val"):
        write_shard(here / f"{part}{name}", noise(2))
    assert has_part(".", "val") and len(open_images(".", "val")) == 2
    write_shard(here / name, noise(4))
    assert len(open_images(name)) == 4


@pytest.mark.parametrize(
    "name", ["pipe:touch PWNED.parquet", "s3:x.parquet", "hdfs:x.parquet", "[x]{a..b}.parquet", "a=b.parquet"]
)
def test_parquet_in_a_folder_is_a_file_whatever_it_is_called(name: str, here: Path) -> None:
    """Held on 46c01a2 for folders; typed, the file with braces was none."""
    write_parquet(here / name, noise(2), [0, 1])
    for data in (".", name):
        assert len(open_images(data)) == 2, data


FOLDERS = [
    COMMAND,
    "pipe:touch PWNED",
    "hf:x",
    "torchvision:FakeData",
    "http:x.tar",
    "file:x",
    "we[i]rd*?",
    "a{0..3}",
    "a::b",
    "a@b",
]
FOLDERS += ["100%", "${WDS_X}", "x.tar", "list.txt", "x.parquet", "-rf"]


@pytest.mark.parametrize("kind", ["classes", "shards", "parquet", "list", "parts"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_a_folder_whatever_it_is_called(name: str, kind: str, asked: list[str], here: Path) -> None:
    """On 46c01a2 `pipe:` ran, hf: and torchvision: were asked for, x.tar was a broken shard, in spite of the folder."""
    folder = here / name
    if kind == "classes":
        write_folders(folder)
    elif kind == "shards":
        write_shard(folder / "s.tar", noise(6))
    elif kind == "parquet":
        write_parquet(folder / "s.parquet", noise(6), [0, 1] * 3)
    elif kind == "list":
        folder.mkdir()
        write_list(folder / "train.txt", noise(6), labels=True)
    else:
        for part in ("train", "val"):
            write_folders(folder / part)
    assert has_part(name, "val") == (kind == "parts")
    for part in ("train", "val") if kind == "parts" else ("train",):
        opened = open_images(name, part)
        assert len(opened) == 6 and opened[5].shape == (20, 24, 3)
    assert not asked


@pytest.mark.parametrize("name", [COMMAND, "hf:x.txt", "torchvision:CIFAR10.txt", "a@b.txt", "[x]{0..1}.txt"])
def test_a_file_that_was_typed_is_a_file_whatever_it_is_called(name: str, asked: list[str], here: Path) -> None:
    """On 46c01a2 `pipe:` ran and hf: and torchvision: were asked for, in spite of the file."""
    if name.endswith(".txt"):
        write_list(here / name, noise(6), labels=False)
    else:
        write_shard(here / name, noise(6))
    assert len(open_images(name)) == 6 and not asked


def test_a_pattern_in_a_folder_that_is_called_like_a_command_names_files(here: Path) -> None:
    """On 46c01a2 the command ran for each of them."""
    for number in range(2):
        write_shard(here / "pipe:touch PWNED #" / f"s-{number}.tar", noise(2))
    assert len(open_images("pipe:touch PWNED #/s-{0..1}.tar")) == 4
    with pytest.raises(UserError, match="there is no shard"):
        open_images("pipe:touch PWNED #/s-{0..2}.tar")


def test_what_is_typed_and_not_there_is_still_a_command(here: Path) -> None:
    """The control: `pipe:` has not been forbidden, and what it would leave is seen."""
    write_shard(here / "good.tar", noise(2))
    assert len(open_images("pipe:touch PWNED; cat good.tar")) == 2
    (here / "PWNED").unlink()


def test_the_word_sample_is_the_sample_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 nothing was said of the folder of that name."""
    write_folders(here / "sample")
    assert open_images("sample").name == "sample (train)" and len(open_images("./sample")) == 6
    assert "note: sample is the embedded sample" in capsys.readouterr().err


@pytest.mark.parametrize("row", ["{tmp}/secret/0.png", "../secret/0.png", "listed/../../secret/0.png", "/etc/hostname"])
def test_a_list_in_a_folder_names_nothing_outside_of_it(row: str, tmp_path: Path, here: Path) -> None:
    """On 46c01a2 a list in somebody's folder read any file of the machine. A list that is typed is the user's own."""
    write_flat(tmp_path / "secret", noise(1))
    write_list(here / "train.txt", noise(2), labels=False)
    (here / "train.txt").write_text((here / "train.txt").read_text() + row.replace("{tmp}", str(tmp_path)) + "\n")
    with pytest.raises(UserError, match=r"names .* which does not lie in .* is not opened: name the list itself"):
        open_images(".")
    assert len(open_images("train.txt")) == 3


def test_rows_of_parquet_name_nothing_outside_of_their_folder(tmp_path: Path, here: Path) -> None:
    """On 46c01a2 any file of the machine was read."""
    write_flat(tmp_path / "secret", noise(1))
    write_flat(here / "rows", noise(1))
    names = [f"{tmp_path}/secret/0.png", "../secret/0.png", "rows/../../secret/0.png", "rows/0.png", f"{here}/rows/0.png"]
    image = pa.array(
        [{"bytes": None, "path": name} for name in names], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"image": image}), "rows/x.parquet")
    opened = open_images("rows/x.parquet")
    for index in range(3):
        with pytest.raises(BadImage, match="its row names a file outside rows"):
            opened[index]
    assert opened[3].shape == opened[4].shape == (20, 24, 3) and opened.fingerprint()


@pytest.mark.parametrize("name", ["../../secret/0.png", "/etc/hostname", "a/../../../secret/0.png"])
def test_published_lists_name_nothing_outside_of_their_folder(name: str, tmp_path: Path, here: Path) -> None:
    """On 46c01a2 each of these opened what it was told to (COCO's was found and left to MMDetection)."""
    write_flat(tmp_path / "secret", noise(1))
    about = {
        "images": [{"id": 1, "file_name": name}],
        "categories": [{"id": 1}],
        "annotations": [{"image_id": 1, "category_id": 1}],
    }
    (here / "annotations").mkdir()
    for file in ("train2018.json", "annotations/instances_train2017.json", "annotations/instances_val2017.json"):
        (here / file).write_text(json.dumps(about))
    refused = pytest.raises(UserError, match=r"does not lie in .* and so it is not opened")
    with refused:
        finetune_data.inaturalist(here, "train", "2018")
    with refused:
        dense.look_through("coco", here, None, here / "out")
    one = np.array([(name, 1, 0)], dtype=[("relative_im_path", object), ("class", object), ("test", object)])
    savemat(here / finetune_data.CARS, {"annotations": one, "class_names": np.array(["a"], dtype=object)})
    with refused:
        finetune_data.cars(here, "train")
    with refused:
        tasks._files(here, [name.removesuffix(".png")], "queries")
    for part in (davis.IMAGES, davis.MASKS, davis.LIST.parent):
        (here / part).mkdir(parents=True)
    (here / davis.LIST).write_text(f"{name.rpartition('/')[0] + '/../../..'}\n")
    with refused:
        davis.open_clips(".", None)


def test_annotations_of_coco_name_no_address(here: Path) -> None:
    """On 46c01a2 a name with :// that is a file too went on to MMEngine, which chooses its way to it by that."""
    about = {"images": [{"id": 1, "file_name": "http://host/0.png"}], "annotations": [1]}
    (here / "annotations").mkdir()
    (here / "annotations" / "instances_train2017.json").write_text(json.dumps(about))
    write_flat(here / "train2017" / "http:" / "host", noise(1))
    with pytest.raises(UserError, match=r"names the address 'http://host/0.png'"):
        dense.look_through("coco", here, None, here / "out")


@pytest.mark.parametrize(
    "name", ["http://127.0.0.1:9/x.pth", "torchvision://resnet50", "../x.pth", "{tmp}/x.pth", "", "work/gone.pth"]
)
def test_a_folder_of_a_dense_task_cannot_say_which_checkpoint_goes_on(name: str, tmp_path: Path, here: Path) -> None:
    """There was no look at it on 46c01a2: MMEngine fetched what `last_checkpoint` said."""
    (tmp_path / "x.pth").write_bytes(b"x")
    (here / "work").mkdir()
    (here / "work" / "iter_1.pth").write_bytes(b"x")
    (here / "work" / "last_checkpoint").write_text("work/iter_1.pth")
    prepare.look_through(Path("work"))
    (here / "work" / "last_checkpoint").write_text(name.replace("{tmp}", str(tmp_path)))
    with pytest.raises(UserError, match="is not opened: remove that file to begin anew"):
        prepare.look_through(Path("work"))


OPENERS = {
    "open_backbone",
    "open_labelled",
    "open_images",
    "open_hub",
    "open_shards",
    "open_tokenizer",
    "open_checkpoint",
    "load_backbone",
    "open_clips",
    "open_blocks",
}
TYPED = {"options.data", "options.val", "options.ckpt", "options.train", "options.distractors", "whiten"}
TYPED |= {"knn.knn_data", "chosen.data", "options.file"}
HANDED_ON = {
    ("transfer/exports/targets.py", "file"): "what this command has written itself",
    ("pretrain/models/backbone.py", "checkpoint"): "as it was called",
    ("pretrain/setup/init_from.py", "path"): "--init-from, by train.py",
    ("pretrain/setup/objective.py", "loss.tokenizer"): "typed; of a replay through tokenizers.from_file",
    ("pretrain/evaluate/online_knn.py", "source"): "--data or --knn-data, by pretrain/setup/data.py",
    ("pretrain/images/hubs.py", "source"): "as it was called",
    ("pretrain/images/open.py", "source"): "as it was called",
    ("pretrain/method/targets.py", "Path(checkpoint)"): "--tokenizer, by pretrain/setup/objective.py",
    ("pretrain/backbones/open.py", "checkpoint"): "as it was called",
    ("probes/bench/sources.py", "source"): "what this command has drawn itself",
    ("probes/surface.py", "path"): "as `probes.load` was called",
    ("probes/features/embedding.py", "data"): "as `probes.embed` was called",
    ("probes/compare/costs.py", "Path(model)"): "--ckpt",
    ("probes/shared/subject.py", "source"): "--data or --val, by its callers",
    ("probes/cluster.py", "options.val or options.data"): "--data or --val",
    ("probes/reproduce/look.py", "data"): "the --data of a step, as it was typed",
    ("probes/finetune/data.py", "source"): "--data",
    ("probes/robustness/suites.py", "Path(asked)"): "--saliency",
    ("transfer/networks.py", "checkpoint"): "as it was called",
}


def test_every_place_that_opens_a_source_says_where_its_name_is_from() -> None:
    """A search of the code: a new place needs a reason here, and a name from a file `images.from_file` before it."""
    found = set()
    for path in (path for floor in ("checkpoints", "pretrain", "probes", "transfer") for path in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called, given = node.func, node.args
            if getattr(called, "id", "") == "partial":  # called later, with the same source
                called, *given = given
            name = getattr(called, "attr", getattr(called, "id", ""))
            source = ast.unparse(given[name == "open_labelled"]) if name in OPENERS else ""  # whose first are the options
            if source and source not in TYPED:
                found.add((str(path.relative_to(ROOT)), source))
    assert found == set(HANDED_ON)
    assert "from_file(run.config" in (ROOT / "probes" / "report" / "__main__.py").read_text()
    assert "from_file(stored" in (ROOT / "pretrain" / "run" / "replay.py").read_text()
    assert encoded(noise(1)[0])
