"""Every command of README.md, CONTRIBUTING.md and docs/: its flags and names are read, and what can run here runs, small.

The documents' own words are typed, in a folder where the names that they use (IMAGENET, runs/NAME, CELLS, ...) exist, tiny.
"""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torchvision

from checkpoints import sections, zoo
from checkpoints.cli import DONE, run_command
from pretrain.sample import classification
from pretrain.setup.plan import plan_of
from tests.support import documented, small_world
from tests.support.commands import QUICK
from tests.support.documented import ROOT, Command
from tests.support.modules import command_module
from tests.support.small_world import PROBE

COMMANDS = documented.commands()
ONLY_READ = {
    r"(git|cd|source) .*": "the reader's own shell",
    r"(conda|pip) .*": "would change the environment; tests/promises/test_setup.py sets small ones up",
    r"docker .*": "needs Docker; tests/promises/test_image.py compares the file with the project, a weekly job builds it",
    r"tools/setup\.sh.*": "would change the environment; tests/promises/test_setup.py sets small ones up",
    r"tools/test\.sh.*": "is what runs this",
    r"torchrun .*|sbatch .*": "several machines, or eight processes; tests/pretrain/engine runs two",
    r".* --push .*": "would upload; tests/transfer/test_push.py has a client that keeps it",
    r".* --ckpt python:.*": "runs a file of the reader's; tests/pretrain/backbones/test_others.py has one",
    r".* --ckpt (timm:\S+@\S+|hf:FOLDER).*": "a file or folder of the reader's; tests/pretrain/backbones/test_others.py has some",
    r".* --replay .*": "needs a step that was refused; test_health.py makes one",
    r"python -m probes\.live .*": "serves until it is stopped; test_report.py asks it",
    r".* --data torchvision:.*": "would fetch a data set",
    r"tools/transfer_\w+\.sh .*--config .*": "a detector of full size; tests/transfer/test_configs.py builds each",
    r"tools/transfer_\w+\.sh.*": "minutes; tests/transfer/test_train.py trains each of the sample's on less",
    r"python -m transfer\.predict.*": "needs a trained run; tests/transfer/test_predict.py makes one",
    r"python -m pretrain\.tokenizers convert .*": "needs DALL-E's file; test_tokenizers.py converts a small one",
    r"python -m probes\.retrieval\.revisited .*": "needs the published file; tests/attacks/test_pickles.py converts the sample's",
    r"tools/gpu_day\.sh.*": "ten minutes of a GPU; tests/probes/bench/test_gpu_day.py takes all of it, small",
    r"tools/bench\.sh step.*": "measures whole steps of ViT-S, ViT-B and Swin-T: minutes",
}
"""Commands of which only the flags and names are checked, and why."""
SHORTER = {
    "pretrain.train": f"{' '.join(QUICK)} --steps 2 --out NEW",
    "pretrain.sample": "--count 10",
    "pretrain.config": "",
    "pretrain.curves": "",
    "pretrain.tokenizers": "--codes 8",
    "probes.bench.data": "--images 4 --batch-size 2 --rounds 1",
    "probes.bench.count": "--batch-size 2",
    "probes.bench.sources": "--images 1000 --read 10 --kinds shards",
    "probes.bench.knn": "--part 0.0005 --queries 10 --ways product",
    "probes.knn": PROBE,
    "probes.compare": f"{PROBE} --probes knn --crop 32 --resize 32 --out NEW",
    "probes.embed": f"{PROBE} --out NEW.parquet",
    "probes.linear": f"{PROBE} --epochs 2",
    "probes.logistic": PROBE,
    "probes.semi": f"{PROBE} --epochs 2 --tuned-epochs 6 --percent 50",
    "probes.cluster": PROBE,
    "probes.parts": f"{PROBE} --epochs 2",
    "probes.segment": "--images 4 --epochs 1 --batch-size 2 --lr 0.01",
    "probes.finetune": "--limit 16 --batch-size 8 --epochs 1 --warmup-epochs 0 --input-size 32 --lr 1e-3 --workers 0 "
    "--precision fp32 --compile off --folder NEW --out NEW.json",
    "probes.video": "--limit 1 --size 64",
    "probes.retrieval": "--multi-scale false",
    "probes.robustness": "--limit 3",
    "probes.visualize": "--limit 6 --out NEW",
    "probes.tables": "",
    "probes.report": "--pictures false",
    "probes.reproduce": "--dry-run",
    "probes.ablate": "--dry-run",
    "checkpoints.export": "--out NEW",
    "checkpoints.inspect": "",
}
"""What is added to a command of a module so that it takes a second; a flag that is given twice counts as given last."""


def words(command: Command, new: Path) -> list[str]:
    """A command's arguments as they are typed here: N is 0, a server takes any port, and what is shorter comes last."""
    typed = list(command.arguments)
    if "--serve" in typed:
        at = typed.index("--serve") + 1
        typed[at:at] = [] if typed[at:] and typed[at].isdecimal() else ["0"]
    typed = ["0" if word == "N" else str(new / "out") if word == "OUT" else word for word in typed]
    if "bg_challenge" in typed and "--class-map" not in typed:  # drawn with classes of its own
        typed += ["--class-map", "bg_challenge/in_to_in9.json"]
    return typed + [word.replace("NEW", str(new / "new")) for word in SHORTER[command.module].split()]


def why_not(command: Command) -> str | None:
    """Why a command is only read."""
    return next((why for pattern, why in ONLY_READ.items() if re.fullmatch(pattern, command.text)), None)


class Read(BaseException):
    """Raised with a command's options once they are read, so that nothing is done."""


def options_of(command: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command's flags say. A flag that does not exist or has a wrong value ends the command instead."""
    parsed = sections.parsed

    def stop(*arguments: Any) -> Any:
        raise Read(parsed(*arguments))

    monkeypatch.setattr(sections, "parsed", stop)
    try:
        arguments = ["0" if word == "N" else word for word in command.arguments]
        code = run_command(importlib.import_module(command_module(command.module)).main, arguments)
    except Read as read:
        return read.args[0]
    raise AssertionError(f"{command.where}: {command.text}: ended with {code} before its flags were read")


def here(commands: list[Command]) -> Any:
    return pytest.mark.parametrize("command", commands, ids=[f"{one.where}: {one.text}"[:120] for one in commands])


@here([one for one in COMMANDS if one.module])
def test_the_flags_of_a_command_are_read(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        options = options_of(command, monkeypatch)
    except SystemExit as exit:
        pytest.fail(f"{command.where}: {command.text}: its flags are refused ({exit.code})")
    if command.module == "pretrain.train":
        plan_of(options)


@here([one for one in COMMANDS if one.module])
def test_what_a_command_names_exists(command: Command, world: Path) -> None:
    """Checkpoints by name, configs, data sets, files."""
    following = zip(command.arguments, command.arguments[1:], strict=False)
    for flag, value in following:
        if flag in ("--ckpt", "--init-from", "--saliency") and not value.startswith(("timm:", "hf:", "torchvision:", "python:")):
            assert (world / value).exists() or value in zoo.names(), f"{command.where}: there is no checkpoint {value}"
        if flag == "--config":
            assert list((ROOT / "transfer" / "configs").glob(f"*/{value}.py")), f"{command.where}: there is no config {value}"
        if flag in ("--data", "--val", "--knn-data", "--names") and not value.startswith(("sample", "hf:")):
            kind, _, name = value.partition(":")
            known = hasattr(torchvision.datasets, name) if kind == "torchvision" else (world / value).exists()
            assert known, f"{command.where}: there is no {value} here: let small_world.py make one"


PAGE = """Type `python -m probes.knn
--ckpt F`, or `probes.linear`, which `pretrain/models/vit.py` is not:

```bash
cd x && tools/pretrain.sh --data DIR \\
    --steps 2   # two
torchrun -m probes.nobody ...
```
"""


def test_commands_are_found_as_they_are_written_and_wrong_ones_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = documented.typed(PAGE)
    assert lines == [
        "cd x",
        "tools/pretrain.sh --data DIR --steps 2",
        "torchrun -m probes.nobody ...",
        "python -m probes.knn --ckpt F",
    ]
    assert documented.answered("page", lines[1])[2:4] == ("pretrain.train", ("--data", "DIR", "--steps", "2"))
    for line in (lines[2], "tools/bench.sh nothing", "tools/gone.sh", "python setup.py"):
        with pytest.raises(LookupError):
            documented.answered("page", line)
    assert options_of(documented.answered("page", lines[3]), monkeypatch).ckpt == Path("F")
    for flags in (("--no-such-flag",), ("--k", "many")):
        with pytest.raises(SystemExit):
            options_of(Command("page", "", "probes.knn", flags), monkeypatch)


def test_every_command_is_one() -> None:
    wrong = [f"{one.where}: {one.text}: {one.wrong}" for one in COMMANDS if one.wrong]
    assert not wrong, "\n".join(wrong)


def test_every_command_is_run_or_has_a_reason_why_not() -> None:
    unknown = [f"{one.where}: {one.text}" for one in COMMANDS if not (one.wrong or one.module in SHORTER or why_not(one))]
    assert not unknown, f"say in SHORTER how these take a second, or in ONLY_READ why they cannot run: {unknown}"
    idle = [pattern for pattern in ONLY_READ if not any(re.fullmatch(pattern, one.text) for one in COMMANDS)]
    assert not idle, f"no document has these any more: {idle}"


def test_every_tool_ends_in_the_module_that_is_taken_for_it() -> None:
    for tool, (module, *flags) in documented.TOOLS.items():
        text = (ROOT / tool).read_text()
        lines = text.splitlines()
        if "transfer.sh" in lines[-1]:
            assert f"TASK={flags[-1]}" in lines
            lines = (ROOT / "tools" / "transfer.sh").read_text().replace("$TASK", flags[-1]).splitlines()
        starts = r"^ *(?:exec \$PYTHON \$START|start_on_gpus (?:\$gpus)?) "
        called = [line for line in (line.replace('"', "") for line in lines) if re.search(starts, line)]
        assert called and all(re.search(rf"{starts}{re.escape(' '.join([module, *flags]))} \$[{{@]", line) for line in called), (
            tool
        )
    bench = (ROOT / "tools" / "bench.sh").read_text()
    cases = re.findall(r'^ +([\w |]+)\) module="([\w.$]+)"', bench, re.MULTILINE)
    parts = {part: module.replace("$1", part) for names, module in cases for part in names.split(" | ")}
    assert parts == documented.BENCHES and bench.splitlines()[-1].startswith('exec "$PYTHON" "$START" "$module"')


def test_tools_without_a_module_are_called_as_they_can_be() -> None:
    extras = re.search(r"extras: ([\w ]+)", (ROOT / "tools" / "setup.sh").read_text())
    assert extras
    tests = "".join(path.name + path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for command in (one for one in COMMANDS if not one.module and not one.wrong):
        tool, *arguments = command.arguments
        assert not tool.startswith("tools/") or (ROOT / tool).exists(), command
        if tool == "tools/setup.sh":
            assert set(arguments) <= {*extras[1].split(), "--cpu"}, command
        if tool == "tools/test.sh" and "-k" in arguments:
            assert re.search(rf"def test_\w*{arguments[-1]}|^test_{arguments[-1]}", tests), command


@here([one for one in COMMANDS if one.module in SHORTER and not why_not(one)])
def test_a_command_runs(command: Command, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = run_command(importlib.import_module(command_module(command.module)).main, words(command, tmp_path))
    assert code == DONE, f"{command.where}: {command.text}: {capfd.readouterr().err}"


@pytest.mark.parametrize(("where", "code"), documented.python_blocks())
def test_python_of_the_documents_runs(where: str, code: str, world: Path) -> None:
    exec(compile(code, where, "exec"), {"Path": Path})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, parity_dir: Path) -> Iterator[Path]:
    """A folder in which every name of the documents exists; the tests of this file run in it."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        small_world.make(root, patch, parity_dir / "checkpoint_published_layout.pth", runs_of_documents())
        yield root
    classification.classification.cache_clear()


def runs_of_documents() -> set[str]:
    """Names of the runs that the documents speak of."""
    return {word.split("/")[1] for one in COMMANDS for word in one.arguments if re.match(r"runs/\w", word)}
