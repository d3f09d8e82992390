"""A training to which every process sends itself Ctrl-C's signal after step 4. It says which thread writes its checkpoints.

torchrun ... -m tests.support.programs.interrupted FLAGS...      FLAGS: of `pretrain.train`
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints import store
from checkpoints.cli import run_command
from pretrain import train

log, save_run = train.Progress.log, store.save_run


def stopping(self: train.Progress, done: int, *rest: object) -> None:
    log(self, done, *rest)  # type: ignore[arg-type]
    if done == 4:
        os.kill(os.getpid(), signal.SIGINT)


def told(folder: Path, state: Mapping[str, Any]) -> Path:
    print(f"written by thread {threading.current_thread().name}")
    return save_run(folder, state)


if __name__ == "__main__":
    train.Progress.log = stopping  # type: ignore[method-assign, assignment]
    store.save_run = told
    sys.exit(run_command(train.main))
