"""What the first build (46c01a2) left behind is still read: a run's folder, a record, kept features (`first_build.tar.gz`).

Made there by `python -m pretrain.train FLAGS --steps 2 --out run` and `python -m probes.knn --ckpt run --limit 40 --workers 0`.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from checkpoints import store
from checkpoints.cli import DONE, run_command
from pretrain import curves, train
from pretrain.engine import logs
from pretrain.engine.run_folder import RunFolder
from probes import knn, live, tables
from probes.features import cache
from probes.report import __main__ as report
from probes.report import run as page
from tests.support import records

FLAGS = (
    "--arch vit_tiny --width 64 --depth 1 --patch-size 8 --global-crops-size 32 --local-crops-size 16 --local-crops-number 2 "
    "--out-dim 16 --patch-out-dim 16 --head-hidden-dim 16 --head-bottleneck-dim 8 --batch-size-per-gpu 4 --workers 0 "
    "--precision fp32 --knn-every 1 --report false --compile off"
)


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which they lie, the working directory."""
    with tarfile.open(Path(__file__).with_name("first_build.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBOT_FEATURES", "cache")
    return tmp_path


def test_a_run_of_the_first_build_goes_on(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FLAGS.split(), "--out", "run", "--steps", "4"]
    assert run_command(train.main, [*flags, "--allow-config-change", "true"]) == DONE
    said = capsys.readouterr().out
    assert "continuing after step 2" in said and "whether they have changed is not known" in said
    found = store.load_run(Path("run"))
    assert found is not None and found.state["step"] == 4 and found.state["data"]["images"]
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()][-1] == 4


def test_features_and_a_record_of_the_first_build_are_used(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are not computed again, and give the same numbers."""
    before = json.loads(Path("run/results/knn.json").read_text())
    seen: list[Any] = []
    monkeypatch.setattr(cache, "_forward", lambda *given: seen.append(given))
    assert run_command(knn.main, "--ckpt run --limit 40 --workers 0".split()) == DONE
    after = json.loads(records.only(Path("run/results"), "knn").read_text())
    assert (
        not seen
        and after["metrics"].items() >= before["metrics"].items()
        and after["checkpoint"]["sha256"] == before["checkpoint"]["sha256"]
    )


def test_pages_and_tables_of_the_first_build_s_files(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(report.main, ["run"]) == DONE
    assert "k-NN, top-1 %" in Path("run/report.html").read_text()
    assert run_command(tables.main, ["run"]) == DONE and "12.5" in capsys.readouterr().out
    assert run_command(curves.main, ["--runs", "run"]) == DONE and "Training curves" in live.page(Path("run"))


def test_a_log_of_the_first_build_is_read_under_today_s_names(left: Path) -> None:
    """By curves, pages and a run that goes on; the file itself keeps its names."""
    written = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    values = next(line for line in written if "loss" in line)
    assert values.keys() >= logs.RENAMED.keys()
    for reader in (curves.read(Path("run")), page.read(Path("run")).lines, RunFolder(Path("run"), {}, 1, 1.0).history()):
        read = next(line for line in reader if "loss" in line)
        assert {new: read[new] for new in logs.RENAMED.values()} == {new: values[old] for old, new in logs.RENAMED.items()}
        assert not read.keys() & logs.RENAMED.keys()
    drawn = {line.name for plot in page.plots(page.read(Path("run"))) for line in plot.lines}
    assert drawn >= {"target_entropy", "mean_target_entropy", "kl_divergence", "effective_rank", "gradient_norm"}
