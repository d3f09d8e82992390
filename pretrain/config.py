"""`python -m pretrain.config` lists the recipes. The options themselves are `pretrain/options/groups.py`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from checkpoints import terminal
from checkpoints.cli import UserError, parse, run_command
from pretrain.recipes import ablation_recipes, registry
from pretrain.recipes.registry import RECIPES


@dataclass(frozen=True)
class Wanted:
    """List the recipes: command, published cost, numbers to expect."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Only these, with all their values."""


def main(arguments: Sequence[str]) -> None:
    names = parse(Wanted, arguments, prog="python -m pretrain.config").names
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise UserError(f"there is no recipe {unknown[0]}: choose from {registry.CHOICE}")
    for name in names or registry.NAMED:
        terminal.page(registry.described(name))
        if names:
            terminal.page("".join(f"  {registry.as_flag(key, value)}\n" for key, value in RECIPES[name].items()))
    if not names:
        terminal.page(ablation_recipes.listed())


if __name__ == "__main__":
    sys.exit(run_command(main))
