"""A run's text files and records with anything where a number or a word belongs: one sentence that names file and line."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoints.cli import DONE, WRONG_COMMAND, UserError, run_command
from pretrain import curves, train
from pretrain.engine import logs
from pretrain.options.stored import NEVER_TO_CHANGE
from probes import knn, live, tables
from probes.report import __main__ as report
from tests.support import records
from tests.support.commands import SMALL
from tests.support.trainings import trained

ODD: tuple[Any, ...] = (None, "many", [], [1, [2]], {}, {"a": {"b": 1}}, -1, 1e300, 10**40, True, "", "x" * 100_000)
"""What stands in the place of a value."""
LINES = (
    "",
    "null",
    "[]",
    "7",
    '"text"',
    "{",
    "{}",
    '{"step": null}',
    '{"step": "1"}',
    '{"step": -3, "loss": 1}',
    "\x00\x01",
    "[" * 100_000,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a record."""
    root = tmp_path_factory.mktemp("whole")
    run = trained(root / "run", "--steps", 4, "--log-every", 1)
    flags = ["--ckpt", str(run), "--limit", "12", "--workers", "0", "--k", "3", "--cache", str(root / "cache")]
    assert run_command(knn.main, flags) == DONE
    return root / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """Its text files."""
    folder = tmp_path / "run"
    (folder / "results").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "starts.jsonl"):
        (folder / name).write_bytes((whole / name).read_bytes())
    (folder / "results/knn.json").write_bytes(records.only(whole / "results", "knn").read_bytes())
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of nested dicts and lists."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in parts:
        yield from places(one, (*path, key))


def changed(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    found = copy.deepcopy(value)
    inside = found
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = odd
    return found


def without(value: Any, path: tuple[Any, ...]) -> Any:
    found = copy.deepcopy(value)
    inside = found
    for key in path[:-1]:
        inside = inside[key]
    del inside[path[-1]]
    return found


def readers(folder: Path, capsys: pytest.CaptureFixture[str], named: str) -> None:
    """Each command that reads this file of a run works, or says one sentence that names it."""
    out = str(folder / "page")
    commands: list[tuple[Any, list[str]]] = [
        (report.main, [str(folder), "--no-pictures", "--out", f"{out}.html"]),
    ]
    if named == "metrics.jsonl":
        commands.append((curves.main, ["--runs", str(folder), "--out", f"{out}.png"]))
    if named == "knn.json":
        commands.append((tables.main, [str(folder), "--every", "--form", "markdown", "--out", f"{out}.md"]))
    for main, words in commands:
        capsys.readouterr()
        code = run_command(main, words)
        said = capsys.readouterr().err
        assert code in (DONE, WRONG_COMMAND), said
        assert code == DONE or (named in said and said.count("\n") == 1), said
    assert live.page(folder)


@pytest.mark.parametrize("file", ["config.json", "starts.jsonl", "results/knn.json", "metrics.jsonl"])
def test_anything_in_the_place_of_a_value_is_one_sentence(file: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 ended in a traceback in 40 of 225 tries with a run's files, and in 59 of 171 with records."""
    whole_text = (run / file).read_text()
    lines = whole_text.splitlines() if file.endswith("l") else [whole_text]
    lines.sort(key=len, reverse=True)  # the one that says most
    content = json.loads(lines[0])
    every, tried = 19 if file == "config.json" else 7, 0
    for place, path in enumerate(places(content)):
        for number, odd in enumerate(ODD):
            if (place + number) % every:  # each place with some of the values, each value in several places
                continue
            lines[0] = json.dumps(changed(content, path, odd))
            (run / file).write_text("\n".join(lines) + "\n")
            readers(run, capsys, Path(file).name)
            tried += 1
        if place % every == 1:
            lines[0] = json.dumps(without(content, path))
            (run / file).write_text("\n".join(lines) + "\n")
            readers(run, capsys, Path(file).name)
    assert tried >= 15


@pytest.mark.parametrize("file", ["config.json", "starts.jsonl", "results/knn.json", "metrics.jsonl"])
def test_lines_that_are_none_are_one_sentence(file: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = (run / file).read_text().splitlines()
    for line in LINES:
        (run / file).write_text("\n".join([first, line, *rest] if file.endswith("l") else [line]) + "\n")
        readers(run, capsys, Path(file).name)


def test_a_line_is_named_by_its_number(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2] = '{"step": 3, "loss": "low"}'
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl line 3: loss is 'low', not a number"):
        logs.sampled(run / "metrics.jsonl")
    assert [line.number for line in logs.sampled(run / "metrics.jsonl", lenient=True)] == [
        number for number in range(1, len(lines) + 1) if number != 3
    ]


def test_older_logs_with_nan_and_records_with_null_are_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": NaN, "rank": null, "bad_image": "a.png", "reason": "cut off", "number": 3}\n')
    record = json.loads((run / "results/knn.json").read_text())
    record["metrics"] |= {"top5": None, "top1_k3": math.nan}
    for name in ("versions", "seconds", "device", "table"):
        del record[name]
    (run / "results/knn.json").write_text(json.dumps(record))
    readers(run, capsys, "nothing")
    assert run_command(report.main, [str(run), "--no-pictures"]) == DONE


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_training_goes_on_whatever_its_log_holds(
    line: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 ended in a traceback, the checkpoint being whole."""
    folder = tmp_path / "run"
    flags = [*SMALL, "--out", str(folder), "--log-every", "1", "--report", "false", "--knn-every", "0"]
    folder.mkdir()
    for name in ("config.json", "starts.jsonl", "last.pt"):
        (folder / name).write_bytes((whole / name).read_bytes())
    log = (whole / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*log[:2], line, *log[2:]]) + "\n")
    more = ["--steps", "6", "--allow-config-change", "true"]
    assert run_command(train.main, [*flags, *more]) == DONE
    said = capsys.readouterr().err
    assert "Traceback" not in said and (not line.strip() or "of" in said)
    steps = [one.value["step"] for one in logs.sampled(folder / "metrics.jsonl")]
    assert steps == sorted(steps) and {1, 2, 3, 4, 5, 6} <= set(steps)


CHANGES = dict(
    words.split()
    for words in (
        "arch vit_small;patch_size 16;window 14;width 128;depth 3;channels 1;out_dim 64;patch_out_dim 64;shared_head true;"
        "shared_head_teacher false;head_hidden_dim 48;head_bottleneck_dim 24;norm_last_layer false;global_crops_size 48;"
        "targets hard;optimizer sgd;lr 1e-3;seed 7;drop_path 0.3;batch_size_per_gpu 8;accumulate 2;local_crops_number 3;"
        "precision bf16;init whiten;momentum_teacher 0.9;pred_shape rand;epochs 9;centre_patches false;masked_crops one;"
        "separate_layers 1;use_masked_im_modeling false;freeze_last_layer 0;teacher_temp 0.05;compile off;data sample:24"
    ).split(";")
)
"""An option and another value than the run's."""


@pytest.mark.parametrize("option", CHANGES)
def test_any_option_that_changes_is_taken_or_refused_by_name(
    option: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 ended in eleven different tracebacks: width, depth, heads, optimizer, patch size, channels."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "metrics.jsonl", "last.pt"):
        (folder / name).write_bytes((whole / name).read_bytes())
    before = (folder / "last.pt").read_bytes()
    flags = [*SMALL, "--out", str(folder), "--log-every", "1", "--report", "false", "--knn-every", "0", "--steps", "5"]
    code = run_command(train.main, [*flags, "--allow-config-change", "true", "--" + option.replace("_", "-"), CHANGES[option]])
    said = capsys.readouterr()
    if option in NEVER_TO_CHANGE:
        assert code == WRONG_COMMAND and said.err.count("\n") == 1
        assert f"--{option.replace('_', '-')}" in said.err, said.err
        assert (folder / "last.pt").read_bytes() == before
    else:
        assert code == DONE, said.err


def test_a_record_of_a_damaged_checkpoint_field_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "results/knn.json").read_text())
    record["checkpoint"]["path"] = 7
    (run / "results/knn.json").write_text(json.dumps(record))
    assert run_command(tables.main, [str(run)]) == WRONG_COMMAND
    assert "knn.json: checkpoint: path is 7, not a text" in capsys.readouterr().err
