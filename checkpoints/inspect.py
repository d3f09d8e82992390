"""Describes a checkpoint file: `python -m checkpoints.inspect FILE`.

This is a command that nothing imports, which is why it may use what stands on the floor above.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from checkpoints import store, terminal, zoo
from checkpoints.architecture import Architecture
from checkpoints.cli import parse, run_command
from checkpoints.published import Contents
from checkpoints.resolve import backbone_part
from pretrain.models.backbone import architecture_of_contents, open_checkpoint
from transfer.exports import card


@dataclass(frozen=True)
class InspectOptions:
    """Show what a checkpoint holds. Nothing in it is run."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """A run's folder, any checkpoint file, a name of the zoo, timm:NAME (default: the newest run)."""
    zoo: bool = False
    """List the published checkpoints that have a name here, instead."""


def main(arguments: Sequence[str]) -> None:
    options = parse(InspectOptions, arguments, prog="python -m checkpoints.inspect")
    console = terminal.Console(soft_wrap=True)
    if options.zoo:
        console.print(list_zoo())
        return
    path, contents = open_checkpoint(options.file, full=True)
    key = "teacher" if "teacher" in contents.networks else next(iter(contents.networks))
    weights = backbone_part(contents.networks[key])
    shape = architecture_of_contents(contents, weights, path)
    table = Table(title=str(path), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows(path, contents, shape).items():
        table.add_row(name, value)
    console.print(table)


def rows(path: Path, contents: Contents, shape: Architecture) -> dict[str, str]:
    """Facts on the checkpoint, by name."""
    found = {
        "layout": contents.layout,
        "architecture": card.architecture(shape._asdict()),
        "images": card.images(shape._asdict()),
        "holds": ", ".join(contents.parts()),
    }
    if contents.lacks():
        found["lacks"] = ", ".join(contents.lacks())
    if contents.ignored:
        found["not used"] = ", ".join(contents.ignored)
    if contents.epoch or contents.step:
        found["trained"] = f"{contents.epoch} epochs" + (f", {contents.step} steps" if contents.step else "")
    found |= card.trained_on(contents.args)
    for key, network in contents.networks.items():
        parts = [("backbone", "backbone."), ("head", "head.")]
        counts = {part: count(network, prefix) for part, prefix in parts}
        name = "parameters" if key == "only" else f"parameters of the {key}"
        found[name] = ", ".join(f"{part} {number:,}" for part, number in counts.items() if number)
    if path.is_file():
        found["size"] = f"{path.stat().st_size / 2**20:.1f} MB"
        found["sha256"] = store.sha256(path)
        if compared := zoo.verdict(path):
            found["compared with"] = compared
    return found


def count(network: dict, prefix: str) -> int:
    """Parameters under a prefix, tied ones once."""
    tensors = {weight.data_ptr(): weight.numel() for name, weight in network.items() if name.startswith(prefix)}
    return sum(tensors.values())


def list_zoo() -> Table:
    caption = (
        "one network's backbone each; with _full at the end student, teacher, heads, centres and optimizer. Top-1 % as published."
    )
    table = Table(
        title="published checkpoints (checkpoints/zoo.json)", title_justify="left", caption=caption, caption_justify="left"
    )
    for column in ("name", "architecture", "data", "epochs", "k-NN", "linear"):
        table.add_column(column, no_wrap=column == "name")
    for name, entry in zoo.names().items():
        if name.endswith("_full"):
            continue
        window = f", window {entry['window']}" if "window" in entry else ""
        numbers = [str(entry["published"].get(what, "")) for what in ("knn", "linear")]
        what = entry["as"] if "as" in entry else f"{entry['arch']}/{entry['patch_size']}{window}"
        table.add_row(name, what, entry["data"], str(entry.get("epochs", "")), *numbers)
    return table


if __name__ == "__main__":
    sys.exit(run_command(main))
