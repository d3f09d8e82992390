"""One step that is told to stop; the exit code is what the step answers with.

python -m tests.support.programs.stoppable_step NAME WORK      WORK: Python that the step runs
"""

import sys
from pathlib import Path

from probes.shared.subprocesses import Stopped, run_once

if __name__ == "__main__":
    try:
        run_once(["-c", sys.argv[2]], Path(sys.argv[1]))
    except Stopped as stop:
        sys.exit(stop.code)
