"""The command line of a pretraining: a recipe's values, then what was typed. The original's command lines mean the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from checkpoints.cli import FALSE_WORDS, TRUE_WORDS, UserError, expanded, parse
from pretrain.options.groups import Config, original
from pretrain.options.stored import from_values
from pretrain.recipes import registry
from pretrain.recipes.registry import RECIPES

PROG = "python -m pretrain.train"
USE_FP16 = ("--use_fp16", "--use-fp16")


@dataclass(frozen=True)
class Chosen:
    """The flags that choose the defaults of all others."""

    recipe: str = ""
    arch: str = ""
    data: Annotated[str, original("--data-path")] = "sample"


def read_command_line(arguments: Sequence[str]) -> Config:
    """Flags -> options: first the recipe's values, then what was given. Raises UserError for an unknown recipe."""
    words = expanded(Config, _as_precision(arguments))
    recipe = _recipe(words)
    if recipe is not None and recipe not in RECIPES:
        raise UserError(f"unknown --recipe {recipe}: choose from {registry.CHOICE}")
    default = from_values(**{"recipe": recipe, **RECIPES[recipe]}) if recipe else Config()
    return parse(Config, words, default=default, prog=PROG)


def _recipe(words: Sequence[str]) -> str | None:
    """The recipe that was asked for, or the one that goes without saying.

    It decides the defaults that the flag library is given, so these flags are read once before all others are.
    """
    words = [word for word in words if word not in ("-h", "--help")]
    chosen, _ = tyro.cli(Chosen, args=words, prog=PROG, return_unknown_args=True)
    if chosen.recipe or chosen.arch:
        return chosen.recipe or None
    return "sample" if chosen.data.partition(":")[0] == "sample" else "ibot_vits16"


def _as_precision(arguments: Sequence[str]) -> list[str]:
    """The original's --use_fp16 as --precision (false: fp32, true or nothing: whatever is fast and safe here).

    By hand, because an alias of the flag library has its flag's values: `--precision true` would be taken, too.
    """
    words: list[str] = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        words += [flag, value] if equals and flag in USE_FP16 else [word]
    translated: list[str] = []
    for before, word, after in zip(["", *words], words, [*words[1:], "--"], strict=False):
        if word in USE_FP16:
            translated += ["--precision", "fp32" if after.lower() in FALSE_WORDS else "auto"]
        elif not (before in USE_FP16 and word.lower() in TRUE_WORDS | FALSE_WORDS):
            translated.append(word)
    return translated
