"""A training whose disk is full at step 10: a limit on the size of files, which the system refuses in the same way.

python -m tests.support.programs.full_disk FLAGS...      FLAGS: of `pretrain.train`
"""

import resource
import signal
import sys
from typing import Any

from checkpoints.cli import run_command
from pretrain import train

save = train.Run.save


def limited(self: train.Run, step: int, *rest: Any) -> None:
    if step == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    save(self, step, *rest)


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    train.Run.save = limited  # type: ignore[method-assign, assignment]
    sys.exit(run_command(train.main, sys.argv[1:]))
