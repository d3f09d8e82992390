"""Commands as people type them: in this process and in one of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from checkpoints.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "support" / "programs"
HEADS = (
    "--local-crops-number 2 --out-dim 32 --patch-out-dim 32 --head-hidden-dim 32 --head-bottleneck-dim 16 --workers 0 "
    "--knn-every 1 --report false"
).split()
"""Small heads, for any backbone."""
SIZES = "--width 64 --patch-size 8 --global-crops-size 32 --local-crops-size 16".split()
SHORT = "--batch-size-per-gpu 8 --pred-ratio 0 0.3 --pred-ratio-var 0 0.2 --warmup-epochs 1 --log-every 2".split()
SMALL = [*"--arch vit_tiny --depth 2".split(), *SIZES, *HEADS, *SHORT]
"""A training of ViT whose step takes a few hundredths of a second; needs --data, --out, and --epochs or --steps."""
QUICK = [*SIZES, *HEADS, *"--depth 1 --batch-size-per-gpu 4 --precision fp32 --compile off".split()]
"""What is added to a recipe so that its step takes no time."""


def command(*arguments: str, **environment: str) -> dict[str, Any]:
    """What `subprocess` takes to start Python with these words in the project's folder."""
    return {
        "args": [sys.executable, *arguments],
        "cwd": ROOT,
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def program(name: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """One of tests/support/programs in a process of its own."""
    return command("-m", f"tests.support.programs.{name}", *arguments, **environment)


def exit_code(main: Callable[[Sequence[str]], Any], arguments: list[str]) -> int:
    """Of a command, whether it returns one or exits with one."""
    try:
        return run_command(main, arguments)
    except SystemExit as exit:
        return int(exit.code or 0)
