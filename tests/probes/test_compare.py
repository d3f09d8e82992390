"""Backbones, data sets and probes as one table; the library's three functions. 46c01a2 had neither."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probes
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, UserError, parse, run_command
from probes import cluster, knn, logistic
from probes.compare import __main__ as command
from probes.compare import cells, costs, page, plan, suite
from probes.compare import table as compare_table
from probes.compare.cells import Done
from probes.compare.plan import CompareOptions
from probes.compare.table import Column, Comparison, Entry
from probes.features import cache
from probes.linear.protocol import LinearOptions
from probes.retrieval.tasks import RetrievalOptions
from probes.segment.options import SegmentOptions
from probes.shared.headlines import interval
from tests.support import networks
from tests.support.commands import ROOT
from tests.support.pictures import noise


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints and two data sets."""
    root = tmp_path_factory.mktemp("compare")
    for seed, name in enumerate("ab"):
        networks.write(root / f"{name}.safetensors", seed=seed)
    for name, size in (("one", 32), ("two", 40)):
        for number, image in enumerate(noise(48, size)):
            path = root / name / ("train", "val")[number // 24] / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


def flags(root: Path, *more: str, models: str = "ab") -> list[str]:
    words = ["--ckpt", *(str(root / f"{name}.safetensors") for name in models), "--workers", "0", "--device", "cpu"]
    return [*words, "--crop", "32", "--resize", "32", "--cache", str(root / "cache"), *more]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "LEAST", 0.01)
    monkeypatch.setitem(plan.USUAL, "linear", {**plan.USUAL["linear"], "epochs": 2, "lr": [0.1]})


def test_everything_is_measured_once_and_shown_in_every_form(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = cache._forward

    def counted(*given: Any) -> Any:
        seen.append(len(given[1]))
        return forward(*given)

    monkeypatch.setattr(cache, "_forward", counted)
    words = flags(root, "--data", str(root / "one"), str(root / "two"), "--seeds", "2", "--out", str(tmp_path / "out"))
    assert run_command(command.main, words) == DONE
    said = capsys.readouterr()
    assert sum(seen) == 2 * 2 * 48, "features of each backbone and data set once, for four probes and two seeds"
    assert "[24 of 24]" in said.err and "left)" in said.err
    assert "segment on" in said.out and "it needs a folder in ADE20K's layout" in said.out
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/records").glob("*.json")]
    assert len(records) == 2 * 2 * (2 + 2 * 2)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/table.csv").read_text())))
    assert len(rows) == 2 * 2 * 4 and {row["model"] for row in rows} == {"a.safetensors", "b.safetensors"}
    one = next(row for row in rows if row["probe"] == "knn" and row["model"].startswith("a") and row["data"].endswith("one"))
    (mine,) = [
        record["metrics"]["top1"]
        for record in records
        if record["probe"] == "knn" and "a.s" in record["checkpoint"]["path"] and "one" in record["data"]["val"]
    ]
    assert float(one["value"]) == mine and float(one["low"]) <= mine <= float(one["high"])
    assert int(one["parameters"]) == sum(weight.numel() for weight in networks.backbone().parameters())
    for name in ("table.md", "table.tex", "index.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "a.safetensors" in text and "mean rank" in text
    assert "<svg" in (tmp_path / "out/index.html").read_text()

    monkeypatch.setattr(cells, "measure", None)  # again: nothing is measured
    monkeypatch.setattr(costs, "measured", None)
    assert run_command(command.main, words) == DONE and "24 of 24 measurements were there already" in capsys.readouterr().err


def test_what_fails_stops_nothing_else_and_is_said(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "broken.safetensors").write_text("nothing")
    words = flags(root, "--data", str(root / "one"), "--probes", "knn", "logistic", "--out", str(tmp_path), models="ab")
    words[1:1] = [str(root / "broken.safetensors")]
    assert run_command(command.main, words) == FAILED
    said = capsys.readouterr().out
    assert said.count("missing: ") == 2 and "missing: knn of" in said and "broken.safetensors" in said
    assert len(list((tmp_path / "records").iterdir())) == 4 and len(list((tmp_path / "logs").iterdir())) == 6


def test_a_bug_of_one_probe_is_one_sentence_and_its_traceback_lies_in_the_log(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing: dict[str, int] = {}
    monkeypatch.setitem(cells.MAINS, "knn", lambda words: nothing["nothing"])
    words = flags(root, "--probes", "knn", "--data", str(root / "one"), "--out", str(tmp_path))
    found = command.compare(parse(CompareOptions, words))
    assert all("failed: KeyError: 'nothing'" in sentence for sentence in found.failed) and len(found.failed) == 2
    assert all("Traceback" in path.read_text() for path in (tmp_path / "logs").iterdir())


def test_the_records_of_ten_comparisons_all_exist(root: Path, tmp_path: Path) -> None:
    for number in range(10):
        more = ["--data", str(root / "one"), "--probes", "knn", "--limit", str(14 + number), "--out", str(tmp_path)]
        assert run_command(command.main, flags(root, *more)) == DONE
    found = [json.loads(path.read_text()) for path in (tmp_path / "records").iterdir()]
    assert len({(one["checkpoint"]["path"], one["data"]["val_images"]) for one in found}) == len(found) == 20


def test_a_changed_checkpoint_or_image_is_measured_again(root: Path, tmp_path: Path) -> None:
    networks.write(tmp_path / "c.safetensors", seed=3)
    options = CompareOptions(ckpt=(str(tmp_path / "c.safetensors"),), data=("sample",), probes=("knn",))
    before = plan.make(options).cells[0].name
    networks.write(tmp_path / "c.safetensors", seed=4)
    plan.checkpoint_stamp.cache_clear()
    assert plan.make(options).cells[0].name != before
    own = tmp_path / "own.py"
    own.write_text("a = 1")
    prefixed = [f"timm:resnet18@{own}", f"python:{own}:build", f"hf:{tmp_path}"]
    stamps = [plan.checkpoint_stamp(one) for one in prefixed]
    own.write_text("a = 2")
    plan.checkpoint_stamp.cache_clear()
    assert all(plan.checkpoint_stamp(one) != stamp for one, stamp in zip(prefixed, stamps, strict=True))
    stamp = plan.data_stamp(str(root / "two"))
    image = next((root / "two").rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"\0")
    plan.data_stamp.cache_clear()
    assert plan.data_stamp(str(root / "two")) != stamp


def test_each_cell_s_words_are_a_command_line_of_its_probe() -> None:
    classes: dict[str, type] = {
        "knn": knn.KnnOptions,
        "linear": LinearOptions,
        "logistic": logistic.LogisticOptions,
        "cluster": cluster.ClusterOptions,
        "retrieval": RetrievalOptions,
        "segment": SegmentOptions,
    }
    for options in (
        CompareOptions(ckpt=("timm:x",), device="cpu", workers=0, cache=Path("c"), limit=9, seeds=2),
        CompareOptions(ckpt=("timm:x",), suite="sample"),
        CompareOptions(ckpt=("timm:x",), view="own", label_column="kind", task="classes", group="site"),
    ):
        found = plan.make(options)
        assert {cell.probe for cell in found.cells} == set(classes)
        for cell in found.cells:
            parsed: Any = parse(classes[cell.probe], cell.words)
            assert str(parsed.ckpt) == "timm:x" and parsed.data == "sample" and parsed.seed == cell.seed
            if cell.probe not in ("retrieval", "segment") and parsed.view == "own":
                assert parsed.crop is None
                continue
            side = parsed.size if cell.probe in ("retrieval", "segment") else parsed.crop
            assert side == found.protocol.crop


def test_a_suite_s_data_lie_below_its_folder_and_its_options_name_no_file(tmp_path: Path) -> None:
    (tmp_path / "suite" / "mine").mkdir(parents=True)
    file = tmp_path / "suite" / "s.yaml"
    file.write_text("data: [sample, mine]\nprobes: {knn: {k: [1, 5]}, linear:}\nprotocol: {crop: 64, seeds: 2}\n")
    found = suite.read(str(file))
    assert found.data == ("sample", str((tmp_path / "suite/mine").resolve())) and dict(found.protocol) == {"crop": 64, "seeds": 2}
    assert suite.words(found.probes["knn"]) == ["--k", "1", "5"] and not found.probes["linear"]
    (tmp_path / "other").mkdir()
    (tmp_path / "suite" / "link").symlink_to(tmp_path / "other")
    wrong = {
        "data: [../other]": "does not lie in",
        f"data: [{tmp_path}/other]": "does not lie in",
        "data: [link]": "is nothing below",
        "data: ['hf:owner/name']": "others with --data",
        "data: ['pipe:cat x']": "others with --data",
        "probes: {knn: {out: x}}": "not 'out'",
        "probes: {retrieval: {whiten: x}}": "not 'whiten'",
        "probes: {knn: {k: [1, --out]}}": "neither a number nor a word",
        "probes: {zero: {}}": "no probe 'zero'",
        "protocol: {device: cuda}": "protocol has no 'device'",
        "protocol: {crop: -1}": "crop",
        "more: 1": "no part 'more'",
        "[1": "cannot be read",
        "!!python/object/apply:os.system [ls]": "cannot be read",
    }
    for text, said in wrong.items():
        file.write_text(text)
        with pytest.raises(UserError, match=said.replace("[", r"\[")):
            suite.read(str(file))


def test_wrong_command_lines_are_one_sentence(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = str(root / "one")
    cases = [
        (["--ckpt", one, one], "names a checkpoint twice"),
        (["--ckpt", one, "--data", one, "--probes", "segment"], "no probe fits"),
        (["--ckpt", one, "--crop", "64", "--resize", "32"], "must be at most --resize"),
        (["--ckpt", one, "--view", "own", "--crop", "64"], "leave --crop and --resize out"),
        (["--ckpt", one, str(root / "gone.pth")], "gone.pth is not there"),
        (["--ckpt", one, "--data", one, str(root / "tow")], "tow is not there"),
        (["--ckpt", one, "--suite", "nothing"], "or one of those that are shipped (sample)"),
    ]
    for words, said in cases:
        assert run_command(command.main, [*words, "--out", str(tmp_path / "new")]) == WRONG_COMMAND
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not (tmp_path / "new").exists()


def test_the_interval_of_an_accuracy_is_the_bootstrap_s() -> None:
    """By drawing: 20,000 samples of the test images, with replacement."""
    right = np.arange(300) < 201
    generator = np.random.default_rng(0)
    drawn = 100 * generator.choice(right, (20_000, 300)).mean(axis=1)
    low, high = interval({"metrics": {}, "data": {"val_images": 300}}, "top1", 67.0)
    assert (low, high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.4)
    own = {"metrics": {}, "intervals": {"top1": [1.0, 2.0]}, "data": {"val_images": 300}}
    assert interval(own, "top1", 67.0) == (1.0, 2.0)
    assert interval({"metrics": {}, "data": {"val_images": 300}}, "miou", 67.0) == (None, None)


def test_ranks_are_of_columns_that_all_have_and_equals_share_them() -> None:
    def record(value: float) -> dict[str, Any]:
        return {"metrics": {"top1": value}, "data": {"val_images": 100}}

    def cell(model: str, data: str) -> plan.Cell:
        return plan.Cell(model, data, "knn", 0, (), "")

    done = [Done(cell(model, "x"), record(value)) for model, value in (("a", 50.0), ("b", 60.0), ("c", 60.0))]
    done += [Done(cell("a", "y"), record(90.0)), Done(cell("b", "y"), None, "failed: why"), Done(cell("c", "y"), record(1.0))]
    done.append(Done(cell("d", "x"), None, "error: there is no such file"))
    found = compare_table.build(["a", "b", "c", "d"], done, {}, [], "about")
    ranks = found.ranks()
    assert np.isnan(ranks.pop("d")) and ranks == {"a": 3.0, "b": 1.5, "c": 1.5} and found.best() == "b"
    assert found.failed[1:] == ["knn of d on x: error: there is no such file"] and found.failed[:1] == [
        "knn of b on y: failed: why"
    ]
    assert found.entries["a", Column("y", "knn", "k-NN, top-1 %")].rank == 1.0


def test_spread_is_that_of_the_seeds() -> None:
    records = [{"metrics": {"miou": value}, "data": {}} for value in (10.0, 12.0, 17.0)]
    found = compare_table.entry(records, "miou")
    assert found.value == 13.0 and found.spread == pytest.approx(np.std([10, 12, 17], ddof=1)) and found.low is None


def test_names_of_others_do_no_harm_in_any_form() -> None:
    odd = 'x"><script>alert(1)</script>|\\input{x}'
    column = Column(odd, "knn", "k-NN")
    found = Comparison([odd], [column], {(odd, column): Entry(1.0, 0.5, 1.5, None, 1, 9, 1.0)}, {}, [odd], [], "about")
    assert "<script" not in page.page(found) and "<script" not in found.markdown()
    assert not any("\\input" in line for line in found.latex().splitlines() if not line.startswith("%"))


def test_three_functions_are_the_library(root: Path, tmp_path: Path) -> None:
    backbone = probes.load(str(root / "a.safetensors"))
    assert not backbone.training and not any(weight.requires_grad for weight in backbone.parameters())
    found = probes.embed(backbone, root / "one", part="val", crop=32, resize=32, workers=0, cache=root / "cache")
    again = probes.embed(root / "a.safetensors", root / "one", part="val", crop=32, resize=32, workers=0, cache=root / "cache")
    assert found.features.shape == (24, 64) and np.array_equal(found.features, again.features)
    assert found.classes == ["a", "b"] and found.labels is not None and len(found.names) == 24
    table = probes.compare(
        [root / "a.safetensors", root / "b.safetensors"],
        [root / "one"],
        ["knn"],
        out=tmp_path,
        crop=32,
        resize=32,
        workers=0,
        cache=root / "cache",
    )
    assert {row["model"] for row in table.rows()} == {"a.safetensors", "b.safetensors"} and not table.failed
    assert callable(probes.embed) and callable(probes.compare), "the modules of these names have been imported"
    with pytest.raises(UserError, match="--limit must be 1 or more"):
        probes.compare([root / "a.safetensors"], limit=0)


def test_importing_probes_is_light_and_torch_hub_finds_the_checkpoints(root: Path) -> None:
    """In a process of its own, whose modules are counted."""
    code = f"""
import sys, probes
heavy = [name for name in ("timm", "matplotlib", "sklearn", "pyarrow", "faiss") if name in sys.modules]
assert not heavy, heavy
import torch
sys.path.insert(0, {str(ROOT)!r})
import hubconf
assert callable(hubconf.ibot_vits16) and "timm" in hubconf.dependencies
backbone = torch.hub.load({str(ROOT)!r}, "load", {str(root / "a.safetensors")!r}, source="local")
print(backbone(torch.zeros(1, 3, 32, 32)).shape[-1])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.split()[-1] == "64", done.stderr
