"""Links that somebody has planted in a folder, flags without a value, caches without a place (issue 18, 9)."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints import export, flat, inspect, places, store, zoo
from checkpoints.cli import DONE, WRONG_COMMAND, UserError, parse, run_command
from pretrain import config as recipes
from pretrain import curves, train
from pretrain.engine import provenance, run_folder
from pretrain.engine.run_folder import RunFolder
from pretrain.images import hubs
from pretrain.images.open import open_images
from pretrain.models.backbone import load_backbone
from pretrain.options.groups import Config
from pretrain.run import replay
from pretrain.sample import __main__ as sample
from pretrain.sample import clips, scene, shifts
from pretrain.tokenizers import __main__ as tokenizers
from probes import cluster, knn, live, logistic, parts, semi, tables
from probes.ablate import __main__ as ablate
from probes.bench import data as bench_data
from probes.bench import knn as bench_knn
from probes.bench import step as bench_step
from probes.features import cache, kept
from probes.finetune import __main__ as finetune
from probes.finetune.options import FinetuneOptions
from probes.linear import __main__ as linear
from probes.linear import protocol
from probes.report import __main__ as report
from probes.reproduce import __main__ as reproduce
from probes.retrieval import __main__ as retrieval
from probes.retrieval.tasks import RetrievalOptions
from probes.robustness import __main__ as robustness
from probes.robustness.suites import RobustnessOptions
from probes.segment import __main__ as segment
from probes.segment.options import SegmentOptions
from probes.shared import record, record_name, subject, subprocesses
from probes.video import __main__ as video
from probes.visualize import __main__ as visualize
from probes.visualize import attention_maps, gallery
from tests.support import networks, records
from tests.support.pictures import noise, write_flat
from transfer import prepare
from transfer import train as transfer

SECRET = '{"step": 0}\n'


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that nothing may be written to; the current folder is another."""
    folder, here = tmp_path / "outside", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    (folder / "file").write_text(SECRET)
    monkeypatch.chdir(here)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["file"] and (folder / "file").read_text() == SECRET


def link(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


WRITTEN = ["starts.jsonl", "metrics.jsonl", "config.json", "last.pt", "previous.pt", "backbone.safetensors", "best.safetensors"]
WRITTEN += ["refused-000001-0.pt", "report.html", "events.out.tfevents.1.host.1.0"]


@pytest.mark.parametrize("target", ["file", "new"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_training_writes_through_no_link_in_its_folder(name: str, target: str, outside: Path) -> None:
    """On 46c01a2 starts.jsonl and a dangling metrics.jsonl were written outside; the rest was replaced without a word."""
    link(Path("run") / name, outside / target)
    run = RunFolder(Path("run"), {"arch": "vit"}, 1, 1.0)
    with pytest.raises(UserError, match=rf"run/{name} is a link to .*{target}.* remove it, or write elsewhere"):
        run.begin()
        provenance.note(Path("run"), 0, torch.device("cpu"), "fp32")
        run.log(1, {"loss": 1.0})
    for append in (lambda: store.append(Path("run") / name, "x"), lambda: places.below(Path("run"), name)):
        with pytest.raises(UserError, match="is a link to"):
            append()


def test_a_command_that_meets_such_a_link_says_so_and_exits_with_2(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 the run went on, and its starts were written outside."""
    link(Path("run/starts.jsonl"), outside / "file")
    flags = "--width 64 --depth 1 --patch-size 8 --global-crops-size 32 --local-crops-number 0 --out-dim 32 --patch-out-dim 32"
    flags += (
        " --head-hidden-dim 32 --head-bottleneck-dim 16 --batch-size-per-gpu 4 --workers 0 --steps 1 --knn-every 0 --report false"
    )
    write_flat(Path("images"), noise(4, 40))
    arguments = [*flags.split(), "--arch", "vit_tiny", "--data", "images", "--out"]
    assert run_command(train.main, [*arguments, "run"]) == WRONG_COMMAND
    assert "error: run/starts.jsonl is a link to" in capsys.readouterr().err
    (outside.parent / "disk").mkdir()
    link(Path("runs"), outside.parent / "disk")  # the user's own
    assert run_command(train.main, [*arguments, "runs/mine"]) == DONE
    assert (outside.parent / "disk" / "mine" / "starts.jsonl").is_file()


def test_a_pipe_in_the_place_of_a_log_is_refused_and_waited_for_by_nobody(outside: Path) -> None:
    """On 46c01a2 the command stood still for ever."""
    Path("run").mkdir()
    os.mkfifo("run/starts.jsonl")
    with pytest.raises(UserError, match=r"run/starts.jsonl is no plain file"):
        RunFolder(Path("run"), {}, 1, 1.0).begin()
    with pytest.raises(UserError, match="is no plain file"):
        store.append(Path("run/starts.jsonl"), "x")
    Path("other").mkdir()
    os.mkfifo("other/config.json")
    with pytest.raises(UserError, match=r"other holds no run but other files \('config.json'\)"):
        run_folder.refuse_foreign(Path("other"), "--out")


PROBES: dict[str, tuple[Callable[..., Any], str, str]] = {
    "knn": (knn.main, "results", "--limit 24 --workers 0"),
    "logistic": (logistic.main, "results", "--limit 24 --workers 0"),
    "linear": (linear.main, "results", "--limit 24 --workers 0 --epochs 1"),
    "pictures": (visualize.main, "results", "pca --limit 2"),
    "pictures' own folder": (visualize.main, "results/pca_{checkpoint}", "pca --limit 2"),
    "record": (knn.main, "results/{record}.json", "--limit 24 --workers 0"),
    "fine-tuning": (finetune.main, "finetune", "--recipe small --limit 16 --epochs 1 --warmup-epochs 0 --workers 0"),
    "reproduce": (reproduce.main, "reproduced", "--table T1"),
}


@pytest.mark.parametrize("name", PROBES)
def test_what_is_measured_of_a_run_stays_in_its_folder(
    name: str, outside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 46c01a2 records, pictures and fine-tunings were written where the link led; `results/knn.json` was replaced."""
    main, planted, flags = PROBES[name]
    monkeypatch.setattr(reproduce, "CALIBRATION", 0.01)
    networks.write(Path("run") / store.BACKBONE)
    words = [*flags.split(), "--ckpt", "run/backbone.safetensors"]
    loaded = load_backbone(Path("run"))
    names = {"checkpoint": record_name.checkpoint(loaded)}
    names["record"] = record_name.stem("knn", loaded, parse(knn.KnnOptions, words)) if main is knn.main else ""
    planted = planted.format(**names)
    link(Path("run") / planted, outside / "file" if planted.endswith(".json") else outside)
    assert run_command(main, words) == WRONG_COMMAND
    assert f"error: run/{planted} is a link to" in capsys.readouterr().err


def test_links_that_the_user_has_typed_are_the_users(outside: Path, tmp_path: Path) -> None:
    """The control: as on 46c01a2."""
    networks.write(tmp_path / "disk" / "run" / store.BACKBONE)
    link(Path("run"), tmp_path / "disk" / "run")
    (tmp_path / "disk" / "records").mkdir()
    link(Path("records"), tmp_path / "disk" / "records")
    flags = ["--limit", "24", "--workers", "0", "--ckpt", "run"]
    assert run_command(knn.main, flags) == DONE and records.only(tmp_path / "disk/run/results", "knn").is_file()
    assert run_command(knn.main, [*flags, "--out", "records/knn.json"]) == DONE
    assert (tmp_path / "disk/records/knn.json").is_file()


@pytest.mark.parametrize("write", ["write_bytes", "save_file", "save_backbone"])
@pytest.mark.parametrize("target", ["file", "new"])
def test_unfinished_files_are_written_through_no_link(write: str, target: str, outside: Path) -> None:
    """On 46c01a2 the content went to where `.NAME.PID.part` led."""
    path = Path("run/x")
    link(path.with_name(f".x.{os.getpid()}.part"), outside / target)
    if write == "write_bytes":
        store.write_bytes(path, b"mine")
    elif write == "save_file":
        store.save_file(path, {"mine": 1})
    else:
        store.save_backbone(path, {"mine": torch.zeros(1)}, {})
    assert path.is_file() and not path.is_symlink() and b"mine" in path.read_bytes()


def test_the_page_of_a_run_is_written_through_no_link(outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 the link was replaced without a word."""
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps({"arch": "vit", "patch_size": 8}))
    Path("run/metrics.jsonl").write_text(SECRET)
    link(Path("run/report.html"), outside / "file")
    assert run_command(report.main, ["run", "--pictures", "false"]) == WRONG_COMMAND
    assert "error: run/report.html is a link to" in capsys.readouterr().err


def test_a_log_of_a_command_and_a_gallery_are_written_through_no_link(outside: Path) -> None:
    """On 46c01a2 the log went to where the link led, and a picture's name could lead out of its folder."""
    link(Path("out/step.log"), outside / "file")
    with pytest.raises(UserError, match=r"out/step.log is a link to"):
        subprocesses.run_once(["-c", "print('x')"], Path("out/step"))
    with pytest.raises(UserError, match="would be written outside out"):
        gallery.hang(Path("out"), "", [], [gallery.Shown("../../outside/x", noise(1)[0], "")])
    link(Path("curves.png"), outside / "file")
    Path("run").mkdir()
    Path("run/metrics.jsonl").write_text(SECRET)
    assert run_command(curves.main, ["--runs", "run"]) == DONE
    assert not Path("curves.png").is_symlink() and Path("curves.png").read_bytes().startswith(b"\x89PNG")


LAYOUTS = {
    "out": ("train/striped_disc/00000.png", "val"),
    "coco": ("annotations/instances_train2017.json", "train2017", "annotations"),
    "ade20k": ("images/training/00000.jpg", "annotations", "annotations/validation"),
    "davis": ("Annotations/480p/clip_00/00000.png", "JPEGImages", "ImageSets", "ImageSets/2017/val.txt"),
    "roxford": ("roxford5k", "roxford5k/gnd_roxford5k.pkl", "roxford5k/jpg"),
    "copydays": ("original", "jpegqual", "crops", "strong"),
    "in9": ("train", "original/val", "in_to_in9.json"),
    "ina": ("striped_disc", "striped_disc/00000.png"),
    "inr": (scene.CLASSES[shifts.SUBSETS["inr"][0]],),
    "sketch": ("striped_disc",),
    "inc": ("gaussian_noise", "gaussian_noise/1"),
}
COUNTS = {"in9": 18}


@pytest.mark.parametrize(("layout", "planted"), [(layout, name) for layout, names in LAYOUTS.items() for name in names])
def test_a_data_set_is_drawn_through_no_link(
    layout: str, planted: str, outside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2 wrote pictures and lists where the links led."""
    planted = planted.replace("clip_00", clips.draw(0).name)
    if layout == "inc":
        pytest.importorskip("imagecorruptions")
        monkeypatch.setattr(shifts.corruptions, "NAMES", ("gaussian_noise",))
        monkeypatch.setattr(shifts.corruptions, "SEVERITIES", (1,))
    link(Path("drawn") / planted, outside / ("new.png" if "." in planted else ""))
    words = [f"--{layout}", "drawn", "--count", str(COUNTS.get(layout, 10)), "--size", "32"]
    assert run_command(sample.main, words) == WRONG_COMMAND
    assert f"error: drawn/{planted} is a link to" in capsys.readouterr().err


def test_what_has_another_name_is_taken_apart_or_refused(outside: Path) -> None:
    """46c01a2 wrote into hard links, as a tar may bring them along: logs, records of starts, pictures, a dense task's files."""
    names = ["run/metrics.jsonl", "drawn/train/striped_disc/00000.png", "work/last_checkpoint", "masks/clip/00000.png"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        os.link(outside / "file", name)
    store.append(Path(names[0]), "more")
    assert Path(names[0]).read_text() == f"{SECRET}more"
    assert run_command(sample.main, ["--out", "drawn", "--count", "10", "--size", "16"]) == DONE
    (Path("work") / "run.log").write_text("x")
    with pytest.raises(UserError, match="last_checkpoint"):
        prepare.look_through(Path("work"))
    (Path("work") / "last_checkpoint").write_text("run.log")
    clips.save_mask(np.zeros((8, 8), dtype=np.uint8), Path("masks"), "clip", "00000.png")
    os.link(outside / "file", "part.npy")
    with pytest.raises(UserError, match="has another name elsewhere"):
        kept._array(Path(), "part", 1, "r+")


@pytest.mark.parametrize("planted", ["blocks.npy", "done.npy", ""])
def test_features_are_written_through_no_link_in_a_shared_cache(
    planted: str, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 46c01a2 the rows of a file elsewhere were overwritten by features."""
    write_flat(Path("images"), noise(4, 40))
    how = subject.Common(workers=0, cache=Path("cache"), batch_size=2)
    arguments = (networks.backbone(), open_images("images"), subject.View(32, 32), how, ("blocks",))
    forward, seen = cache._forward, []

    def interrupted(*given: Any) -> Any:
        seen.append(given)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return forward(*given)

    monkeypatch.setattr(cache, "_forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.extract(*arguments)
    (partial,) = Path("cache").glob("*.partial")
    victim = tmp_path / "victim"
    if planted:
        (partial / planted).rename(victim)
        link(partial / planted, victim)
    else:
        partial.rename(victim)
        link(partial, victim)
    state = {path: path.read_bytes() for path in ([victim] if planted else victim.iterdir())}
    with pytest.raises(UserError, match=r"cache/.*\.partial.* is a link to"):
        cache.extract(*arguments)
    assert all(path.read_bytes() == content for path, content in state.items())
    shutil.rmtree("cache")


def test_a_dense_task_refuses_links_anywhere_in_its_folder(outside: Path) -> None:
    """There was no look at them on 46c01a2."""
    link(Path("work/20250101/vis_data/scalars.json"), outside / "file")
    with pytest.raises(UserError, match=r"work/20250101/vis_data/scalars.json is a link to"):
        prepare.look_through(Path("work"))


COMMANDS: list[tuple[Callable[..., Any], list[str], type]] = [
    (train.main, [], Config),
    (curves.main, [], curves.CurvesOptions),
    (sample.main, [], sample.SampleOptions),
    (recipes.main, [], recipes.Wanted),
    (bench_data.main, [], bench_data.BenchDataOptions),
    (bench_step.main, [], bench_step.BenchStepOptions),
    (tokenizers.main, ["convert"], tokenizers.Convert),
    (tokenizers.main, ["kmeans"], tokenizers.Tokens),
    (tokenizers.main, ["patches"], tokenizers.Patches),
    (export.main, [], export.ExportOptions),
    (inspect.main, [], inspect.InspectOptions),
    (knn.main, [], knn.KnnOptions),
    (linear.main, [], protocol.LinearOptions),
    (logistic.main, [], logistic.LogisticOptions),
    (semi.main, [], semi.SemiOptions),
    (cluster.main, [], cluster.ClusterOptions),
    (parts.main, [], parts.PartsOptions),
    (segment.main, [], SegmentOptions),
    (finetune.main, [], FinetuneOptions),
    (robustness.main, [], RobustnessOptions),
    (retrieval.main, [], RetrievalOptions),
    (video.main, [], video.VideoOptions),
    (visualize.main, ["attention"], attention_maps.Attention),
    (report.main, [], report.ReportOptions),
    (live.main, [], live.LiveOptions),
    (tables.main, [], tables.TablesOptions),
    (reproduce.main, [], reproduce.ReproduceOptions),
    (ablate.main, [], ablate.AblateOptions),
    (bench_knn.main, [], bench_knn.BenchKnnOptions),
    (transfer.main, [], transfer.TransferOptions),
]
EMPTY = [
    (main, words, field.name) for main, words, kind in COMMANDS for field in flat.fields(kind) if "bool" not in str(field.type)
]


@pytest.mark.parametrize(("main", "words", "name"), EMPTY, ids=lambda one: getattr(one, "__module__", None) or str(one))
def test_no_flag_is_empty(
    main: Callable[..., Any], words: list[str], name: str, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 `--data ""` trained on the current folder, `--out ""` wrote into it, `--ckpt ""` read from it."""
    flag = f"--{name.replace('_', '-')}"
    for given in ([flag, ""], [f"{flag}="], [flag, "  "], [""]):
        assert run_command(main, [*words, *given]) == WRONG_COMMAND, given
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and (flag if given != [""] else "an argument") in said, given
        assert "is empty (a variable that is not set, perhaps)" in said or "unknown --recipe" in said, given
    assert not list(Path().iterdir())


@pytest.mark.parametrize("usual", ["", "cache", "./cache", "../cache", None])
@pytest.mark.parametrize(
    ("variable", "name"),
    [("IBOT_CACHE", ""), ("IBOT_FEATURES", "features"), ("IBOT_DATA", "torchvision"), ("WDS_CACHE", "shards")],
)
def test_caches_lie_in_the_users_folder_whatever_is_set_empty(
    variable: str, name: str, usual: str | None, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 46c01a2 an empty or relative XDG_CACHE_HOME, and an empty IBOT_CACHE, cached in the current folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if usual is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", usual)
    assert cache.cache_folder is hubs.cache_folder is places.cache_folder
    assert places.cache_folder(variable, name) == tmp_path / ".cache" / "ibot" / name
    if variable == "IBOT_CACHE":
        assert zoo.cache() == tmp_path / ".cache" / "ibot"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert places.cache_folder(variable, name) == tmp_path / "xdg" / "ibot" / name
    monkeypatch.setenv(variable, "mine")
    assert places.cache_folder(variable, name) == Path("mine")


def test_features_are_not_cached_in_the_current_folder(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 46c01a2 they were, as `ibot/features`."""
    write_flat(Path("images"), noise(2, 40))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IBOT_FEATURES", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    cache.extract(networks.backbone(), open_images("images"), subject.View(32, 32), subject.Common(workers=0), ("blocks",))
    assert [path.name for path in Path().iterdir()] == ["images"]
    assert len(list((tmp_path / ".cache" / "ibot" / "features").iterdir())) == 1
    assert record.SCHEMA and replay.MOST


def test_a_name_in_a_list_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    """Seen to fail: DAVIS' list with a name of 5,000 letters was an OSError."""
    with pytest.raises(UserError, match="which no file can be called: a clip is the name of a folder"):
        places.listed(tmp_path, ["x" * 5000], file=tmp_path / "val.txt", cure="a clip is the name of a folder")
