"""Small trainings that have ended."""

from pathlib import Path

from checkpoints.cli import DONE, run_command
from pretrain import train
from tests.support.commands import SMALL


def trained(out: Path, *flags: object) -> Path:
    """The folder of a run of `SMALL` with these flags more."""
    assert run_command(train.main, [*SMALL, *map(str, flags), "--out", str(out)]) == DONE
    return out
