"""Read files that may be attacks, each in a child of its own, and print what became of each as one JSON object.

    python -m tests.support.programs.read_hostile JOB FILE...      JOB: one of READERS

By the file's name: `read`, `refused: why`, or what else has happened: a traceback, a signal, memory, a changed torch.
"""

import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from checkpoints import published, store
from checkpoints.cli import UserError
from pretrain.tokenizers import dalle_pickle
from probes.retrieval import revisited

READERS: dict[str, Callable[[Path], object]] = {
    "truth": revisited.read_truth,
    "weights": published.read,
    "run": lambda path: store.load_run(path.parent),
    "dalle": dalle_pickle.read,
}
REBUILD: Any = torch._utils._rebuild_tensor_v2
"""A function of torch that a file may name, and so could change."""
BEFORE = REBUILD.__defaults__, dict(vars(REBUILD))
LONGEST = 30
"""Seconds that a file may take."""
ADDRESSES, MEMORY = 3 << 30, 300
"""Bytes of addresses that a child may have more than this process, and MB that a file may take."""


def outcome_of(read: Callable[[Path], object], path: Path) -> str:
    """What reading it here leads to."""
    try:
        read(path)
    except UserError as error:
        said = f"refused: {error}"
    except BaseException as error:
        said = f"traceback: {error!r}"[:200]
    else:
        said = "read"
    return said if (REBUILD.__defaults__, dict(vars(REBUILD))) == BEFORE else "torch was changed"


def child(read: Callable[[Path], object], path: Path, size: int, out: int) -> None:
    """Writes the outcome and the memory it took into the pipe `out`; ends the process."""
    signal.alarm(LONGEST)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = outcome_of(read, path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    os.write(out, f"{said} MEMORY {grown}".encode("utf-8", "replace"))
    os._exit(0)


def apart(read: Callable[[Path], object], path: Path, size: int) -> str:
    """The outcome in a child."""
    into, out = os.pipe()
    pid = os.fork()
    if not pid:
        child(read, path, size, out)
    os.close(out)
    with open(into, "rb") as stream:
        said, _, grown = stream.read().decode().partition(" MEMORY ")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
    return said if int(grown) <= MEMORY else f"took {grown} MB: {said}"


def main() -> None:
    warnings.simplefilter("ignore")
    read = READERS[sys.argv[1]]
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    print(json.dumps({name: apart(read, Path(name), size) for name in sys.argv[2:]}))


if __name__ == "__main__":
    main()
