"""A training to which every process sends itself Ctrl-C's signal after step 4.

torchrun ... -m tests.support.programs.interrupted FLAGS...      FLAGS: of `pretrain.train`
"""

import os
import signal
import sys

from checkpoints.cli import run_command
from pretrain import train

log = train.Progress.log


def stopping(self: train.Progress, done: int, *rest: object) -> None:
    log(self, done, *rest)  # type: ignore[arg-type]
    if done == 4:
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    train.Progress.log = stopping  # type: ignore[method-assign, assignment]
    sys.exit(run_command(train.main))
