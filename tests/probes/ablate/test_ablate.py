"""An ablation in one command: its rows are the paper's, run in order, once, and are set beside what was published."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from checkpoints.cli import DONE, FAILED, INTERRUPTED, WRONG_COMMAND, UserError, run_command
from pretrain import config as recipes
from pretrain.options.command_line import read_command_line
from pretrain.options.groups import Config
from pretrain.recipes import ablation_recipes, registry
from pretrain.recipes.ablation_rows import Row, Table
from pretrain.recipes.ablations import TABLES
from pretrain.sample import __main__ as sample_command
from pretrain.setup.plan import plan_of
from probes.ablate import __main__ as ablate
from probes.ablate import table as ablate_table
from probes.ablate.plan import Setting, Words, plan, table_named
from probes.ablate.table import Rank, rank
from probes.paper import published
from probes.shared.subprocesses import Ended, run_once
from tests.support.commands import PROGRAMS, program

NO_PRETRAINING = {"Rand."}
OTHERS = {"MoCov3", "SwAV"}
ROWS = [(table, row) for table in TABLES.values() for row in table.rows]


def test_every_published_row_is_there_with_its_numbers() -> None:
    for table in TABLES.values():
        rows = {id(ablate_table.published_row(table, row)) for row in table.rows}
        wanted = [
            row
            for row in published.tables()[table.published].rows
            if row.method not in NO_PRETRAINING | OTHERS and row.arch != "RN50"
        ]
        assert len(rows) == len(table.rows) and rows == {id(row) for row in wanted}, table.name
        for row in table.rows:
            assert ablate_table.published(table, row) == pytest.approx(dict(row.numbers)), (table.name, row.name)


def test_rows_of_one_name_are_one_training() -> None:
    at_scale: dict[str, Any] = {}
    on_sample: dict[str, Any] = {}
    for table, row in ROWS + [(one, row) for one in TABLES.values() for row in one.helpers]:
        assert at_scale.setdefault(row.name, table.settings(row)) == table.settings(row)
        assert on_sample.setdefault(row.name, table.on_sample(row)) == table.on_sample(row)
        assert (row.needs, row.tokenizer is None) == next(
            (other.needs, other.tokenizer is None) for _, other in ROWS if other.name == row.name
        )


def parsed(words: list[str]) -> Config:
    """Options of a training."""
    config = read_command_line(words)
    plan_of(config)
    return config


@pytest.mark.parametrize("name", ablation_recipes.ABLATIONS)
def test_the_recipe_of_a_row_makes_the_papers_step_on_eight_gpus(name: str) -> None:
    line = registry.described(name).partition("command   ")[2].partition(" (eight GPUs)")[0]
    tool, *flags = shlex.split(line)
    settings = registry.RECIPES[name]
    assert tool == "tools/pretrain.sh" and flags[3] == name
    typed = shlex.split(" ".join(registry.as_flag(key, value) for key, value in settings.items()))
    config = parsed(["--data", "x", *typed, *flags[4:]])
    assert 8 * plan_of(config).batch_size == 1024
    assert f"{config.optimisation.epochs} epochs" in registry.described(name)


@pytest.mark.parametrize(("table", "row"), ROWS, ids=lambda value: value.name)
def test_every_row_is_possible_on_the_sample(table: Table, row: Row, tmp_path: Path) -> None:
    job = next(job for job in plan(table, Setting(tmp_path)) if job.row == row)
    if not job.lost:
        config = parsed(list(job.train[2:]))
        assert config.optimisation.epochs == 6 and config.model.arch == "vit_tiny" and config.run.out == tmp_path / row.name
    assert (row.arch == "ViT-B/16") == bool(job.lost)


def test_recipes_are_listed_by_table_and_told_in_full_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(recipes.main, []) == DONE
    listed = capsys.readouterr().out
    assert all(f"\n  {name}" in listed for table in TABLES for name in names(table))
    assert run_command(recipes.main, ["beit_dino"]) == DONE
    told = capsys.readouterr().out
    assert "k-NN 48.0, linear 62.7" in told and "--targets codes" in told and "--tokenizer dalle:FILE" in told
    for short, name in ablation_recipes.SHORT.items():
        assert registry.RECIPES[short] == registry.RECIPES[name]


def names(table: str) -> list[str]:
    return [ablation_recipes.recipe_name(TABLES[table], row) for row in TABLES[table].rows]


def test_a_row_runs_after_the_one_that_it_needs() -> None:
    jobs = plan(TABLES["T9"], Setting(Path("out")))
    order = [job.row.name for job in jobs]
    assert sorted(order) == sorted(row.name for row in TABLES["T9"].rows)
    assert order.index("dino") < order.index("frozen_tokenizer")
    helper, asked = plan(TABLES["T20"], Setting(Path("out")), ["frozen_tokenizer"])
    assert (helper.row.name, helper.asked, helper.probes) == ("dino", False, {}) and asked.asked
    assert asked.train[asked.train.index("--tokenizer") + 1] == "out/dino"
    assert "--features" in asked.probes["knn"] and "--features" not in asked.probes["knn_cls"]
    with pytest.raises(UserError, match="T9 has no row nothing: choose from ibot"):
        plan(TABLES["T9"], Setting(Path("out")), ["nothing"])
    with pytest.raises(UserError, match="there is no ablation T1: choose from T9"):
        table_named("T1")


def test_a_stand_in_for_dalle_is_the_samples_alone_and_named() -> None:
    (sample,) = plan(TABLES["T9"], Setting(Path("out")), ["beit"])
    assert "in place of DALL-E's" in sample.remark and "pretrain.tokenizers" in sample.patches
    (given,) = plan(TABLES["T9"], Setting(Path("out"), tokenizer="dalle:e.pkl"), ["beit"])
    assert not given.patches and "dalle:e.pkl" in given.train and "in place" not in given.remark
    (real,) = plan(TABLES["T9"], Setting(Path("out"), data="IN"), ["beit"])
    assert real.lost == "needs --tokenizer dalle:FILE"
    (clusters,) = plan(TABLES["T20"], Setting(Path("out"), data="IN"), ["patch_clusters"])
    assert not clusters.lost and "4096" in clusters.patches and "ablation_t20_patch_clusters" in clusters.train


def test_the_rank_correlation_is_spearmans() -> None:
    """Ranks 1 3 2 4 against 1 2 3 4: 1 - 6 (1 + 1) / (4 x 15)."""
    value, rows = rank([10.0, 30.0, 20.0, 40.0], [1.0, 2.0, 3.0, 4.0])
    assert value == pytest.approx(0.8) and rows == 4
    assert rank([1.0, 2.0], [1.0, 2.0]) == Rank(None, 2) == rank([1.0, 2.0], [2.0, 1.0])
    assert rank([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).value is None


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands do nothing but say that they ran; that of DINO fails."""

    def run(words: Words, name: Path, key: Words = ()) -> Ended:
        return run_once([str(PROGRAMS / "ablation_step.py"), *words], name, key)  # by its path: without torch

    monkeypatch.setattr(ablate, "run_once", run)


def test_a_failure_stops_nothing_but_what_needs_it_and_what_is_done_stays_done(
    stand_in: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--table", "T9", "--out", str(out)]
    assert run_command(ablate.main, [*flags, "--dry-run"]) == DONE and not out.exists()
    capsys.readouterr()
    assert run_command(ablate.main, flags) == FAILED
    first = (out / "said.txt").read_text().splitlines()
    printed = capsys.readouterr().out
    assert "no room for it" in printed and "not run: dino failed" in printed
    assert run_command(ablate.main, flags) == FAILED
    again = (out / "said.txt").read_text().splitlines()[len(first) :]
    assert again == ["train dino"] and "was done" in capsys.readouterr().out
    record = json.loads((out / "ablation_T9.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == [row.name for row in TABLES["T9"].rows] and record["table"] == "T9_tokenizer_ablation"
    assert rows["beit"]["metrics"] == {"knn": 4.0, "linear": 4.0} and rows["beit"]["published"] == {"knn": 6.9, "linear": 23.5}
    assert rows["dino"]["metrics"] == {} and "training failed" in rows["dino"]["remark"]
    assert record["spearman"]["knn"]["rows"] == 5
    page = (out / "ablation_T9.md").read_text()
    assert "| beit: BEiT | 4.0 | 6.9 | 4.0 | 23.5 |" in page and "Spearman's rank correlation of k-NN" in page


def test_some_rows_now_and_others_later_make_one_table(stand_in: None, tmp_path: Path) -> None:
    for names in (["ibot", "mim_only"], ["separate_heads"]):
        assert run_command(ablate.main, ["--table", "T9", "--out", str(tmp_path), "--rows", *names]) == DONE
    record = json.loads((tmp_path / "ablation_T9.json").read_text())
    assert [row["name"] for row in record["rows"] if row["metrics"]] == ["ibot", "separate_heads", "mim_only"]
    assert "k-NN of [CLS] 8.0" in record["rows"][2]["remark"]


def test_another_table_takes_over_rows_of_the_same_name(stand_in: None, tmp_path: Path) -> None:
    for table in ("TE_out_dim", "TE_loss_ratio"):
        assert run_command(ablate.main, ["--table", table, "--out", str(tmp_path), "--rows", "ibot"]) == DONE
    assert (tmp_path / "said.txt").read_text().count("train ibot") == 1


def test_figure_8_is_measured_by_its_clusters(stand_in: None, tmp_path: Path) -> None:
    assert run_command(ablate.main, ["--table", "F8", "--out", str(tmp_path)]) == DONE
    record = json.loads((tmp_path / "ablation_F8.json").read_text())
    assert record["protocol"]["probes"] == ["cluster"]
    assert record["rows"][2]["published"] == {"nmi_epoch100": 27.0} and record["rows"][2]["metrics"] == {"nmi_epoch100": 1.0}


def test_a_changed_command_is_run_again(tmp_path: Path) -> None:
    count = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write('x')"
    for key in (["a"], ["a"], ["b"]):
        assert run_once(["-c", count, str(tmp_path / "count")], tmp_path / "step", key).ok
    assert (tmp_path / "count").read_text() == "xx"


SAVES = "import signal, sys, time; signal.signal(2, lambda *_: sys.exit(75)); print('ready', flush=True); time.sleep(60)"
DIES = "import time; print('ready', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("work", "code"), [(SAVES, INTERRUPTED), (DIES, 130)])
def test_a_wish_to_stop_reaches_the_process_once_and_its_answer_is_passed_on(work: str, code: int, tmp_path: Path) -> None:
    name = tmp_path / "step"
    process = subprocess.Popen(**program("stoppable_step", str(name), work) | {"stdout": None, "stderr": None})
    log = Path(f"{name}.log")
    while not (log.exists() and "ready" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == code and not Path(f"{name}.done").exists()


def test_impossible_values_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--table", "T99"], "there is no ablation T99"),
        (["--table", "T9", "--epochs", "0"], "--epochs must be 1 or more"),
        (["--table", "T9", "--tokenizer", "colour"], "give dalle:FILE"),
    ):
        assert run_command(ablate.main, flags) == WRONG_COMMAND
        assert words in capsys.readouterr().err


def test_a_small_recipe_on_data_of_ones_own_chooses_nothing_on_test_images(tmp_path: Path) -> None:
    jobs = {
        job.row.name: job for job in plan(table_named("T9"), Setting(tmp_path, "CIFAR10", 3, recipe="cifar10", controls=True))
    }
    train = " ".join(jobs["ibot"].train)
    assert "--data CIFAR10 --recipe cifar10" in train and "--epochs 3" in train and "--accumulate" not in train
    assert "--patch-size 4 --codes 256" in " ".join(jobs["beit"].patches) and "DALL-E" in jobs["beit"].remark
    for name, job in jobs.items():
        assert "--select val-split" in " ".join(job.probes["linear"]) and "--k 20" in " ".join(job.probes["knn"]), name
    assert not jobs["untrained"].train and "--untrained" in jobs["untrained"].probes["knn"]
    assert jobs["untrained"].needs == jobs["supervised"].needs == "ibot" and "pixels_24" in " ".join(jobs["pixels"].probes["knn"])
    labels = " ".join(jobs["supervised"].train)
    assert "--from-scratch" in labels and "--epochs 3" in labels and f"--folder {tmp_path / 'supervised'}" in labels
    for job in plan(table_named("T9"), Setting(tmp_path, "IMAGENET", controls=True))[-3:]:
        assert job.lost == "controls are for small images: give --recipe"


def test_controls_are_trained_and_measured_like_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real commands, on a handful of images."""
    data, out = tmp_path / "few", tmp_path / "out"
    assert run_command(sample_command.main, ["--out", str(data), "--count", "130"]) == DONE
    flags = ["--table", "T9", "--recipe", "sample", "--data", str(data), "--epochs", "1", "--controls", "--out", str(out)]
    assert run_command(ablate.main, [*flags, "--rows", "supervised", "untrained", "pixels", "--probe", "knn"]) == DONE
    rows = {row["name"]: row for row in json.loads((out / "ablation_T9.json").read_text())["rows"]}
    for name in ("supervised", "untrained", "pixels"):
        low, high = rows[name]["intervals"]["knn"]
        assert 0 <= low <= rows[name]["metrics"]["knn"] <= high <= 100 and not rows[name]["published"]
    assert json.loads((out / "pixels" / "knn.json").read_text())["protocol"]["crop"] == 32  # as the networks see them
    assert rows["ibot"]["metrics"] == rows["dino"]["metrics"] == {}
    assert f"[{rows['pixels']['intervals']['knn'][0]:.1f}, " in (out / "ablation_T9.md").read_text()
    capsys.readouterr()
    assert run_command(ablate.main, ["--table", "T9", "--recipe", "cifar10", "--dry-run"]) == WRONG_COMMAND
    assert "--recipe cifar10 needs --data" in capsys.readouterr().err
