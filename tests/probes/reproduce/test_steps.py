"""One command for all tables: what it plans, what it leaves out, what a failure stops, what is done twice."""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import store, zoo
from checkpoints.architecture import Architecture
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, UserError, WorkError, parse, run_command
from pretrain.engine.options import as_values
from pretrain.models.backbone import Loaded, load_backbone
from probes.features.cache import weights_digest
from probes.finetune.options import settled
from probes.linear.head import FOUR, features
from probes.paper import protocols, published
from probes.paper.cells import CELLS, Cell
from probes.reproduce import __main__ as reproduce
from probes.reproduce import plan as reproduce_plan
from probes.reproduce.__main__ import ReproduceOptions
from probes.reproduce.look import Look
from probes.reproduce.plan import Plan, Planned, lacking
from probes.reproduce.steps import FEW, START, Step, real, sample
from probes.robustness import suites
from probes.shared.subprocesses import Ended
from tests.support import drawn_world, networks, outlined
from tests.support.modules import command_module
from tests.support.networks import write_moved
from transfer import data as dense
from transfer import scenes
from transfer.choosing import recipe_for
from transfer.config import CONFIGS, default_config

SMALLEST = {"cascade_vits16_1x", "upernet_vits16", "linear_vits16"}
TWO_HEADS = Architecture("vit", 8, 32, 3, 128, 2, 2, init="fan_in")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT's backbone file."""
    return write_moved(tmp_path_factory.mktemp("vit") / "backbone.safetensors")


def small(path: Path) -> Loaded:
    return load_backbone(path)


def plan(options: ReproduceOptions, loaded: Loaded, speed: float = 1000.0, out: Path = Path("nowhere")) -> Plan:
    """Of folders whose content is not looked at."""
    return reproduce_plan.make(reproduce.asked_for(options, out), loaded, speed, lambda step, data: Look())


def names_of(plan: Plan) -> list[str]:
    return [one.step.name for one in plan.planned]


def test_what_is_given_is_planned_cheapest_first_and_the_rest_is_named(vit: Path, tmp_path: Path) -> None:
    found = plan(ReproduceOptions(imagenet=tmp_path, davis=tmp_path), small(vit))
    names = names_of(found)
    assert {"knn", "linear", "semi", "finetune", "video"} <= set(names) and "ina" not in names
    alone = [one.seconds for one in found.planned if not one.step.after]
    assert alone == sorted(alone)
    assert names.index("knn") < names.index("linear") < names.index("finetune")
    assert {"ina", "inc", "cifar10", "inat18"} <= {step.name for step in found.missing}
    twice = plan(ReproduceOptions(imagenet=tmp_path, davis=tmp_path), small(vit), speed=2000.0)
    for slow, fast in zip(found.planned, twice.planned, strict=True):
        assert slow.seconds - START == pytest.approx(2 * (fast.seconds - START))


def test_the_head_is_trained_before_whatever_is_measured_with_it(vit: Path, tmp_path: Path) -> None:
    """On 46c01a2 in9, ina, inc, occlusion and shuffle came first and trained heads of their own."""
    given: dict[str, Any] = dict.fromkeys(("imagenet", "in9", "ina", "inr", "sketch", "inc"), tmp_path)
    for options in (ReproduceOptions(**given), ReproduceOptions()):
        found = plan(options, small(vit), out=tmp_path)
        names = names_of(found)
        headed = [
            one
            for one in found.planned
            if "robustness" in " ".join(one.step.words) and one.step.needs + one.step.name != "samplein9"
        ]
        assert len(headed) == 7 - (options.in9 is None)
        for one in headed:
            assert names.index("linear") < names.index(one.step.name)
            words = reproduce.command(one, options, vit, tmp_path)
            assert words[words.index("--head") + 1] == str(tmp_path / "linear_head.safetensors")
        # Cheap ones run as soon as the head is there, before what is dearer than it.
        assert names.index("sketch") < names.index("finetune")


def head_file(path: Path, loaded: Loaded, **otherwise: Any) -> Path:
    """A linear head of a thousand classes by Table 1's protocol, as far as it says, but for `otherwise`."""
    wanted = protocols.linear_head({"arch": loaded.backbone.shape.arch})
    stated = {name.rpartition(".")[2]: value for name, value in wanted.items()} | otherwise
    width = features(loaded.backbone, torch.zeros(1, 3, 32, 32), FOUR).shape[1]
    about = {"features": FOUR, "weights": weights_digest(loaded.backbone), "view": [256, 224], "protocol": stated}
    store.save_backbone(path, {"weight": torch.zeros(1000, width), "bias": torch.zeros(1000)}, about)
    return path


def test_a_head_from_before_is_taken_if_it_is_by_the_protocol(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 in9 without ImageNet asked for a head, or took any that lay beside the checkpoint."""
    checkpoint = tmp_path / "backbone.safetensors"
    checkpoint.write_bytes(vit.read_bytes())
    loaded, options = small(checkpoint), ReproduceOptions(in9=tmp_path, sketch=tmp_path)
    found = plan(options, loaded, out=tmp_path / "out")
    assert not found.planned and [one.step.name for one in found.left] == ["in9", "sketch"]
    assert "there is no linear head of this checkpoint" in found.left[0].reason and found.unanswered == ["--in9", "--sketch"]
    for place in (tmp_path / "results" / "linear_head.safetensors", tmp_path / "out" / "linear_head.safetensors"):
        path = head_file(place, loaded)
        found = plan(options, loaded, out=tmp_path / "out")
        assert sorted(names_of(found)) == ["in9", "sketch"] and {one.head for one in found.planned} == {path}
        assert str(path) in reproduce.command(found.planned[0], options, checkpoint, tmp_path / "out")
        for wrong in ({"mode": "cached"}, {"epochs": 10}, {"train_images": 100}, {"selected_on": "a tenth"}):
            head_file(place, loaded, **wrong)
            found = plan(options, loaded, out=tmp_path / "out")
            assert not found.planned and "is not by Table 1's protocol" in found.left[0].reason
            assert next(iter(wrong)).replace("_", " ") in found.left[0].reason
        place.unlink()
    flags = ["--ckpt", str(checkpoint), "--in9", str(tmp_path), "--device", "cpu"]
    assert run_command(reproduce.main, [*flags, "--dry-run"]) == DONE
    assert run_command(reproduce.main, flags) == FAILED
    assert "nothing runs for it: --in9" in capsys.readouterr().out


def test_tables_choose_the_steps_and_what_these_read(vit: Path, tmp_path: Path) -> None:
    """On 46c01a2 Figure 10 alone trained a head by another protocol."""
    found = plan(ReproduceOptions(imagenet=tmp_path, table=("T1", "F10")), small(vit))
    assert set(names_of(found)) == {"knn", "linear", "shuffle"} and not found.missing and not found.unanswered
    for options in (ReproduceOptions(imagenet=tmp_path, table=("F10",)), ReproduceOptions(table=("F10",))):
        assert names_of(plan(options, small(vit))) == ["linear", "shuffle"]
    assert plan(ReproduceOptions(imagenet=tmp_path, table=("T16",)), small(vit)).unanswered == ["--table T16"]
    with pytest.raises(UserError, match="there is no table T99"):
        plan(ReproduceOptions(table=("T99",)), small(vit))


def test_without_data_everything_runs_on_the_sample(vit: Path) -> None:
    found = plan(ReproduceOptions(), small(vit))
    assert set(names_of(found)) == {step.name for step in sample()} and not found.missing and not found.left
    assert sum(one.seconds for one in found.planned) < 1800
    words = reproduce.command(
        next(one for one in found.planned if one.step.name == "occlusion"), ReproduceOptions(), vit, Path("out")
    )
    assert words[words.index("--saliency") + 1] == "itself"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A handful of drawn images in the layouts of all data sets."""
    return drawn_world.write(tmp_path_factory.mktemp("folders") / "data")


def options_of(words: Sequence[str]) -> Any:
    """What a step's command line means to its module. Exits where that does not know a flag."""
    module = importlib.import_module(command_module(words[1]))
    if words[1] == "probes.finetune":
        return module.read_command_line(words[2:])
    (options,) = (kind for name, kind in vars(module).items() if name.endswith("Options"))
    return parse(options, words[2:])


def stated(options: Any, shape: Architecture) -> tuple[str, dict[str, Any]]:
    """The probe, and what its record will say of the protocol as far as the command line decides."""
    module = type(options).__module__
    if module == "transfer.options":
        config = default_config(options, shape, plain=not shape.depths)
        return f"transfer_{options.task}", {"config": config, "key": options.key}
    if module == "probes.finetune.options":
        done = settled(options, shape.embed_dim, 224)
        share = done.names.stem.replace("percent", "%") if done.names else None
        return "finetune", as_values(done) | {"share": share}
    if module == "probes.robustness.suites":
        return "robustness", {
            name: getattr(options, name) for name in ("suite", "key", "same_for_batch", "batch_size", "saliency")
        }
    given = {name: value for name, value in vars(options).items() if value is not None}  # the others follow from the checkpoint
    return module.removeprefix("probes.").partition(".")[0], given


def suite_of(metric: str) -> str:
    beginnings = {"ina": "ina", "mean": "inc", "s": "occlusion", "ns": "occlusion", "random": "occlusion", "grid": "shuffle"}
    return beginnings.get(metric.partition("_")[0], "in9")


def fills(probe: str, protocol: Mapping[str, Any], cell: Cell, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a command's record would be compared in this cell, as far as the command line decides."""
    if probe == "robustness" and protocol["suite"] != suite_of(cell.metric):
        return False
    if probe == "retrieval" and not cell.metric.startswith(protocol["suite"]):
        return False
    needs = protocols.resolved(cell.needs, checkpoint)
    decided = {name: value for name, value in needs.items() if name.removeprefix("protocol.") in protocol}
    where = {name: value for name, value in cell.where.items() if name != "features"}
    meant = cell._replace(where=where).meant(protocol)
    return meant and not protocols.differences((decided,), {"checkpoint": checkpoint, "protocol": protocol})


@pytest.mark.parametrize("arch", outlined.ARCHS)
def test_the_whole_plan_runs_in_an_order_in_which_every_step_finds_what_it_reads_and_fills_each_cell_once(
    arch: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 nine steps came before the head that they need, six cells of Tables 11 and 12 had no step, and Swin's and
    ViT-L's missing steps were not mentioned."""
    loaded, ran = outlined.checkpoint_of(arch, tmp_path / "last.pt"), {}
    loaded.path.write_bytes(b"x")

    def run(words: Sequence[str], place: Path, key: Sequence[str]) -> Ended:
        options = options_of(words)
        for flag in ("data", "ckpt", "names", *(("head",) if words[1] == "probes.robustness" else ())):
            value = getattr(options, flag, None)
            for path in value if isinstance(value, tuple) else [value] if value is not None else []:
                assert Path(path).exists(), (place.name, flag, path)
        if words[1] == "transfer.train":
            config = default_config(options, loaded.backbone.shape, plain=arch.startswith("vit"))
            assert options.config is None and (CONFIGS / options.task / f"{config}.py").is_file()
            if options.task == "coco":
                assert all(part.content["images"] for part in dense.coco_layout.find(options.data, dense.Given()).values())
            else:
                assert all(scenes._pairs(options.data, folder).images for folder in scenes.ADE20K.values())
        if words[1] == "probes.linear":
            options.out.with_name(f"{options.out.stem}_head.safetensors").write_bytes(b"the head")
        ran[place.name] = options
        return Ended(True, "done", 1.0)

    monkeypatch.setattr(reproduce, "load_backbone", lambda *_, **__: loaded)
    monkeypatch.setattr(reproduce, "calibrate", lambda *_: 1000.0)
    monkeypatch.setattr(reproduce, "run_once", run)
    monkeypatch.setattr(reproduce, "finish", lambda out: [])
    monkeypatch.setattr(suites, "_another", lambda asked: (outlined.small_of("vit_small"), asked))
    whole = folders | {"inat18": folders["imagenet"]} | dict(zip(drawn_world.FEW, every_name_of(folders, tmp_path), strict=True))
    flags = drawn_world.flags_of(whole, transfers="imagenet")
    ended = run_command(reproduce.main, ["--ckpt", str(loaded.path), "--out", str(tmp_path / "out"), "--device", "cpu", *flags])
    printed = capsys.readouterr().out
    expected = {step.name: lacking(step, "teacher", loaded) for step in real(arch, few=True)}
    assert ran.keys() == {name for name, reason in expected.items() if not reason}
    for name, reason in expected.items():
        assert not reason or name in printed.partition("left out")[2]
    left = {name for name, reason in expected.items() if reason}
    if "segment_linear" in left:
        with pytest.raises(UserError, match="--head linear is for ViTs"):
            recipe_for("ade20k", "linear", loaded.backbone.shape, plain=False)
    assert left == ({"parts", "segment_linear"} if arch.startswith("swin") else set())
    assert ended == (FAILED if left else DONE) and {"coco", "upernet"} <= ran.keys()
    assert "fewer than a step" not in printed
    assert ("parts" in ran) == arch.startswith("vit")
    checkpoint = {"arch": arch, "patch_size": outlined.ARCHS[arch], "window": 7}
    commands = {name: stated(options, loaded.backbone.shape) for name, options in ran.items()}
    for probe, some in CELLS.items():
        for cell in some:
            row = cell.published(cell.place(checkpoint), checkpoint)
            if row is None or not isinstance(row.cells.get(cell.column), (int, float)):
                continue
            filling = [
                name for name, (its, protocol) in commands.items() if its == probe and fills(its, protocol, cell, checkpoint)
            ]
            assert len(filling) == 1, (probe, cell.tables, cell.column, cell.row, filling)


def every_name_of(folders: Mapping[str, Path], tmp_path: Path) -> list[Path]:
    """Lists of few labels that are long enough for a batch of the recipe."""
    names = "\n".join(path.name for path in folders["imagenet"].glob("train/*/*.png"))
    paths = [tmp_path / name for name in drawn_world.FEW]
    for path in paths:
        path.write_text(names)
    return paths


def test_what_a_checkpoint_cannot_have_is_said_with_the_reason(tmp_path: Path) -> None:
    """On 46c01a2 it was dropped in silence, or failed when its turn came."""
    swin = plan(
        ReproduceOptions(imagenet=tmp_path, ade20k=tmp_path), outlined.checkpoint_of("swin_tiny", tmp_path / "x", head=False)
    )
    reasons = {one.step.name: one.reason for one in swin.left}
    assert "Swin has no [CLS] token" in reasons.pop("parts") and "its head is for ViTs" in reasons.pop("segment_linear")
    assert reasons.keys() == {"cluster", "finetune_1pct", "finetune_10pct"}
    assert all("no projection head" in reason for reason in reasons.values())
    assert {"finetune_1pct_bare", "upernet", "knn"} <= set(names_of(swin)) and not swin.unanswered
    asked = plan(ReproduceOptions(imagenet=tmp_path, table=("F5",)), outlined.checkpoint_of("swin_tiny", tmp_path / "x"))
    assert not asked.planned and asked.unanswered == ["--imagenet", "--table F5"]


def test_a_network_without_a_config_of_its_own_takes_the_recipe_of_its_size(tmp_path: Path) -> None:
    """ViT-T was left out, though `transfer.train` has a recipe for it."""
    loaded = outlined.checkpoint_of("vit_small", tmp_path / "x")._replace(backbone=outlined.small_of("vit_tiny"))
    found = plan(ReproduceOptions(coco=tmp_path, ade20k=tmp_path), loaded)
    assert set(names_of(found)) == {"coco", "upernet", "segment_linear"} and not found.left and not found.unanswered
    for one in found.planned:
        options = options_of(reproduce.command(one, ReproduceOptions(), tmp_path / "x", tmp_path))
        assert options.config is None and default_config(options, loaded.backbone.shape) in SMALLEST


@pytest.mark.parametrize("given", [False, True], ids=["the sample", "data"])
def test_whatever_is_left_out_is_said_and_ends_with_1(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the sample it ended with 0. What no data was given for is not left out."""
    loaded = outlined.checkpoint_of("swin_tiny", tmp_path / "last.pt")
    loaded.path.write_bytes(b"x")
    monkeypatch.setattr(reproduce, "load_backbone", lambda *_, **__: loaded)
    monkeypatch.setattr(reproduce, "calibrate", lambda *_: 1000.0)
    monkeypatch.setattr(reproduce, "run_once", lambda *_: Ended(True, "done", 1.0))
    monkeypatch.setattr(reproduce, "finish", lambda out: [])
    monkeypatch.setattr(reproduce, "Looker", lambda *_, **__: lambda step, data: Look())
    out = ["--ckpt", str(loaded.path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    data = ["--imagenet", str(tmp_path)] if given else []
    assert run_command(reproduce.main, [*out, *data]) == FAILED
    printed = capsys.readouterr().out
    assert "[CLS]" in printed.partition("left out")[2]
    assert f"left out, for the reasons above: {'parts' if given else 'parts occlusion'}" in printed
    assert run_command(reproduce.main, [*out, *data, "--dry-run"]) == DONE
    assert run_command(reproduce.main, [*out, *data, "--table", "T1"]) == DONE


def test_the_student_is_measured_under_names_of_its_own(vit: Path, tmp_path: Path) -> None:
    """On 46c01a2 there was no --key, though the published IN-22K numbers are the student's."""
    lines = {}
    for key in ("teacher", "student"):
        options = ReproduceOptions(imagenet=tmp_path, coco=tmp_path, sketch=tmp_path, key=key)
        found = plan(options, outlined.checkpoint_of("vit_base", tmp_path / "x"), out=tmp_path)
        lines[key] = {one.step.name: reproduce.command(one, options, vit, tmp_path) for one in found.planned}
    assert (
        lines["teacher"].keys() == lines["student"].keys() and {"linear", "coco", "finetune", "sketch"} <= lines["student"].keys()
    )
    for name, words in lines["student"].items():
        assert options_of(words).key == "student" and options_of(lines["teacher"][name]).key == "teacher"
        assert not {str(options_of(words).out)} & {str(options_of(line).out) for line in lines["teacher"].values()}
    assert str(tmp_path / "linear_student_head.safetensors") in lines["student"]["sketch"]
    assert options_of(lines["student"]["linear"]).out == tmp_path / "linear_student.json"


def test_lists_of_few_labels_go_to_every_step_that_learns_from_few(
    vit: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 there was no way to give them, and drawn shares were compared."""
    few = tuple(tmp_path / f"{{{share}}}percent.txt" for share in (1, 10))
    options = ReproduceOptions(imagenet=tmp_path, few=few)
    found = plan(options, outlined.checkpoint_of("vit_small", tmp_path / "x"))
    lists: dict[str, Any] = {}
    for one in found.planned:
        asked = options_of(reproduce.command(one, options, vit, tmp_path))
        lists |= {one.step.name: asked.names} if getattr(asked, "names", None) else {}
    assert lists == {"semi": few} | {
        f"finetune_{n}pct{end}": one for n, one in zip((1, 10), few, strict=True) for end in ("", "_bare")
    }
    flags = ["--ckpt", str(vit), "--device", "cpu", "--dry-run"]
    assert run_command(reproduce.main, [*flags, "--imagenet", str(folders["imagenet"])]) == DONE
    assert "without --few, labels are drawn from the seed" in capsys.readouterr().out
    for wrong, said in (
        (["--imagenet", str(tmp_path), "--few", str(vit)], "--few takes two files"),
        (["--few", str(vit), str(vit)], "goes with --imagenet"),
        (["--imagenet", str(tmp_path), "--few", str(vit), "gone.txt"], "--few: there is no file gone.txt"),
    ):
        assert run_command(reproduce.main, [*flags, *wrong]) == WRONG_COMMAND
        assert said in capsys.readouterr().err


def test_a_head_is_kept_by_linear_and_measured_with_by_the_suites(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real steps, with one epoch on a handful of images. On 46c01a2 all suites trained heads of their own."""
    ckpt = networks.write(tmp_path / "backbone.safetensors", TWO_HEADS)
    ran: list[str] = []

    def run(words: Sequence[str], place: Path, key: Sequence[str]) -> Ended:
        short = ["--mode", "cached", "--epochs", "1", "--lr", "0.1"] if words[1] == "probes.linear" else []
        ran.append(place.name)
        code = run_command(importlib.import_module(command_module(words[1])).main, [*words[2:], *short])
        return Ended(code == DONE, "done" if code == DONE else "failed", 1.0)

    def offline(*_: Any) -> Path:
        raise WorkError("it could not be fetched")

    monkeypatch.setattr(reproduce, "run_once", run)
    monkeypatch.setattr(reproduce, "CALIBRATION", 0.01)
    monkeypatch.setattr(zoo, "fetch", offline)
    flags = ["--ckpt", str(ckpt), "--device", "cpu", "--table", "F9", "F10", "THIRD"]
    data = ["--imagenet", str(folders["imagenet"]), "--sketch", str(folders["sketch"])]
    assert run_command(reproduce.main, [*flags, *data]) == DONE
    out = tmp_path / "reproduced"
    assert ran[0] == "linear" and sorted(ran[1:]) == ["occlusion", "shuffle", "sketch"]
    head = str(out / "linear_head.safetensors")
    for name in ran[1:]:
        assert json.loads((out / f"{name}.json").read_text())["protocol"]["head"] == head
    said = json.loads((out / "occlusion.json").read_text())["protocol"]
    assert said["saliency"] == "itself" and said["same_for_batch"] and said["batch_size"] == 1024
    assert "S_.5 and NS_.5 are not comparable" in capsys.readouterr().out
    assert run_command(reproduce.main, [*flags, *data[2:]]) == FAILED  # that head is no head of ImageNet
    assert "is not by Table 1's protocol" in capsys.readouterr().out.replace("\n", " ")


def test_steps_name_tables_that_exist() -> None:
    known = {name.partition("_")[0] for name in published.tables()}
    for arch in outlined.ARCHS:
        steps = real(arch) + sample()
        assert {table for step in steps for table in step.tables} <= known
        assert {step.needs for step in steps} <= {*reproduce.DATA, "sample"}
        assert set(FEW) == {step.name for step in real(arch, few=True) if "few_1" in " ".join(step.words)}
        names = [step.name for step in real(arch)]
        assert len(set(names)) == len(names)


def test_a_failure_stops_only_what_needs_it_and_what_is_done_stays_done(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 nothing needed anything."""
    writes = "import sys; open(sys.argv[1], 'a').write('x')"
    steps = [
        Step("cheap", ("T1",), "sample", ("-c", writes, "{folder}.txt"), 1),
        Step("broken", ("T1",), "sample", ("-c", "import sys; sys.exit('no room for it')"), 2),
        Step("dear", ("T1",), "sample", ("-c", writes, "{folder}.txt"), 3),
        Step("reads", ("T1",), "sample", ("-c", writes, "{folder}.txt"), 0, after=("broken",)),
        Step("linear", ("T1",), "sample", ("-c", writes, "{folder}.txt"), 4, leaves=(".txt",)),
    ]
    monkeypatch.setattr(reproduce_plan, "sample", lambda: steps)
    monkeypatch.setattr(reproduce, "finish", lambda out: None)
    out = tmp_path / "out"
    flags = ["--ckpt", str(vit), "--out", str(out), "--device", "cpu"]
    assert run_command(reproduce.main, [*flags, "--dry-run"]) == DONE and not out.exists()
    for _ in range(2):
        assert run_command(reproduce.main, flags) == FAILED
        printed = capsys.readouterr().out
        assert "no room for it" in printed and "3 of 5 steps are done" in printed and "reads skipped: it needs broken" in printed
    assert "was done" in printed
    assert [(out / f"{name}.txt").read_text() for name in ("cheap", "dear", "linear")] == ["x", "x", "x"]
    (out / "linear.txt").unlink()  # what others read is made again
    assert run_command(reproduce.main, flags) == FAILED and (out / "linear.txt").read_text() == "x"
    assert not (out / "reads.txt").exists()


def test_another_checkpoint_or_head_is_measured_anew(vit: Path, tmp_path: Path) -> None:
    """On 46c01a2 what was measured with a head stayed done when the head was another."""
    words, options = ("-c", "import sys; open(sys.argv[1], 'a').write('x')", "{folder}.txt"), ReproduceOptions()
    one = Planned(Step("count", (), "sample", words, 1), "", 1.0)
    for key in ("first", "first", "second"):
        reproduce.run_step(one, options, vit, tmp_path, key)
    assert (tmp_path / "count.txt").read_text() == "xx"
    headed = Planned(Step("headed", (), "sample", words, 1, after=("linear",)), "", 1.0)
    for head in (b"1", b"1", b"2"):
        (tmp_path / "linear_head.safetensors").write_bytes(head)
        reproduce.run_step(headed, options, vit, tmp_path, "first")
    assert (tmp_path / "headed.txt").read_text() == "xx"


def test_a_missing_folder_is_one_sentence(vit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(reproduce.main, ["--ckpt", str(vit), "--imagenet", "nowhere"]) == WRONG_COMMAND
    assert "--imagenet: there is no folder nowhere" in capsys.readouterr().err


def test_a_step_of_the_sample_really_runs(vit: Path, tmp_path: Path) -> None:
    """The cheapest one, by its own command line."""
    out = tmp_path / "out"
    options = ReproduceOptions(table=("T5",))
    planned = plan(options, small(vit)).planned
    out.mkdir()
    ended = [reproduce.run_step(one, options, vit, out, "key") for one in planned]
    assert [one.state for one in ended] == ["done"], (out / "cluster.log").read_text()
    assert json.loads((out / "cluster.json").read_text())["probe"] == "cluster" and store.sha256(vit)
