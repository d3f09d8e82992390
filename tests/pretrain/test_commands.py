"""The commands as people type them: from images to a number, and what they say when something is wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from checkpoints import store
from checkpoints.cli import DONE, INTERRUPTED, WRONG_COMMAND, run_command
from pretrain import train
from pretrain.models.backbone import load_backbone
from probes import knn
from tests.support import records
from tests.support.commands import ROOT, SMALL, command, exit_code, program
from tests.support.trainings import trained


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    return trained(tmp_path_factory.mktemp("runs") / "small", "--data", folders, "--epochs", 2)


def test_a_run_leaves_what_the_design_promises(run: Path) -> None:
    names = {path.name for path in run.iterdir() if not path.name.startswith("events")}
    assert names == {"config.json", "metrics.jsonl", "starts.jsonl", store.LAST, store.PREVIOUS, store.BACKBONE}
    assert list(run.glob("events.out.tfevents.*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "knn" in line] == [0, 5, 10]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    state = store.read_torch(run / store.LAST)
    assert state["step"] == 10 and set(state["centres"]) == {"cls", "patch"}
    assert state["config"] == json.loads((run / "config.json").read_text())


def test_backbone_file_and_checkpoint_hold_the_same_teacher(run: Path) -> None:
    exported, full = load_backbone(run / store.BACKBONE), load_backbone(run / store.LAST)
    student = load_backbone(run, key="student")
    assert load_backbone(run).path == run / store.BACKBONE and exported.epoch == full.epoch == 2
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(exported.backbone(images), full.backbone(images))
    assert not torch.equal(exported.backbone(images), student.backbone(images))


def test_knn_prints_a_table_and_writes_a_record(run: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(knn.main, ["--ckpt", str(run), "--data", str(folders), "--baselines", "--k", "1", "5"]) == DONE
    printed = capsys.readouterr().out
    assert "this checkpoint" in printed and "raw pixels" in printed and "k=5" in printed
    record = json.loads(records.only(run / "results", "knn").read_text())
    assert record["schema"] == 1 and record["probe"] == "knn" and record["checkpoint"]["epoch"] == 2
    assert record["checkpoint"]["sha256"] == store.sha256(run / store.BACKBONE)
    numbers = record["metrics"]
    assert numbers["top1"] == max(numbers["top1_k1"], numbers["top1_k5"]) and numbers["top5_k5"] >= numbers["top1_k5"]
    assert {"untrained_top1", "pixels_top1"} <= numbers.keys()


def test_knn_takes_the_newest_run_and_a_published_file(
    run: Path, folders: Path, parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    os.symlink(run, tmp_path / "runs" / "small")
    assert run_command(knn.main, ["--data", str(folders), "--k", "1", "--out", "a.json"]) == DONE
    assert json.loads(Path("a.json").read_text())["checkpoint"]["epoch"] == 2
    published = str(parity_dir / "checkpoint_published_layout.pth")
    for key in ("teacher", "student"):
        assert run_command(knn.main, ["--ckpt", published, "--key", key, "--data", str(folders), "--out", "b.json"]) == DONE


def test_a_finished_run_is_left_alone_and_other_options_are_refused(
    run: Path, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / store.LAST).read_bytes()
    common = [*SMALL, "--data", str(folders), "--out", str(run)]
    assert run_command(train.main, [*common, "--epochs", "2"]) == DONE
    assert "this run is finished" in capsys.readouterr().out
    assert run_command(train.main, [*common, "--epochs", "2", "--lr", "1"]) == WRONG_COMMAND
    assert "--lr was 0.0005, now 1.0" in capsys.readouterr().err
    assert (run / store.LAST).read_bytes() == before


def test_a_run_taken_up_again_ends_where_an_unbroken_one_does(
    run: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 3 by the signal that Ctrl-C sends, then started again with the same command."""
    logged = train.Progress.log

    def stop_after_three(self: train.Progress, done: int, *rest: Any) -> None:
        logged(self, done, *rest)
        if done == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train.Progress, "log", stop_after_three)
    flags = [*SMALL, "--data", str(folders), "--epochs", "2", "--out", str(tmp_path / "again")]
    assert run_command(train.main, flags) == INTERRUPTED
    assert store.read_torch(tmp_path / "again" / store.LAST)["step"] == 4
    monkeypatch.setattr(train.Progress, "log", logged)
    assert run_command(train.main, flags) == DONE
    ours, whole = store.read_torch(tmp_path / "again" / store.LAST), store.read_torch(run / store.LAST)
    for part in ("student", "teacher", "centres"):
        for name, value in whole[part].items():
            assert torch.equal(value, ours[part][name]), (part, name)
    lines = [json.loads(line)["step"] for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(lines) and lines.count(4) == 1


def test_ctrl_c_saves_says_so_and_exits_with_75(folders: Path, tmp_path: Path) -> None:
    flags = [*SMALL, "--data", str(folders), "--epochs", "2000", "--out", str(tmp_path), "--workers", "1"]
    with subprocess.Popen(**command("-m", "pretrain.train", *flags), start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / store.LAST).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group
        printed, complained = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, complained
    assert "the same command continues from here" in printed and "Traceback" not in complained
    assert store.read_torch(tmp_path / store.LAST)["step"] > 0


def make_wrong_things(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "junk.pt").write_bytes(b"junk")
    (root / "junk.safetensors").write_bytes(b"junk")
    torch.save([1], root / "list.pt")
    torch.save({"weights": 1}, root / "other.pt")
    (root / "flat").mkdir()
    for index in range(4):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(root / "flat" / f"{index}.png")
        (root / "named" / f"class {index % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "flat" / f"{index}.png", root / "named" / f"class {index % 2}")


TRAIN_MISTAKES = (
    ("--no-such-flag 1", "nrecognized options"),
    ("--epochs many", "--epochs"),
    ("--arch resnet5000", "unknown --arch resnet5000: choose from"),
    ("--arch resnet50", "--width and --depth change vit_tiny, vit_small"),
    ("--recipe nothing", "unknown --recipe nothing: choose from"),
    ("--data nowhere", "there is no folder or file nowhere"),
    ("--data empty", "there are no images in empty"),
    ("--data flat", "flat has 4 images, fewer than one batch of 8: lower --batch-size-per-gpu"),
    ("--global-crops-size 33", "--global-crops-size 33 is not divisible by --patch-size 8"),
    ("--shard true --precision fp16", "--shard does not go with --precision fp16: give --precision bf16 or fp32"),
    ("--local-crops-size 17", "--local-crops-size 17 is not divisible by --patch-size 8"),
    ("--global-crops-size 16", "a grid of 2 x 2 patches has no room for block masks"),
    ("--batch-size-per-gpu 100000", "sample (train) has 6000 images, fewer than one batch of 100000"),
    ("--batch-size-per-gpu 0", "--batch-size-per-gpu must be 1 or more"),
    ("--pred-ratio 0.3", "--pred-ratio has 1 values and --pred-ratio-var 2: give as many"),
    ("--global-crops-scale 0.9 0.1", "--global-crops-scale 0.9 0.1: give two shares"),
    ("--global-crops-number 1 --local-crops-number 0", "ask for at least 2 crops"),
    ("--patch-out-dim 64", "--patch-out-dim 64 equal to --out-dim 32"),
    ("--steps 0", "--steps must be 1 or more"),
    ("--max-bad -1", "--max-bad must be 0 or more"),
    ("--channels 0", "--channels must be 1 or more"),
    ("--channels 6 --data flat --batch-size-per-gpu 2", "no image of flat can be used with --channels 6"),
    ("--init-from nowhere", "there is no checkpoint at nowhere"),
    ("--data torchvision:Nothing", "torchvision has no data set Nothing"),
    ("--data shard-{0..3}.tar", "there is no shard shard-0.tar"),
    ("--data hf:nobody/nothing", "hf:nobody/nothing could not be opened"),
    ("--out flat/0.png/run", "cannot write to --out"),
)


@pytest.mark.parametrize(("flags", "message"), TRAIN_MISTAKES, ids=[flags for flags, _ in TRAIN_MISTAKES])
def test_a_wrong_training_command_is_one_sentence_and_exit_code_2(
    flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wrong_things(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert exit_code(train.main, [*SMALL, *flags.split()]) == WRONG_COMMAND
    complained = capfd.readouterr().err
    assert message in " ".join(complained.replace("│", " ").split()) and "Traceback" not in complained
    assert not (tmp_path / "runs").exists()


KNN_MISTAKES = (
    ("", "no run under runs/ has a checkpoint yet"),
    ("--ckpt nowhere", "there is no checkpoint at nowhere"),
    ("--ckpt empty", "empty holds no checkpoint"),
    ("--ckpt junk.pt", "junk.pt is a text file, not a checkpoint"),
    ("--ckpt junk.safetensors", "junk.safetensors is a text file, not a checkpoint"),
    ("--ckpt list.pt", "list.pt holds a list, not a checkpoint"),
    ("--ckpt other.pt", "other.pt holds no backbone that is known here: it"),
    ("--ckpt RUN --data flat", "flat has no labels: this probe needs class sub-folders, or a label column"),
    ("--ckpt RUN --data named", "no part named val, test, validation, valid to test on: name one with --val"),
    ("--ckpt RUN --data flat --val flat", "flat has no labels"),
    ("--ckpt RUN --crop 30", "--crop 30 must be divisible by the patch size 8"),
    ("--ckpt RUN --k 0", "--k must be 1 or more"),
    ("--ckpt RUN --key nobody", "nobody"),
)


@pytest.mark.parametrize(("flags", "message"), KNN_MISTAKES, ids=[flags or "nothing" for flags, _ in KNN_MISTAKES])
def test_a_wrong_knn_command_is_one_sentence_and_exit_code_2(
    flags: str, message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wrong_things(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert exit_code(knn.main, flags.replace("RUN", str(run)).split()) == WRONG_COMMAND
    complained = capfd.readouterr().err
    assert message in " ".join(complained.replace("│", " ").split()) and "Traceback" not in complained


def test_the_shell_tools_use_an_environment_that_has_the_packages() -> None:
    for tool, flags, code, said in (
        ("pretrain.sh", ["--help"], 0, "usage: python -m pretrain.train"),
        ("pretrain.sh", ["--no-such-flag"], 2, ""),
        ("setup.sh", [], 0, "has what is needed"),
        ("setup.sh", ["nonsense"], 2, ""),
        ("bench.sh", ["data", "--images", "4", "--batch-size", "2", "--rounds", "1"], 0, "Pillow and torchvision"),
        ("bench.sh", ["step", "--help"], 0, "against the plain method"),
        ("bench.sh", ["nothing"], 2, ""),
    ):
        arguments = command(PYTHON=sys.executable) | {"args": ["bash", str(ROOT / "tools" / tool), *flags]}
        done = subprocess.run(**arguments, check=False, timeout=120)
        assert done.returncode == code and said in done.stdout, done.stderr


COMMANDS = (
    "pretrain.train pretrain.sample pretrain.config probes.knn probes.segment probes.report probes.live probes.linear "
    "probes.logistic probes.semi probes.cluster probes.parts probes.tables probes.bench.knn probes.finetune probes.video "
    "probes.retrieval probes.visualize probes.robustness checkpoints.export checkpoints.inspect transfer.train pretrain.curves "
    "transfer.predict transfer.predict.export "
    "pretrain.tokenizers probes.ablate probes.reproduce probes.bench.step probes.bench.count probes.bench.data "
    "probes.bench.gpu_day probes.bench.profile_step probes.compare probes.embed"
).split()


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    """Of every command, the exit code and the text of its --help."""
    done = subprocess.run(**program("help_of", *COMMANDS), check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_has_help(module: str, helps: dict[str, tuple[int, str]]) -> None:
    code, text = helps[module]
    assert code == 0, text
    assert "usage" in text.lower()


def test_help_is_the_same_without_the_heavy_libraries(helps: dict[str, tuple[int, str]]) -> None:
    """46c01a2 imported torch, timm, scikit-learn and faiss, five seconds, for the --help of every command."""
    done = subprocess.run(**program("help_of", "--quick", *COMMANDS), check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for module, (code, text) in json.loads(done.stdout).items():
        printed, _, loaded = text.rpartition("loaded: ")
        assert (code, printed, loaded.strip()) == (*helps[module], ""), module


def test_help_says_each_default_once_and_has_sections(helps: dict[str, tuple[int, str]]) -> None:
    """46c01a2 ended 45 texts with "(default: X). (default: None)"."""
    for module, (_, text) in helps.items():
        assert "(default: None)" not in text, module
        assert not re.search(r"\(default: [^)]*\)\.?\s*\(default", " ".join(text.replace("│", " ").split())), module
    assert [
        section
        for section in ("input", "protocol", "output", "machine")
        if f"─ {section} options ─" not in helps["probes.knn"][1]
    ] == []
    assert all("--config FILE" in text or module in WITH_OTHERS for module, (_, text) in helps.items())


WITH_OTHERS = {
    "pretrain.tokenizers": "has commands with flags of their own",
    "probes.visualize": "likewise",
    "transfer.train": "--options",
    "transfer.predict": "likewise",
    "transfer.predict.export": "likewise",
}
"""Commands whose --help has no --config for a file of flags."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_measures_itself(folders: Path, tmp_path: Path) -> None:
    out = trained(tmp_path, "--data", folders, "--epochs", 2, "--precision", "bf16")
    state = store.read_torch(out / store.LAST)
    assert state["step"] == 10 and all(torch.isfinite(weight).all() for weight in state["teacher"].values())


def test_labels_that_differ_between_the_parts_stop_a_run_before_its_first_step(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders, tmp_path / "data")
    next((tmp_path / "data" / "val").iterdir()).rename(tmp_path / "data" / "val" / "unicorn")
    assert run_command(train.main, [*SMALL, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]) == WRONG_COMMAND
    complained = capsys.readouterr()
    assert "has classes that" in complained.err
    assert "unicorn" in complained.err
    assert "step" not in complained.out.split("steps of")[-1]


def test_a_run_on_six_channels_begins_with_a_backbone_of_three(run: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(16):
        np.save(tmp_path / f"{number}.npy", generator.uniform(0.1, 0.3, (40, 40, 6)).astype(np.float32))
    out = tmp_path / "run"
    flags = [*SMALL, "--data", str(tmp_path), "--channels", "6", "--init-from", str(run), "--epochs", "1", "--out", str(out)]
    assert run_command(train.main, [*flags, "--global-crops-size", "48", "--lr", "0", "--min-lr", "0"]) == DONE
    before: Any = load_backbone(run).backbone
    after: Any = load_backbone(out).backbone
    assert after.shape.channels == 6
    assert np.allclose(after.shape.mean, 0.2, atol=0.01)
    assert np.allclose(after.shape.std, 0.05, atol=0.01)
    three, six = (network.patch_embed.proj.weight for network in (before, after))
    assert_close(six, torch.cat([three, three], dim=1) / 2)  # the same answer where all channels agree
    assert after.pos_embed.shape[1] == 37
    assert_close(after.pos_embed, before.position(6, 6))
    assert_close(after.blocks.state_dict(), before.blocks.state_dict())
    assert run_command(train.main, [*flags[:-2], "--width", "128", "--out", str(tmp_path / "other")]) == WRONG_COMMAND
