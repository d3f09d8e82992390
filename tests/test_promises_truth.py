"""Numbers: flags that make no sense are refused, nothing that is not finite is measured, kept or resumed from."""

import dataclasses
import importlib
import math
import pkgutil
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import checkpoints
import pretrain
import probes
import transfer
from checkpoints import bounds
from checkpoints.cli import WRONG_COMMAND, UserError, parse, run_command
from pretrain import train
from pretrain.tokenizers import __main__ as tokenizers
from probes import knn
from probes.robustness import __main__ as robustness
from probes.visualize import __main__ as visualize

FREE = {"lr": "a rate of several that diverges is left out by name", "share": "its command says so", "value_range": "any two"}
"""Flags that parsing lets have some of what is tried here."""

DRAWN = ("SceneObject", "Background", "Scene")
"""What the sample draws, which are no options."""


def commands() -> Iterator[type]:
    """The options of every command, by their type."""
    for package in (checkpoints, pretrain, probes, transfer):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            if not hasattr(module, "parse") and not re.search(
                r"visualize\.|finetune\.options|robustness\.suites|linear\.protocol", found.name
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
    needed = {"task": ["--task", "coco"], "run": ["runs/x"], "truth": ["x.pkl"], "table": ["--table", "T9"]}
    names = [field.name for field in dataclasses.fields(options) if field.default is field.default_factory is dataclasses.MISSING]
    return [word for name in names for word in needed.get(name, [f"--{name}", "x"])]


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
