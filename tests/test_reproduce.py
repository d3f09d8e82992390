"""One command for all tables: what it plans, what it leaves out, what a failure stops, what is done twice."""

import json
from pathlib import Path

import pytest
from test_layouts import SWIN, VIT, saved_backbone

from checkpoints import store
from checkpoints.command import DONE, FAILED, WRONG_COMMAND, UserError, run_command
from pretrain.backbone import Loaded, load_backbone
from probes import paper, reproduce
from probes.reproduce import Options, Planned, plan
from probes.reproduce_steps import Step, real, sample


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT's backbone file."""
    return saved_backbone(VIT, tmp_path_factory.mktemp("vit") / "backbone.safetensors")


def small(path: Path) -> Loaded:
    return load_backbone(path)


def test_what_is_given_is_planned_cheapest_first_and_the_rest_is_named(vit: Path, tmp_path: Path) -> None:
    planned, missing = plan(Options(imagenet=tmp_path, davis=tmp_path), small(vit), speed=1000.0)
    names = [one.step.name for one in planned]
    assert {"knn", "linear", "semi", "finetune", "video"} <= set(names) and "ina" not in names
    assert [one.seconds for one in planned] == sorted(one.seconds for one in planned)
    assert names.index("knn") < names.index("linear") < names.index("finetune")
    assert {"ina", "inc", "cifar10", "inat18"} <= {step.name for step in missing}
    twice, _ = plan(Options(imagenet=tmp_path, davis=tmp_path), small(vit), speed=2000.0)
    for slow, fast in zip(planned, twice, strict=True):
        assert slow.seconds - reproduce.START == pytest.approx(2 * (fast.seconds - reproduce.START))


def test_tables_choose_the_steps(vit: Path, tmp_path: Path) -> None:
    planned, missing = plan(Options(imagenet=tmp_path, table=("T1", "F10")), small(vit), speed=1000.0)
    assert {one.step.name for one in planned} == {"knn", "linear", "shuffle"} and not missing
    with pytest.raises(UserError, match="there is no table T99"):
        plan(Options(table=("T99",)), small(vit), speed=1000.0)


def test_without_data_everything_runs_on_the_sample(vit: Path) -> None:
    planned, missing = plan(Options(), small(vit), speed=1000.0)
    assert {one.step.name for one in planned} == {step.name for step in sample()} and not missing
    assert sum(one.seconds for one in planned) < 1800


def test_a_swin_is_not_asked_for_its_attention(tmp_path: Path) -> None:
    planned, _ = plan(Options(imagenet=tmp_path), small(saved_backbone(SWIN, tmp_path / "swin.safetensors")), speed=1000.0)
    assert not any(one.step.vit_only for one in planned) and "knn" in {one.step.name for one in planned}


def test_steps_name_tables_that_exist() -> None:
    known = {name.partition("_")[0] for name in paper.tables()}
    for arch in ("vit_small", "vit_base", "swin_tiny"):
        steps = real(arch) + sample()
        assert {table for step in steps for table in step.tables} <= known
        assert {step.needs for step in steps} <= {*reproduce.DATA, "sample"}


def test_a_failure_stops_nothing_and_what_is_done_stays_done(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writes = "import sys; open(sys.argv[1], 'a').write('x')"
    steps = [
        Step("cheap", ("T1",), "sample", ("-c", writes, "{folder}.txt"), 1),
        Step("broken", ("T1",), "sample", ("-c", "import sys; sys.exit('no room for it')"), 2),
        Step("dear", ("T1",), "sample", ("-c", writes, "{folder}.txt"), 3),
    ]
    monkeypatch.setattr(reproduce, "sample", lambda: steps)
    monkeypatch.setattr(reproduce, "finish", lambda out: None)
    flags = ["--ckpt", str(vit), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert run_command(reproduce.main, [*flags, "--dry-run"]) == DONE and not (tmp_path / "out").exists()
    for _ in range(2):
        assert run_command(reproduce.main, flags) == FAILED
        printed = capsys.readouterr().out
        assert "no room for it" in printed and "2 of 3 steps are done" in printed
    assert "was done" in printed
    assert [(tmp_path / "out" / f"{name}.txt").read_text() for name in ("cheap", "dear")] == ["x", "x"]


def test_another_checkpoint_is_measured_anew(vit: Path, tmp_path: Path) -> None:
    one = Planned(
        Step("count", (), "sample", ("-c", "import sys; open(sys.argv[1], 'a').write('x')", "{folder}.txt"), 1), "", 1.0
    )
    for key in ("first", "first", "second"):
        reproduce.run_step(one, vit, tmp_path, key)
    assert (tmp_path / "count.txt").read_text() == "xx"


def test_a_missing_folder_is_one_sentence(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(reproduce.main, ["--ckpt", str(vit), "--imagenet", "nowhere"]) == WRONG_COMMAND
    assert "--imagenet: there is no folder nowhere" in capsys.readouterr().err


def test_a_step_of_the_sample_really_runs(vit: Path, tmp_path: Path) -> None:
    """The cheapest one, by its own command line."""
    out = tmp_path / "out"
    planned, _ = plan(Options(table=("T5",)), small(vit), speed=1000.0)
    ended = [reproduce.run_step(one, vit, out, "key") for one in planned if not out.mkdir(exist_ok=True)]
    assert [one.state for one in ended] == ["done"], (out / "cluster.log").read_text()
    assert json.loads((out / "cluster.json").read_text())["probe"] == "cluster" and store.sha256(vit)
