"""Commands as processes of their own: what has ended well stays done, and a wish to stop reaches the one that runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from checkpoints import places, reading, start, store
from checkpoints.cli import INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED = 130
"""Exit code after Ctrl-C, where the process had nothing to save."""


class Stopped(Exception):
    """The user asked to stop; `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped ({code})")
        self.code = code


class Ended(NamedTuple):
    """Result of a command."""

    ok: bool
    said: str
    seconds: float


def run_once(words: Sequence[str], name: Path, key: Sequence[str] = ()) -> Ended:
    """Run python with these words, unless the same words (and `key`) have ended well before.

    Its output goes to `name`.log, the mark to `name`.done. Raises Stopped where it was told to stop.
    """
    mark, log = Path(f"{name}.done"), Path(f"{name}.log")
    wanted, began = json.dumps([*key, *words]), time.perf_counter()
    if mark.is_file() and reading.text(mark, errors="replace") == wanted:
        return Ended(True, "was done", 0.0)
    for path in (mark, log):
        places.refuse_link(path)
    name.parent.mkdir(parents=True, exist_ok=True)
    code = _run(words, log)
    seconds = time.perf_counter() - began
    if code == 0:
        store.write_bytes(mark, wanted.encode())
        return Ended(True, "done", seconds)
    lines = reading.text(log, reading.MOST_LISTED, "replace").strip().splitlines() or ["it said nothing"]
    return Ended(False, f"failed ({lines[-1][:200]}; see {os.fspath(log)})", seconds)


def _run(words: Sequence[str], log: Path) -> int:
    """The exit code. The process has a session of its own, so that Ctrl-C reaches it once, from here.

    Signals are answered before it starts: one that is started while Ctrl-C is ignored, as behind a shell's `&`, ignores it too.
    """
    told: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    with store.new_file(log) as output:
        try:
            process = subprocess.Popen(
                start.child(*words[1:]) if words[0] == "-m" else [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running.append(process)
            if told:
                process.send_signal(told[0])
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if told or code == INTERRUPTED:
        raise Stopped(INTERRUPTED if code == INTERRUPTED else STOPPED)
    return code
