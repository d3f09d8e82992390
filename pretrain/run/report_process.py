"""A run's report, live and at its end. Its commands (`probes.live`, `probes.report`) are on the floor above, so it is started as
a process; its failure does not stop the training.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from checkpoints import escape, start
from pretrain.engine import distributed

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of torchrun for its processes, which the page's process must not have."""
LONGEST = 1800
"""Seconds that a page may take."""
NAME = "report.html"


def missing(folder: Path, newer_than: str) -> bool:
    """Whether the run's page is not there, or older than a file of the run."""
    page, file = folder / NAME, folder / newer_than
    return file.exists() and not (page.exists() and page.stat().st_mtime >= file.stat().st_mtime)


def write(folder: Path, data: str) -> str:
    """Have the report written, with pictures of `data`, which the user has given to this run; what to say of it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the page computes features on the same GPU
    words = ["probes.report", str(folder), "--data", data]
    again = f"{escape.shell(['python', '-m', *words])} tries again"
    command = start.child(*words)
    try:
        done = subprocess.run(
            command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST, check=False
        )
    except (OSError, subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        return f"no report was written ({type(error).__name__}): {again}"
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"no report was written ({why}): {again}"
    return f"report: {folder / NAME}"


@contextlib.contextmanager
def live(folder: Path, port: int | None, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, a server of the main process shows the run's log at this port; `say` gets its address, or why there is none."""
    if port is None or not distributed.is_main():
        yield
        return
    command = start.child("probes.live", folder, "--port", port, "--attached", "true")
    server = subprocess.Popen(  # in a session of its own: Ctrl-C is the training's, and the server ends when its input is closed
        command,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        say(server.stdout.readline().strip() or "the live report could not be started")
        yield
    finally:
        with contextlib.suppress(OSError):
            server.stdin.close()
        server.terminate()  # a worker that is left over may hold its input open
        server.wait()
        server.stdout.close()


def _environment() -> dict[str, str]:
    """This process's, less the launcher's."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER and not name.startswith("TORCHELASTIC")}
    return kept | {"PYTHONWARNINGS": "ignore"}
