"""Numbers: flags that make no sense are refused, nothing that is not finite is measured, kept or resumed from."""

import dataclasses
import importlib
import math
import pkgutil
import re
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoints
import pretrain
import probes
import transfer
from checkpoints import bounds, export, inspect, store
from checkpoints.cli import DONE, FAILED, WRONG_COMMAND, UserError, parse, run_command
from pretrain import train
from pretrain.tokenizers import __main__ as tokenizers
from probes import cluster, knn, semi
from probes.linear import __main__ as linear
from probes.robustness import __main__ as robustness
from probes.visualize import __main__ as visualize
from tests.support import networks
from tests.support.commands import SMALL
from tests.support.probes import PROBES
from transfer.config import toolboxes

FREE = {"lr": "a rate of several that diverges is left out by name", "share": "its command says so", "value_range": "any two"}
"""Flags that parsing lets have some of what is tried here."""

DRAWN = ("SceneObject", "Background", "Scene")
"""What the sample draws, which are no options."""


def commands() -> Iterator[type]:
    """The options of every command, by their type. The toolboxes come first, with mmcv's operations, as in the commands."""
    toolboxes()
    for package in (checkpoints, pretrain, probes, transfer):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the toolboxes' remarks on optional parts
                module = importlib.import_module(found.name)
            if not hasattr(module, "parse") and not re.search(
                r"visualize\.|\.options$|pretrain\.options\.groups|robustness\.suites|linear\.protocol", found.name
            ):
                continue
            for value in vars(module).values():
                own = isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
                if own and value.__name__ not in DRAWN:
                    yield value


def numbers(options: type) -> Iterator[tuple[str, bool, int]]:
    """Its flags that take numbers: the field, whether they are whole, how many at once."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        if {int, float} & set(kinds):
            length = len(kinds) if typing.get_origin(hints[field.name]) is tuple and Ellipsis not in kinds else 1
            yield field.name, float not in kinds, length


CASES = [(options, *case) for options in commands() for case in numbers(options)]


def base(options: type) -> list[str]:
    """What a command cannot do without."""
    needed = {"task": ["--task", "coco"], "table": ["--table", "T9"]}
    names = [field.name for field in dataclasses.fields(options) if field.default is field.default_factory is dataclasses.MISSING]
    alone = {name for name, kind in typing.get_type_hints(options, include_extras=True).items() if "Positional" in str(kind)}
    return [word for name in names for word in needed.get(name, ["x"] if name in alone else [f"--{name}", "x"])]


def test_every_number_of_every_command_is_looked_at() -> None:
    """So that a new flag is thought of: in the table, or 0 or more by default."""
    assert len({options for options, *_ in CASES}) > 20 and len(CASES) > 150
    missing = {name for _, name, *_ in CASES} - bounds.BOUNDS.keys()
    assert not missing, f"say in checkpoints/bounds.py what {missing} may be"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e40", str(10**40), "-0.5"])
def test_no_command_takes_a_number_that_makes_no_sense(value: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Only what the table allows: a 0 where it means "none", a large rate of several."""
    taken = []
    for options, name, whole, length in CASES:
        flag = f"--{name.replace('_', '-')}"
        try:
            parse(options, [*base(options), flag, *[value] * length])
        except (UserError, SystemExit) as error:
            said = str(error) if isinstance(error, UserError) else " ".join(capfd.readouterr().err.split())
            assert flag in said and (isinstance(error, UserError) or error.code == WRONG_COMMAND), (options, flag, said)
        else:
            taken.append((options.__module__, name))
            assert math.isfinite(float(value)) and not (whole and "e" in value), (options, flag)
            allowed = float(value) == 0 and 0 in bounds.of(bounds.command_of(options), name, ())
            assert (
                allowed or (name in FREE and (float(value) >= 0 or name == "value_range")) or (name == "images" and value == "0")
            ), (options, flag)
    assert all(value == "0" or name in FREE for _, name in taken)


SENSELESS = (
    (train.main, "--momentum-teacher 2"),
    (train.main, "--drop-path 1.5"),
    (train.main, "--out-dim 1"),
    (train.main, "--depth 0"),
    (train.main, "--width 0"),
    (train.main, "--workers -1"),
    (train.main, "--seed -1"),
    (train.main, "--lr 1e40"),
    (train.main, "--teacher-temp 0"),
    (train.main, "--local-crops-number -1"),
    (train.main, "--blur 2 0 0"),
    (train.main, "--serve 70000"),
    (knn.main, "--temperature 0"),
    (knn.main, "--crop 0"),
    (robustness.main, "--crop 0"),
    (lambda words: tokenizers.main(["patches", *words]), "--share 2"),
    (lambda words: visualize.main(["tsne", *words]), "--perplexity 0"),
)


@pytest.mark.parametrize(("main", "flags"), SENSELESS, ids=[flags for _, flags in SENSELESS])
def test_a_senseless_value_is_one_sentence_before_any_work(main: Any, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, flags.split()) == WRONG_COMMAND
    said = capsys.readouterr().err
    assert said.startswith("error: --") and flags.split(maxsplit=1)[0] in said and said.count("\n") == 1


def poisoned(kind: str, value: float, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of one of the layouts that are read, with one weight that is not finite; whole otherwise."""
    weights = dict(networks.backbone().state_dict())
    weights["blocks.1.mlp.fc1.weight"] = weights["blocks.1.mlp.fc1.weight"].clone()
    weights["blocks.1.mlp.fc1.weight"][3, 4] = value
    about = {"key": "teacher", "epoch": 3, "step": 30, "shape": networks.FAN_IN._asdict()}
    with monkeypatch.context() as inside:
        inside.setattr(store, "_refuse_not_finite", lambda *_: None)
        if kind == "backbone.safetensors":
            store.save_backbone(root / kind, weights, about)
        elif kind == "teacher.pth":
            torch.save({"teacher": {f"backbone.{name}": one for name, one in weights.items()}}, root / kind)
        else:
            torch.save(weights, root / kind)
    return root / kind


COMMANDS: dict[str, tuple[Callable[..., Any], str]] = PROBES | {
    "cluster by head": (cluster.main, ""),
    "linear cached": (linear.main, "--mode cached --epochs 1"),
    "semi cached": (semi.main, "--frozen --mode cached"),
    "inspect": (inspect.main, ""),
    "export": (export.main, "--to huggingface --out exported"),
    "export to timm": (export.main, "--to timm --out exported"),
}
POSITIONAL = ("inspect",)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["backbone.safetensors", "teacher.pth"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_works_with_weights_that_are_not_finite(
    command: str, kind: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2: 100.0 for all 45 rates of the linear probe, k-NN 33.3, chance of the others, all with a record and exit code 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = poisoned(kind, value, tmp_path, monkeypatch)
    main, more = COMMANDS[command]
    asked = [*more.split(), *([str(file)] if command in POSITIONAL else ["--ckpt", str(file)])]
    assert run_command(main, asked) in (WRONG_COMMAND, FAILED)
    said = capsys.readouterr()
    assert "NaN or infinite numbers" in said.err, said
    assert said.err.count("\n") == 1 and "blocks.1.mlp.fc1.weight" in said.err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [kind]


def test_no_training_begins_with_weights_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = poisoned("backbone.safetensors", math.nan, tmp_path, monkeypatch)
    assert run_command(train.main, [*SMALL, "--init-from", str(file), "--out", str(tmp_path / "run")]) == WRONG_COMMAND
    assert "finite" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["student", "teacher", "optimizer"])
def test_weights_that_are_not_finite_are_never_saved(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 wrote them over `last.pt` and then over `previous.pt`."""
    flags = [*SMALL, "--knn-every", "0", "--out", str(tmp_path / "run"), "--save-minutes", "0"]
    real = train.train_step

    def broken(model: Any, teacher: Any, optimizer: Any, batches: Any, now: Any, *rest: Any) -> Any:
        outcome = real(model, teacher, optimizer, batches, now, *rest)
        steps.append(now)
        if len(steps) == 3:
            tensors = {
                "student": model.backbone.norm.bias.data,
                "teacher": teacher.backbone.norm.bias.data,
                "optimizer": next(one["exp_avg"] for one in optimizer.state.values()).view(-1),
            }
            tensors[where][0] = math.nan
        return outcome

    steps: list[Any] = []
    monkeypatch.setattr(train, "train_step", broken)
    assert run_command(train.main, [*flags, "--steps", "5"]) == FAILED
    said = capsys.readouterr().err
    assert where in said
    assert "is not finite" in said
    assert "last.pt is not written" in said
    assert said.count("\n") == 1
    found = store.load_run(tmp_path / "run")
    assert found is not None and found.state["step"] == 2 and not found.passed_over
    monkeypatch.setattr(train, "train_step", real)
    assert run_command(train.main, [*flags, "--steps", "5"]) == DONE


@pytest.mark.parametrize("flag", ["--lr 1e25", "--weight-decay 1e30", "--lr 1e9"])
def test_a_rate_that_makes_weights_infinite_never_replaces_a_good_checkpoint(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL, "--knn-every", "0", "--out", str(tmp_path / "run"), "--save-minutes", "0", "--warmup-epochs", "0"]
    assert run_command(train.main, [*flags, "--steps", "2"]) == DONE
    code = run_command(train.main, [*flags, "--steps", "12", *flag.split(), "--allow-config-change", "true"])
    found = store.load_run(tmp_path / "run")
    assert found is not None and store._not_finite(found.state, "") == ""
    said = capsys.readouterr().err
    assert code in (DONE, FAILED, WRONG_COMMAND) and "Traceback" not in said
