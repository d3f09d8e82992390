"""Ends our processes with the process that started them, even if that was killed with SIGKILL.

A thread asks the system who the parent is. `prctl(PR_SET_PDEATHSIG)` would ask nothing, but it kills at the end of the thread
that has forked, and a loader may be begun in any; a pipe is held open by whatever the parent has forked since.
"""

import multiprocessing
import os
import signal
import threading
import time

EVERY = 1.0
"""Seconds between two looks."""

_watched = (0, 0)
"""Process ids of this process and of the parent that it ends with."""
_forking = 0
"""The process that forks just now."""


def end_with(parent: int) -> None:
    """Have this process killed as soon as its parent is no longer the one with this id."""
    global _watched  # noqa: PLW0603  # one of each process
    if _watched == (os.getpid(), parent):
        return
    _watched = (os.getpid(), parent)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_with_loader(_: int = 0) -> None:
    """`worker_init_fn` of a DataLoader: the worker ends with the process whose loader it serves."""
    loading = multiprocessing.parent_process()
    if loading is not None and loading.pid is not None:
        end_with(loading.pid)


def end_with_launcher() -> None:
    """End with torchrun, if it started this process."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())


def take_forked_along() -> None:
    """Have every process that is forked from here on, by whatever library, end with the one that forks it."""
    global _forking  # noqa: PLW0603
    if not _forking:
        os.register_at_fork(before=_about_to_fork, after_in_child=_forked)
    _forking = os.getpid()


def _about_to_fork() -> None:
    global _forking  # noqa: PLW0603
    _forking = os.getpid()


def _forked() -> None:
    end_with(_forking)
