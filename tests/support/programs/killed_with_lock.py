"""A process that takes a lock and is killed with it.

python -m tests.support.programs.killed_with_lock LOCK
"""

import os
import signal
import sys
from pathlib import Path

from checkpoints import hold

if __name__ == "__main__":
    hold.taken(Path(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGKILL)
