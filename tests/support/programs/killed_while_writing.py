"""Two checkpoints written by the thread; the process is killed in the middle of the second.

python -m tests.support.programs.killed_while_writing FOLDER
"""

import os
import signal
import sys
from pathlib import Path

from tests.support.saving import saved_by_thread

if __name__ == "__main__":
    save = saved_by_thread(Path(sys.argv[1]))
    save.at(1)
    save.run.writer.wait()
    os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
    save.at(2)
    save.run.writer.wait()
