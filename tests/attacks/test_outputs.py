"""Hostile names and texts through everything that prints or writes a page, a table, a picture or a command.

On 46c01a2 each text came out as it was unless a docstring says otherwise: escape sequences reached the terminal, `[/b]` was
markup (a MarkupError in progress bars, in the lines of a training and in the table of a fine-tuning), bytes that are no text a
UnicodeEncodeError, a formula was computed, `$(id)` stood ready to be typed. Seen there by these tests, with its names in place of
ours.
"""

import ast
import csv
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import types
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints import inspect
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, UserError, WorkError, run_command
from checkpoints.published import Contents
from pretrain import curves
from pretrain.engine import trackers
from pretrain.engine.bad_images import Bad
from pretrain.engine.console import Screen
from pretrain.engine.run_folder import RunFolder
from pretrain.images.source import Files
from pretrain.options.stored import from_values
from pretrain.recipes.ablations import TABLES
from pretrain.run import report_process
from pretrain.run.checkpoint import Run
from pretrain.run.progress import summary
from pretrain.setup.plan import plan_of
from probes import tables
from probes.ablate import __main__ as ablate
from probes.ablate.plan import Job
from probes.finetune import checkpoint
from probes.finetune import report as finetune_report
from probes.finetune.data import Data
from probes.finetune.subsets import Share
from probes.paper import protocols
from probes.report import __main__ as report
from probes.report import commands
from probes.reproduce import __main__ as reproduce
from probes.reproduce import plan as reproduce_plan
from probes.reproduce.steps import Step
from probes.shared import confusion_picture, console
from probes.visualize import gallery, tsne
from probes.visualize.gallery import Shown
from tests.support.commands import ROOT, program
from tests.support.networks import VIT, write_moved
from transfer.exports import card

UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
TERMINAL = "\x1b[31mred\x1b[0m\x1b]0;title\x07 a\rb\bc \x9b31m\x85 \u202egnp.exe\u2066 \u2028\nerror: forged [/b] [bold] :smile:"
MARKUP = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"' &lt; ![x](http://evil.example/x.png) [y](javascript:a) | `a` **b**"
)
SHELL = "$(id) `id` ; touch PWNED 'single' \"double\" \\ * ~"
FORMULAS = ["=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "a;=1+1", " =1", "\uff1d1"]
LATEX = "\\input{/etc/passwd} \\write18{id} ^^5cinput{x} }{ % # & ~ $"
FORMULA_OF_A_PICTURE = "$\\bad$ _x"
UNDECODABLE = b"caf\xe9".decode("utf-8", "surrogateescape")
ORDINARY = "é 漢字 😀 a_b [one] 50% x~y, it's-3.5 (plain) #1"
ALL = " ".join([TERMINAL, MARKUP, SHELL, *FORMULAS, LATEX, FORMULA_OF_A_PICTURE, UNDECODABLE, ORDINARY])
NAME = ALL.replace("/", "|")[:120].encode("utf-8", "surrogateescape")[:200].decode("utf-8", "surrogateescape")
"""The same as a file's name."""


ROW = TABLES["T9"].rows[0]


def seen_as_text(printed: str, *words: str) -> None:
    """Nothing unseen reaches the screen, no line is forged, and the text itself is there."""
    assert not [hex(ord(one)) for one in printed if unicodedata.category(one) in UNSEEN and one != "\n"]
    assert not any(line.startswith("error: forged") for line in printed.splitlines())
    for word in ("\\x1b[31mred", "[bold] :smile:", *words):
        assert word in " ".join(printed.split())


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "3000")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Commands guard their process; the tests' process goes on as it was."""
    factory, warning, hook = logging.getLogRecordFactory(), warnings.formatwarning, sys.excepthook
    yield
    logging.setLogRecordFactory(factory)
    warnings.formatwarning, sys.excepthook = warning, hook


# What is printed.


def raising(error: Exception) -> Callable[[Any], None]:
    def main(arguments: Any) -> None:
        raise error

    return main


@pytest.mark.parametrize("error", [UserError, WorkError])
def test_errors(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(error(f"there is no file {ALL}")), []) in (FAILED, WRONG_COMMAND)
    printed = capsys.readouterr().err
    seen_as_text(printed, ORDINARY, "caf\\xe9")
    assert printed.count("\n") == 1


def test_what_libraries_log_and_warn_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine, timm and torch name classes and files."""

    def main(arguments: Any) -> None:
        handler = logging.StreamHandler()
        logger = logging.getLogger("foreign")
        logger.addHandler(handler)
        logger.warning("class %s", TERMINAL)
        logger.removeHandler(handler)
        monkeypatch.setattr(warnings, "showwarning", lambda *about: sys.stderr.write(warnings.formatwarning(*about[:4])))
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "_showwarnmsg_impl", lambda about: sys.stderr.write(formatted(about)), raising=False)
            warnings.warn(TERMINAL, stacklevel=1)

    def formatted(about: Any) -> str:
        return warnings.formatwarning(about.message, about.category, about.filename, about.lineno)

    assert run_command(main, []) == DONE
    printed = capsys.readouterr().err.replace("\nerror: forged", " (a line of its own)")
    seen_as_text(printed)
    assert printed.count("\\x1b[31mred") == 2


def shown() -> None:
    console.say(ALL)
    console.table(ALL, [ALL, "b"], [[ALL, "1"], [ORDINARY, "2"]])


def steps() -> None:
    assert list(console.steps(ALL, [1, 2, 3], 3)) == [1, 2, 3]


def lines_of_a_training() -> None:
    folder = Path("run")
    folder.mkdir()
    with Screen(RunFolder(folder, {}, 1, 1.0), 3) as screen:
        screen.say(ALL)
        screen.bad(1, [Bad(1, ALL, ALL)])
        screen.show(3, ALL)


def end_of_a_training() -> None:
    run: Any = object.__new__(Run)
    run.folder, run.plan = Path(NAME), plan_of(from_values(data=ALL))
    run.folder.mkdir()
    (run.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "bad_image": ALL}) + "\n")
    summary(run, 1.0)


def inspected() -> None:
    path = Path(f"{NAME}.safetensors")
    write_moved(path)
    assert run_command(inspect.main, [str(path)]) == DONE


def fine_tuned() -> None:
    images = Files(ALL, [Path("a.png")], None)
    tested = [checkpoint.Tested(1, 50.0, 60.0)]
    finetune_report.show([finetune_report.Measured(0.1, tested, {})], Data(images, images, ["a"], Share(None, {})), 1.0)


def plan_of_an_ablation() -> None:
    ablate.show_commands([Job(ROW, True, ("-m", "x", "--data", ALL), {})])


PRINTERS = [shown, steps, lines_of_a_training, end_of_a_training, inspected, fine_tuned, plan_of_an_ablation]


@pytest.mark.parametrize("terminal", [False, True], ids=["piped", "terminal"])
@pytest.mark.parametrize("printer", PRINTERS)
def test_the_screen(
    printer: Callable[[], None],
    terminal: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "LINES_EVERY", -1.0)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    printer()
    printed = "".join(capsys.readouterr())
    own = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", printed)  # rich's colours and movements; those of the text are no longer any
    assert terminal or own == printed
    seen_as_text(own)


# What is typed.


def words_of(command: str, folder: Path) -> list[str]:
    """A printed command's words, as bash reads them."""
    assert subprocess.run(["bash", "-n", "-c", command], check=False, capture_output=True).returncode == 0
    found = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], cwd=folder, capture_output=True, check=True).stdout
    assert not list(folder.glob("PWNED"))
    return [os.fsdecode(word) for word in found.split(b"\0")[:-1]]


HOSTILE_WORDS = [SHELL, "a b", ORDINARY, TERMINAL, UNDECODABLE, LATEX, "-x", "!!", "", MARKUP]


@pytest.mark.parametrize("data", HOSTILE_WORDS)
def test_the_next_command_after_a_training(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 printed the folder unquoted: `$(id)` stood there, `a b` was two words. (`-x`, `!!` and `x` need no quotes.)

    `--data 'a b'` has no labels here, so that only the folder is foreign.
    """
    name = data.replace("/", "|") or "x"
    run: Any = object.__new__(Run)
    run.folder, run.plan = tmp_path / "runs" / name, plan_of(from_values(data="sample"))
    run.folder.mkdir(parents=True)
    summary(run, 1.0)
    (command,) = re.findall("next: (.*)", capsys.readouterr().out)
    assert words_of(command, tmp_path)[1:] == ["-m", "probes.knn", "--ckpt", str(run.folder), "--baselines"]


@pytest.mark.parametrize("data", HOSTILE_WORDS)
def test_commands_of_plans_reports_and_hints(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 reproduce's and the page's words stood unquoted: typed, the page's ran `touch PWNED`.

    ablate's and the report's were quoted, but with raw escape sequences.
    """
    monkeypatch.chdir(tmp_path)
    wanted = ["python", "-m", "x", "--data", data]
    ablate.show_commands([Job(ROW, True, ("-m", "x", "--data", data), {})])
    found = [capsys.readouterr().out.removesuffix("\n")]
    assert words_of(found[0], tmp_path) == wanted
    with monkeypatch.context() as patched:
        patched.setattr(report_process.subprocess, "run", raising_os_error)
        found += re.findall(r"\): (.*) tries again", report_process.write(Path(data or "x"), data))
    assert words_of(found[1], tmp_path) == ["python", "-m", "probes.report", str(Path(data or "x")), "--data", data]
    record: dict[str, Any] = {"probe": "knn", "data": {"root": data}, "checkpoint": {"path": data}, "protocol": {}}
    found.append(commands.measuring(record))
    assert words_of(found[2], tmp_path)[3:5] == ["--ckpt", str(Path(data))]
    unknown = commands.measuring(record | {"probe": data or "x"})
    assert unknown.startswith("# this project has no command for ") and not set(unknown) & set("\n\r\x1b\x9b\u202e")
    for command in found:
        assert not [one for one in command if unicodedata.category(one) in UNSEEN]
        if "$'" not in command:
            assert shlex.split(command) == words_of(command, tmp_path)


def raising_os_error(*words: Any, **how: Any) -> None:
    raise OSError("no process")


def test_the_commands_of_reproduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    out, ckpt = tmp_path / "my $(touch PWNED) out", write_moved(tmp_path / "b a;c.safetensors")
    words = ("-c", "0", "--ckpt", "{ckpt}", "--out", "{out}")
    monkeypatch.setattr(reproduce_plan, "sample", lambda: [Step("one", ("T1",), "sample", words, 1)])
    monkeypatch.setattr(reproduce, "calibrate", lambda *_: 1000.0)
    monkeypatch.setattr(reproduce, "finish", lambda out: [])
    assert run_command(reproduce.main, ["--ckpt", str(ckpt), "--out", str(out), "--device", "cpu"]) == DONE
    (command,) = re.findall("s: (python .*)", capsys.readouterr().out)
    assert words_of(command, tmp_path) == ["python", "-c", "0", "--ckpt", str(ckpt), "--out", str(out / "one.json")]


def test_reproduce_finishes_in_a_folder_with_spaces(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2: no tables ("Unrecognized options"), no page, and exit code 0."""
    out = tmp_path / "my results; touch PWNED"
    out.mkdir()
    record(out / "knn.json", "imagenet/val")
    unwritten = reproduce.finish(out)
    assert unwritten == [] and (out / "tables.md").is_file() and (out / "report.html").is_file()


def test_tables_that_reproduce_could_not_write_are_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On 46c01a2 what became of the tables was not looked at (the test before); this one was not run there to its end."""
    ckpt = write_moved(tmp_path / "b.safetensors")
    monkeypatch.setattr(reproduce_plan, "sample", lambda: [Step("one", ("T1",), "sample", ("-c", "0"), 1)])
    monkeypatch.setattr(reproduce, "calibrate", lambda *_: 1000.0)
    assert run_command(reproduce.main, ["--ckpt", str(ckpt), "--out", str(tmp_path / "out"), "--device", "cpu"]) == FAILED
    assert "not written" in capfd.readouterr().out


# What is opened by other programs.


def record(path: Path, data: str, **more: Any) -> None:
    protocol = {name.removeprefix("protocol."): value for name, value in protocols.KNN.items()}  # so that there is a difference
    content = {"schema": 1, "probe": "knn", "table": "", "protocol": protocol, "metrics": {"top1": 74.9}}
    content |= {"seconds": 1, "device": "cpu"}
    content |= {"checkpoint": {"path": f"runs/{data}", "sha256": None, "arch": "vit_small", "patch_size": 16, "window": None}}
    content |= {"data": {"val": data, "val_images": 50_000, "train_images": 1_281_167}, "versions": {}} | more
    path.write_text(json.dumps(content))


def table_of(form: str, data: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    record(folder / "knn.json", data)
    assert run_command(tables.main, [str(folder), "--form", form, "--out", str(folder / "table")]) == DONE
    assert run_command(tables.main, [str(folder), "--form", form]) == DONE
    capsys.readouterr()
    return (folder / "table").read_bytes().decode("utf-8")


ACTIVE = re.compile(r"<[a-zA-Z/!]|(?<!\\)\]\(|(?<!\\)`|(?<![:\\]):(?=//)|(?<!\\)\*")
"""What Markdown would take for a tag, a link, code, an address, a stress."""


def test_tables_as_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table_of("markdown", ALL, tmp_path, capsys)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}) == 1
    (row,) = (row for row in rows if "ours: " in row)
    assert not ACTIVE.search(row)
    assert "a_b [one] 50%" in row
    assert "it's-3.5 (plain) #1" in row
    assert "error: forged" in row


def by_class(count: int, classes: list[str]) -> str:
    """The table of so many images, each of a class of its own and recognised."""
    labels = np.arange(count)
    return finetune_report.by_class(labels, labels, labels, classes)


def test_tables_as_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for formula in FORMULAS:
        for first, *_ in csv.reader(io.StringIO(by_class(1, [formula]))):
            assert not re.match(r"\s*[=+\-@\uff1d]", first) and not re.search(r";\s*[=+\-@]", first)
    text = table_of("csv", ALL, tmp_path, capsys)
    head, *rows = list(csv.reader(io.StringIO(text)))[1:]
    assert {len(row) for row in rows} == {len(head)} and not re.search("[\x00-\x09\x0b-\x1f]", text)
    difference = rows[-1][head.index("knn")]
    assert difference == "-0.3 (within)" and rows[-2][head.index("knn")] == "74.9"  # as they were
    text = by_class(4, ["-5", "+1.5e3", "-0.5", "-x"])
    assert [row[0] for row in csv.reader(io.StringIO(text))][1:] == ["-5", "+1.5e3", "-0.5", "'-x"]


OUR_LATEX = {r"\begin", r"\end", r"\toprule", r"\midrule", r"\bottomrule", r"\\", r"\&", r"\%", r"\_", r"\#", r"\$", r"\{", r"\}"}
OUR_LATEX |= {r"\textbackslash", r"\textasciitilde", r"\textasciicircum"}


@pytest.mark.parametrize("data", [ALL, LATEX, "x\n\\input{a}"])
def test_tables_as_latex(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = table_of("latex", data, tmp_path, capsys)
    assert set(re.findall(r"\\(?:[a-zA-Z]+|.)", text)) <= OUR_LATEX and "^^" not in text
    body = [line for line in text.splitlines() if not line.startswith("% ")]
    assert not any(re.search(r"(?<!\\)%", line) for line in body)
    bare = re.sub(r"\\[{}\\]", "", text)
    depth = np.cumsum([{"{": 1, "}": -1}.get(one, 0) for one in bare])
    assert depth.min() >= 0 and depth[-1] == 0
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body if line.endswith(r"\\")}) == 1


def test_a_row_of_latex_that_begins_with_a_bracket() -> None:
    r"""`\\` and `\toprule` take what follows in brackets for a length."""
    text = tables.as_latex("title", [["[2in] head", "b", "c"], ["[9999in]", "b", "c"], ["*", "b", "c"]])
    assert not re.search(r"(\\\\|rule)\s*[\[*]", text)


class Reader(HTMLParser):
    """The tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 these names were a traceback: commands were made of words without quotes and parsed again."""
    folder = tmp_path / NAME
    folder.mkdir()
    config = {"recipe": ALL, "arch": ALL, "patch_size": 8, "data": ALL, "out_dim": 32, "batch_size_per_gpu": 10}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": 10, "epoch": 0.5, "loss_cls": 3.0}, {"step": 20, "alarm": ALL}, {"step": 20, "loss_cls": 2.0, "epoch": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = {"probe": ALL, "metrics": {f"{ALL}_{x}": x for x in (1.0, 2.0, 3.0)}, "device": ALL, "versions": {ALL: ALL}}
    record(folder / "one.json", ALL, **more)
    record(folder / "two.json", ALL)
    assert run_command(report.main, [str(folder), "--out", str(tmp_path / "page.html"), "--pictures", "false"]) == DONE
    assert capsys.readouterr().out.startswith("report written")
    text = (tmp_path / "page.html").read_bytes().decode("utf-8")
    read = Reader(text)
    assert not {"script", "iframe", "object", "form"} & set(read.tags) and "img" not in read.tags
    assert not [name for name in read.attributes if name.startswith("on")]
    seen_as_text(read.words, "<script>alert(1)</script>", ORDINARY)


def test_pages_of_pictures(tmp_path: Path) -> None:
    one = Shown("a b", Image.new("RGB", (8, 8)), ALL)
    figure, axes = gallery.panels(1, LATEX + FORMULA_OF_A_PICTURE + TERMINAL.split("error", maxsplit=1)[0])
    gallery.picture(axes[0], np.zeros((8, 8, 3)), FORMULA_OF_A_PICTURE)
    file = gallery.hang(tmp_path, ALL, [ALL], [one, Shown("c", figure, ALL)])
    read = Reader(file.read_bytes().decode("utf-8"))
    assert read.tags.count("img") == 2 and "script" not in read.tags and not [n for n in read.attributes if n.startswith("on")]
    seen_as_text(read.words, ORDINARY)
    with Image.open(tmp_path / "c.png") as picture:
        seen_as_text(picture.info["Description"])


PICTURE = ("$\\bad$", "_low", "50 $ and 60 $", "\x1b[31mred", "\u202eexe", "plain")


def drawn_curves() -> Any:
    return curves.draw({name: [{"step": 1, "loss_cls": 1.0}] for name in PICTURE})


def drawn_classes() -> Any:
    places = np.arange(2 * len(PICTURE), dtype=np.float64).reshape(-1, 2)
    return tsne.chart(places, np.arange(len(PICTURE)), PICTURE, "\n".join(PICTURE))


def drawn_confusion() -> Any:
    confusion_picture.picture(np.full((len(PICTURE),) * 2, 100 / len(PICTURE)), list(PICTURE), "images")


@pytest.mark.parametrize("draw", [drawn_curves, drawn_classes, drawn_confusion])
def test_names_in_pictures(draw: Callable[[], Any]) -> None:
    r"""On 46c01a2 `$\bad$` was a ValueError, a class that begins with a low line was missing in the legend."""
    figure = draw()
    if figure is not None:
        figure.savefig(io.BytesIO(), format="png")
        words = [text.get_text() for text in figure.findobj(lambda one: hasattr(one, "get_text"))]
        assert not [word for word in words if re.search("[\x00-\x09\x0b-\x1f\u202e]", word)]
        assert any("_low" in word for word in words)


FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_model_card(tmp_path: Path) -> None:
    shape = VIT._asdict() | {"arch": ALL}
    contents = Contents(ALL, {"only": {}}, args={"data": ALL, "recipe": ALL})
    (tmp_path / NAME).write_bytes(b"x")
    for target in ("timm", "huggingface", "openmmlab", "onnx", "original"):
        text = card.text(shape, contents, tmp_path / NAME, target, "model.safetensors", "teacher", 0.0)
        outside, code = re.sub(FENCE, "", text), re.findall(FENCE, text)
        ours = outside.replace("`[batch, 1 + patches, ", "").replace("]`, [CLS]", "")
        assert not ACTIVE.search(ours) and len(code) == 1 and text.count("```") == 2
        table = [line for line in outside.splitlines() if line.startswith("| ")]
        assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table} == {3}
        (tree,) = [ast.parse(code[0])]
        assert target == "timm" or ALL not in ast.dump(tree)
        assert sum(isinstance(node, ast.Call) for node in ast.walk(tree)) <= 6
        seen_as_text(re.sub(r"\\([^\w\s])", r"\1", outside), "it's-3.5 (plain) #1")


def test_names_of_runs_for_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B refuses `?`, `#`, `%`, `:` and backslashes in an id. 46c01a2 gave it all of them, and escape sequences."""
    asked: list[dict[str, Any]] = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **how: asked.append(how)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in (ALL, "ordinary-1_é"):
        trackers.tracker("wandb", name, {"data": ALL})
    assert not re.search(r"[/\\#?%:\x00-\x1f]", asked[0]["id"])
    seen_as_text(asked[0]["name"])
    assert asked[1]["id"] == asked[1]["name"] == "ordinary-1_é"


def test_a_number_that_is_not_finite_leaves_valid_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On 46c01a2 a record said `NaN`, which no other reader takes, and the page of one with null was a TypeError."""
    from checkpoints import escape  # noqa: PLC0415 (46c01a2 has none)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    content = {"a": [float("nan"), 1.5, (float("inf"), 2)], "b": {"c": float("-inf")}, "d": UNDECODABLE}
    assert json.loads(escape.json_text(content), parse_constant=refuse) == {"a": [None, 1.5, [None, 2]], "b": {"c": None}} | {
        "d": UNDECODABLE
    }
    record(tmp_path / "old.json", "val", metrics={f"part_{x}": float("nan") for x in (1, 2, 3)} | {"top1": None})
    record(tmp_path / "new.json", "val")
    assert run_command(report.main, [str(tmp_path), "--pictures", "false"]) == DONE
    assert run_command(tables.main, [str(tmp_path)]) == DONE and "74.9" in capsys.readouterr().out


C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, C])
def test_bytes_that_are_no_text_on_a_screen_of_ascii(settings: dict[str, str], tmp_path: Path) -> None:
    """On 46c01a2: UnicodeEncodeError."""
    folder = tmp_path / (UNDECODABLE + "漢")
    folder.mkdir()
    record(folder / "knn.json", "漢字 é")
    words: list[str | bytes] = [sys.executable, "-m", "probes.tables", os.fsencode(folder)]
    kept = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")}
    nowhere: list[bytes] = ["nowhere漢".encode()]
    for more in ([], nowhere):
        done = subprocess.run([*words, *more], env=kept | settings, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode in (DONE, WRONG_COMMAND) and b"Traceback" not in done.stderr, done.stderr.decode()
        assert (done.stdout + done.stderr).isascii()


def test_what_a_command_dies_of_is_escaped(tmp_path: Path) -> None:
    """On 46c01a2 an error's escape sequences reached the terminal."""
    done = subprocess.run(**program("dies", TERMINAL), check=False)
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
    assert "\x1b" not in done.stderr
    assert "\\x1b[31mred" in done.stderr


@pytest.mark.parametrize("text", [ORDINARY, "runs/a-b/last.pt", "vit_small, patch 16", "90.1 on imagenet/val", "C'est l'été"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    """Not an attack: what escapes must leave ordinary names alone."""
    from checkpoints import escape  # noqa: PLC0415 (46c01a2 has none)

    assert escape.terminal(text) == escape.plot(text) == text and escape.csv_cell(text) == text
    assert escape.markdown(text.replace("~", "")) == text.replace("~", "")
    assert shlex.split(escape.shell([text])) == [text]


# Nobody is forgotten.

FLOORS = ("checkpoints", "pretrain", "probes", "transfer")
PRINTING = {
    "checkpoints/terminal.py": "the one that prints",
    "checkpoints/zoo.py": "names of our own list, sizes",
    "checkpoints/elsewhere.py": "one word of ours, before anything is imported",
}
PLAIN_PARTS = {"Table", "BarColumn", "MofNCompleteColumn", "TimeRemainingColumn", "TextColumn", "TaskID"}
"""Of rich, what holds text that only a console shows, and columns of numbers."""
ESCAPING = ("html", "csv", "shlex")
"""Modules that only `checkpoints/escape.py` needs; `html.parser` reads."""
READERS = {"csv": {"csv.reader", "csv.Error"}}
"""What any file may use of them."""
PICTURES = dict.fromkeys(("set_title", "suptitle", "set_xlabel", "set_ylabel", "annotate"), 0) | {"text": 2}
PICTURES |= {"set_xticks": 1, "set_yticks": 1}
"""matplotlib's methods, and which argument is a text."""
OURS_IN_PICTURES = {
    "title": "a name of curves.PANELS",
    "names": "escaped two lines above, in confusion_picture",
    "name": "a name of curves.PANELS' measurements",
    "f'{row.prototype}: {row.size}'": "numbers",
    "f'{len(classes) - CLASSES} more classes'": "a number",
    "f'{shares[row, column]:.0f}'": "a number",
    "loaded.path": "card.text writes no picture",
    "NAMES[kind]": "draw_occlusion's own words",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            yield f"{floor}/{path.name}", ast.parse(path.read_text(encoding="utf-8"))


def test_only_one_file_prints() -> None:
    """On 46c01a2 26 files did."""
    for path, tree in sources():
        if path in PRINTING:
            continue
        parts = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich"
            for alias in node.names
        }
        assert not any(one.name == "rich" for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names), path
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called, line = node.func, f"{path}:{node.lineno}"
            if isinstance(called, ast.Name):
                assert called.id != "print", line
                assert called.id not in parts or called.id in PLAIN_PARTS, line
                assert called.id != "TextColumn" or "{" not in ast.unparse(node), line
            elif isinstance(called, ast.Attribute):
                assert ast.unparse(called) not in ("sys.stdout.write", "sys.stderr.write", "os.write", "warnings.warn"), line
                assert called.attr not in ("add_text", "add_hparams", "from_markup", "add_itxt"), line


def test_only_one_file_escapes() -> None:
    """On 46c01a2 nine files did, each in its own way."""
    for path, tree in sources():
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        reading = {name for name, own in READERS.items() if {one for one in used if one.startswith(f"{name}.")} <= own}
        assert path == "checkpoints/escape.py" or not (names & set(ESCAPING)) - reading, path


def test_every_text_of_a_picture_is_ours_or_escaped() -> None:
    """On 46c01a2 none was escaped."""
    seen = 0
    for path, tree in sources():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            place = PICTURES.get(node.func.attr, len(node.args))  # type: ignore[attr-defined]
            texts = [*node.args[place : place + 1], *(word.value for word in node.keywords if word.arg in ("label", "title"))]
            for text in texts:
                words = ast.unparse(text)
                seen += 1
                ours = isinstance(text, ast.Constant) or words in OURS_IN_PICTURES
                assert ours or "fonts.label" in words, f"{path}:{node.lineno}: {words}"
    assert seen > 10
