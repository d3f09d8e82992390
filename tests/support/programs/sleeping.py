"""How often threads went to sleep while a thousand operations were shared between two, beside an idle pool.

    python -m tests.support.programs.sleeping CORES      CORES: numbers with commas, the only ones to be used

Prints that number. `libgomp` counts the cores when it is loaded, so that they are chosen before torch is.
"""

import os
import sys

os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})

import resource  # noqa: E402
import time  # noqa: E402

import torch  # noqa: E402

from checkpoints import neighbours  # noqa: E402

OPERATIONS, PAUSE = 1000, 5e-5


def sleeps() -> int:
    """Voluntary context switches of all threads of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def main() -> None:
    values = torch.zeros(1 << 17)
    values.add_(1)  # the pool that computes is there before the idle one
    pool = neighbours.IdlePool()
    pool.open()
    time.sleep(0.5)
    before = sleeps()
    for _ in range(OPERATIONS):
        values.add_(1)
        end = time.perf_counter() + PAUSE
        while time.perf_counter() < end:
            pass
    print(sleeps() - before)


if __name__ == "__main__":
    main()
