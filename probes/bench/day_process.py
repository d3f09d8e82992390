"""A part of the GPU day as a process of its own that ends within its limit, and with a wish to stop."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from checkpoints import reading, start, store

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 20.0
"""Seconds in which a process that was told to end may save; then it and all that it started is killed."""


class Ended(NamedTuple):
    """How a process came to its end."""

    code: int
    seconds: float
    late: bool
    """It was ended at its limit."""
    told: bool
    """The user asked to stop."""
    said: str
    """Its last line."""


def run(words: Sequence[str], log: Path, limit: float) -> Ended:
    """Run one of our modules, its output in `log`. Ctrl-C and SIGTERM are passed on; after `limit` seconds it is told to end."""
    told: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    began = time.monotonic()
    late = False
    try:
        with store.new_file(log) as output:
            process = subprocess.Popen(
                start.child(*words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            asked = 0.0
            while process.poll() is None:
                now = time.monotonic()
                late = late or (not told and now - began > limit)
                if (told or late) and not asked:
                    process.send_signal(told[0] if told else signal.SIGTERM)
                    asked = now
                if asked and now - asked > PATIENCE:
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    lines = reading.text(log, errors="replace").strip().splitlines() or ["it said nothing"]
    return Ended(process.returncode, time.monotonic() - began, late, bool(told), lines[-1][:200])
