"""Imports libraries from another current folder, so that nothing they load on import is taken from the user's.

It may hold somebody's data, and matplotlib would take a `matplotlibrc` from it, numba its settings, and torch the driver itself:
NVIDIA's libcusparseLt.so.0 has an empty entry in its list of folders to search (DT_RPATH), which stands for the current one and
comes before the system's, so that importing torch would run a `libcuda.so.1` that lies there.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import TracebackType

from checkpoints import placeholders


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Context in which the current folder is the root of the file system, where only the system's owner puts files.

    Not this project's own, which holds an `inspect.py`. Not where another thread opens files by relative names.
    """
    before = os.open(os.curdir, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    os.chdir("/")
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def imported(module: str) -> object:
    """A library by its name."""
    with elsewhere():
        return importlib.import_module(module)


def prepare() -> None:
    """Before a package of ours imports anything: torch is there, and for commands the path has no part of the current folder."""
    if sys.argv[:1] == ["-m"]:  # so Python says while it looks for the module that it is to run
        sys.path[:] = absolute(sys.path)
        sys.excepthook = shortly
    placeholders.install(os.path.join(os.path.dirname(os.path.realpath(__file__)), "start.py"))
    imported("torch")


def shortly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An excepthook: Ctrl-C while libraries are still imported is a word, and no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def absolute(path: list[str]) -> list[str]:
    """Python's path without relative entries: installers' placeholders are relative, and such a folder may exist."""
    return [entry for entry in path if os.path.isabs(entry) or not os.path.lexists(entry)]
