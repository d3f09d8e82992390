"""Records: none replaces another's, what is somebody's own stays, outputs are tried before the work; names of any bytes."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints import export, places
from checkpoints.cli import DONE, WRONG_COMMAND, UserError, run_command
from pretrain import train
from pretrain.sample import __main__ as sample
from pretrain.tokenizers import __main__ as tokenizers
from probes import knn
from probes.finetune import __main__ as finetune
from probes.linear import __main__ as linear
from probes.report import __main__ as report
from probes.shared import record
from probes.visualize import __main__ as visualize
from tests.support import networks
from tests.support.commands import SMALL
from tests.support.pictures import noise
from tests.support.probes import PROBES

NOT_UTF8 = os.fsdecode(b"caf\xe9 [/b] \xff")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints in one folder and two data sets; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBOT_FEATURES", str(tmp_path / "cache"))
    networks.write(Path("a.safetensors"))
    networks.write(Path("b.safetensors"), seed=1)
    for name in ("one", "two"):
        assert run_command(sample.main, ["--out", name, "--count", "20", "--size", "32"]) == DONE
    return tmp_path


def measure(*flags: str) -> None:
    assert run_command(knn.main, ["--workers", "0", "--k", "3", *flags]) == DONE


def kept() -> list[tuple[str, str, int]]:
    """Checkpoint, data set and crop of all records, by name."""
    found = [json.loads(path.read_text()) for path in sorted(Path("results").glob("*.json"))]
    return sorted((one["checkpoint"]["path"], one["data"]["train"], one["protocol"]["crop"]) for one in found)


def test_every_checkpoint_data_set_and_protocol_has_a_record_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 had one path for all of them, and each replaced the one before it in silence."""
    crop = ["--crop", "24", "--resize", "32"]
    for _ in range(2):  # the same again: replaced
        for name in "ab":
            for data in ("one", "two"):
                for more in ([], crop):
                    measure("--ckpt", f"{name}.safetensors", "--data", data, *more)
    assert len(kept()) == len(set(kept())) == 8
    assert len({path.name for path in Path("results").iterdir()}) == 8 and "kept as" not in capsys.readouterr().out


def test_a_record_that_out_names_is_set_aside_by_one_of_other_content(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 replaced it in silence. A measurement that is repeated with the same numbers replaces its record."""
    out = ["--out", "results/r.json"]
    measure("--ckpt", "a.safetensors", "--data", "one", *out)
    assert "kept as" not in capsys.readouterr().out
    measure("--ckpt", "b.safetensors", "--data", "one", *out)
    assert "results/r.json was of another checkpoint: kept as r-1.json" in capsys.readouterr().out
    measure("--ckpt", "b.safetensors", "--data", "two", *out)
    assert "was of another data set: kept as r-2.json" in capsys.readouterr().out
    measure("--ckpt", "b.safetensors", "--data", "two", "--crop", "24", "--resize", "32", *out)
    assert "was of another protocol: kept as r-3.json" in capsys.readouterr().out
    measure("--ckpt", "b.safetensors", "--data", "two", "--crop", "24", "--resize", "32", *out)
    assert len(kept()) == len(set(kept())) == 4
    for _ in range(2):
        measure("--ckpt", "a.safetensors", "--data", "one", *out)
        measure("--ckpt", "b.safetensors", "--data", "one", *out)
    assert len(kept()) == 5, "what is set aside twice replaces its like"
    content = json.loads(Path("results/r.json").read_text())
    content["metrics"]["top1"] += 1.0  # the same measurement with another number, as of images that have changed
    Path("results/r.json").write_text(json.dumps(content))
    capsys.readouterr()
    measure("--ckpt", "b.safetensors", "--data", "one", *out)
    assert "results/r.json had other numbers: kept as" in capsys.readouterr().out and len(kept()) == 6


def test_one_file_read_as_two_of_timm_s_models_has_two_identities() -> None:
    """46c01a2 knew a checkpoint by its path; its digest alone is the same for `timm:A@FILE` and `timm:B@FILE`."""
    about = {"probe": "knn", "data": {}, "protocol": {}, "metrics": {"top1": 1.0}}
    a, b = (about | {"checkpoint": {"path": "f.pth", "sha256": "0" * 64, "arch": arch}} for arch in "ab")
    assert record._same(a, a) and not record._same(a, b)


def test_a_head_is_kept_with_its_record(folder: Path) -> None:
    flags = "--mode cached --epochs 1 --workers 0 --data one --lr 0.1".split()
    for name in "ab":
        assert run_command(linear.main, [*flags, "--ckpt", f"{name}.safetensors"]) == DONE
    heads = sorted(Path("results").glob("linear_one_*_head.safetensors"))
    assert [head.name.split("_")[2][0] for head in heads] == ["a", "b"]
    assert heads[0].read_bytes() != heads[1].read_bytes()
    assert all(Path("results", head.name.replace("_head.safetensors", ".json")).is_file() for head in heads)
    out = ["--out", "results/r.json"]
    assert run_command(linear.main, [*flags, *out, "--ckpt", "a.safetensors"]) == DONE
    assert run_command(linear.main, [*flags, *out, "--ckpt", "b.safetensors"]) == DONE
    assert Path("results/r-1_head.safetensors").read_bytes() == heads[0].read_bytes()
    assert Path("results/r_head.safetensors").read_bytes() == heads[1].read_bytes()


@pytest.mark.parametrize("content", ["my notes", "{}", "[1, 2]", '{"probe": "knn"}', '{"checkpoint": 1, "data": 2}'])
def test_somebody_s_own_file_is_not_replaced_by_a_record(
    content: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2 replaced whatever --out named."""
    Path("notes.json").write_text(content)
    monkeypatch.setattr(knn, "measure", None)  # before any work
    flags = ["--ckpt", "a.safetensors", "--data", "one", "--out", "notes.json"]
    assert run_command(knn.main, flags) == WRONG_COMMAND
    assert "--out notes.json holds no results" in capsys.readouterr().err and Path("notes.json").read_text() == content


def test_what_appears_in_the_place_of_a_record_meanwhile_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure("--ckpt", "a.safetensors", "--data", "one")
    (path,) = Path("results").iterdir()
    path.write_text("mine")
    measure("--ckpt", "a.safetensors", "--data", "one")
    other = path.with_name(f"{path.stem}-1.json")
    assert f"{path} holds no results and stays; these are in {other.name}" in capsys.readouterr().out
    assert path.read_text() == "mine" and record.read(other)


COMMANDS: dict[str, tuple[Callable[..., Any], str]] = PROBES | {"export": (export.main, "--to timm")}
IMPOSSIBLE = {
    "below a file": "a.safetensors/x/record.json",
    "nowhere": "/proc/record/x.json",
    "a folder": "one",
    "a link": "link.json",
}


@pytest.mark.parametrize("where", ["below a file", "nowhere"])
@pytest.mark.parametrize("command", COMMANDS)
def test_outputs_are_tried_before_the_work(
    command: str, where: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2 trained the linear probe beside a read-only checkpoint, and lost all."""
    (main, more), out = COMMANDS[command], IMPOSSIBLE[where]
    tried, real = [], places.tried

    def counted(path: Path, *rest: Any) -> Any:
        tried.append(path)
        return real(path, *rest)

    monkeypatch.setattr(places, "tried", counted)
    before = sorted(folder.rglob("*"))
    assert run_command(main, [*more.split(), "--ckpt", "a.safetensors", "--out", out]) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert "nothing can be written to" in said and "give another --out" in said and said.count("\n") == 1
    assert tried and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["kmeans", "patches"])
def test_a_tokenizer_s_output_is_tried_before_the_work(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--ckpt", "a.safetensors"] if command == "kmeans" else []
    assert run_command(tokenizers.main, [command, *more, "--data", "one", "--out", "a.safetensors/x"]) == WRONG_COMMAND
    assert "nothing can be written to" in capsys.readouterr().err


def test_trying_leaves_nothing_behind(tmp_path: Path) -> None:
    places.tried(tmp_path / "a" / "b" / "c.json")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    places.tried(tmp_path / "a" / "b" / "c.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    with pytest.raises(UserError, match="Is a directory"):
        places.tried(tmp_path / "a")
    (tmp_path / "c.json").write_text("x")
    assert places.tried(tmp_path / "c.json").read_text() == "x"


def test_names_of_any_bytes_go_through_from_pretraining_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 lost the record of a fine-tuning after its last epoch to a class name that is no UTF-8."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBOT_FEATURES", str(tmp_path / NOT_UTF8 / "cache"))
    data = tmp_path / NOT_UTF8 / "data"
    for part in ("train", "val"):
        for number, image in enumerate(noise(24, 32)):
            path = data / part / (NOT_UTF8 if number % 2 else "b") / f"{NOT_UTF8}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    run = tmp_path / NOT_UTF8 / "run"
    assert run_command(train.main, [*SMALL, "--data", str(data), "--out", str(run), "--steps", "3"]) == DONE
    common = ["--ckpt", str(run), "--data", str(data), "--workers", "0"]
    assert run_command(knn.main, common) == DONE
    assert run_command(linear.main, [*common, "--mode", "cached", "--epochs", "1"]) == DONE
    assert run_command(visualize.main, ["attention", "--ckpt", str(run), "--data", str(data)]) == DONE
    tuned = "--recipe small --epochs 1 --lr 1e-3 --batch-size 8 --precision fp32 --warmup-epochs 0".split()
    assert run_command(finetune.main, [*common, *tuned]) == DONE
    assert run_command(report.main, [str(run), "--data", str(data)]) == DONE
    results = run / "results"
    assert {"knn", "linear"} <= {path.name.partition("_")[0] for path in results.glob("*.json")}
    (tuned_record,) = results.glob("finetune-*.json")
    assert json.loads(tuned_record.read_text())["probe"] == "finetune"
    assert "caf\\xe9 [/b] \\xff" in (run / "report.html").read_text()
    shutil.rmtree(tmp_path / NOT_UTF8)
