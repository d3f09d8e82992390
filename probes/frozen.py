"""What the commands of this floor share that show or test a frozen backbone: options, the backbone on its device, progress."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from checkpoints.command import UserError
from pretrain.backbone import Backbone, Loaded, load_backbone

T = TypeVar("T")
LINES_EVERY = 10.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Frozen:
    """Options of every such command."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME (default: the newest run)."""
    data: str = "sample"
    """`sample`, or a folder in the layout that this command's page describes (docs/robustness-and-pictures.md)."""
    key: Literal["teacher", "student"] = "teacher"
    """Which network."""
    limit: int | None = None
    """Use at most this many of each part."""
    batch_size: int = 64
    """Images a forward."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:1`, ... (default: a GPU where there is one)."""
    seed: int = 0
    """Of everything that is drawn."""
    out: Path | None = None
    """What is written (default: results/ beside the checkpoint)."""


class Subject(NamedTuple):
    """A frozen backbone and where it lies."""

    loaded: Loaded
    device: torch.device

    @property
    def backbone(self) -> Backbone:
        return self.loaded.backbone


def subject(options: Frozen, *, full: bool = False) -> Subject:
    """The backbone that the options name; `full` reads heads too. Raises UserError for values without meaning."""
    for name in ("limit", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more")
    device = named_device(options.device)
    loaded = load_backbone(options.ckpt, key=options.key, full=full)
    if loaded.backbone.shape.channels != 3:
        raise UserError(f"{loaded.path} takes {loaded.backbone.shape.channels} channels: this command is for pictures of three")
    return Subject(loaded._replace(backbone=loaded.backbone.to(device)), device)


def named_device(name: str | None) -> torch.device:
    """None is a GPU where there is one. Raises UserError for a device that is not there."""
    wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {wanted} cannot be used here: give cpu, or cuda where there is a GPU") from error
    return device


def steps(what: str, every: Iterable[T], total: int) -> Iterator[T]:
    """The same things one by one, with a line on stderr now and then."""
    began = said = time.perf_counter()
    for number, one in enumerate(every, 1):
        yield one
        now = time.perf_counter()
        if now - said >= LINES_EVERY and number < total:
            left = (now - began) / number * (total - number)
            print(f"{what}: {number} of {total}, {left:.0f} s left", file=sys.stderr, flush=True)
            said = now


def show(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on stdout: the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table, markup=False)
