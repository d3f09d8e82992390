"""A step of `probes.reproduce` that serves the live report of a folder.

python -m tests.support.programs.live_step FOLDER
"""

from collections.abc import Sequence
from pathlib import Path

from checkpoints.cli import run_command
from probes.shared.subprocesses import run_once


def main(words: Sequence[str]) -> None:
    run_once(["-m", "probes.live", words[0], "--port", "0"], Path(words[0]) / "step")


if __name__ == "__main__":
    run_command(main)
