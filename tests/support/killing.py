"""Start a training again and again, each time killed with SIGKILL at a random moment, until it ends by itself.

    python -m tests.support.killing MODULE SEED KILLS LONGEST FLAGS...      LONGEST: seconds that a training may live

Prints one JSON line: how many were killed, and how the last one went. Each training is a process of its own,
forked from this one so that torch is imported once; this process itself never computes.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from checkpoints.cli import run_command
from tests.support.modules import command_module


def start(module: Any, flags: list[str]) -> int:
    """The process id of a training in a session of its own."""
    child = os.fork()
    if child == 0:
        os.setsid()
        sys.stdout = sys.stderr
        code = 1
        try:
            code = run_command(module.main, flags)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return child


def wait(child: int, seconds: float | None) -> int | None:
    """The exit code, or None if it still runs after so many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def until_enough(attempt: Callable[[float], dict], longest: float, least: int) -> dict:
    """What the first `attempt(longest)` says that was killed at least `least` times; each next one lives half as long at most.

    An attempt begins afresh. How far a training comes in a second is the machine's matter, and it changes while tests run.
    """
    while (report := attempt(longest))["killed"] < least:
        longest /= 2
    return report


def main() -> None:
    module, chance = importlib.import_module(command_module(sys.argv[1])), random.Random(int(sys.argv[2]))
    kills, longest, flags = int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]
    killed, ended = 0, 0
    while killed < kills:
        child = start(module, flags)
        code = wait(child, chance.uniform(0.05, longest))
        if code is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
        elif code:
            sys.exit(f"a training failed with {code} after {killed} kills")
        else:
            ended += 1  # it was finished before it could be killed; from here on it only says so
            break
    began = time.monotonic()
    code = wait(start(module, flags), None)
    print(json.dumps({"killed": killed, "ended": ended, "code": code, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
