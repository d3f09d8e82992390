"""torchrun for our tools: errors of its processes are not repeated, and its exit code is theirs.

torchrun itself prints forty lines for a failed process, and always exits with 1.
"""

import logging
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from checkpoints import terminal
from checkpoints.cli import FAILED, INTERRUPTED, WRONG_COMMAND


def main(words: Sequence[str]) -> int:
    """Start processes with torchrun's own flags, wait for all; an exit code."""
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(list(words)))
    except ChildFailedError as error:
        return _code(error.failures)
    except SignalException:  # its processes have been told, have saved, and said so
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _code(failures: Mapping[int, Any]) -> int:
    """The processes' exit code; prints a message for those that could not print one themselves."""
    killed = [(rank, one) for rank, one in sorted(failures.items()) if one.exitcode < 0]
    codes = {one.exitcode for one in failures.values()}
    dead = [(rank, one) for rank, one in killed if one.exitcode not in (-signal.SIGTERM, -signal.SIGINT)]
    if not dead and all(code < 0 for code in codes):  # else torchrun has ended the others after one that has said why
        dead = killed
    if dead and (INTERRUPTED not in codes or dead[0][1].exitcode == -signal.SIGKILL):
        rank, one = dead[0]
        name = signal.Signals(-one.exitcode).name
        why = "the machine or the container ran out of memory, perhaps" if one.exitcode == -signal.SIGKILL else "see above"
        terminal.say(
            f"failed: process {rank} (pid {one.pid}) was killed by {name} ({why}), and the others were ended: "
            "the same command goes on from the last checkpoint",
            error=True,
        )
        return FAILED
    return next((code for code in (INTERRUPTED, WRONG_COMMAND) if code in codes), FAILED)
