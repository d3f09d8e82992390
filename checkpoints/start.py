"""Starts our modules: nothing is imported from the current folder, and a child ends with its parent.

    python checkpoints/start.py [--parent PID] MODULE ARGUMENTS...

does what `python -m MODULE ARGUMENTS...` does, but for the current folder, which `-m` puts before everything else on the path: it
may hold data, and a `tifffile.py` beside them. tools/ start everything so, and commands each other (`child`). What is
typed as `python -m` is protected by the packages' `__init__.py`.
"""

import os
import sys

FILE = os.path.realpath(__file__)
ROOT = os.path.dirname(os.path.dirname(FILE))


def child(module: str, *arguments: object) -> list[str]:
    """The words that start a module as a process that ends, at the latest, with this one."""
    return [sys.executable, FILE, "--parent", str(os.getpid()), module, *map(str, arguments)]


def leave_current_folder() -> None:
    """Take the current folder and whatever is named relative to it off the path of this process and of those that it starts.

    An empty entry of PYTHONPATH is the current folder too. The folder that this project is in is on the path in any case.
    """
    here, named = os.path.realpath(os.curdir), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in named if os.path.isabs(entry) and os.path.realpath(entry) not in (here, ROOT)]
    off = {here, os.path.dirname(FILE), *(os.path.realpath(entry) for entry in named if entry not in kept)}
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) not in off and not _lies_here(entry)]
    if ROOT not in map(os.path.realpath, sys.path):  # it is, for good, where it is one of the interpreter's own folders
        sys.path.insert(0, ROOT)
        kept.insert(0, ROOT)
    os.environ |= {"PYTHONPATH": os.pathsep.join(kept), "PYTHONSAFEPATH": "1"}


def _lies_here(entry: str) -> bool:
    """Whether an entry of the path is relative, as an installer's placeholder is: a folder of that name may exist here."""
    return not os.path.isabs(entry) and os.path.lexists(entry)


SHORT = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0"}
"""Threads that wait for each other spin for about a third of a millisecond, then sleep: without other work on the machine that
is as fast as spinning for ever; beside other work `checkpoints/neighbours.py` makes them sleep at once. GNU's OpenMP, which
torch has, reads the first, LLVM's and Intel's the second, when they are loaded."""
WAITING = ("OMP_WAIT_POLICY", *SHORT)


def wait_shortly() -> None:
    """Set SHORT unless the user has set how threads wait. Before torch is imported: it is read then and never again."""
    if not any(name in os.environ for name in WAITING):
        os.environ.update(SHORT)


def main() -> None:
    wait_shortly()
    leave_current_folder()
    import runpy  # noqa: PLC0415  # only now: until here the path began with the folder of this file

    from checkpoints import parent  # noqa: PLC0415

    words = sys.argv[1:]
    parent.end_with_launcher()
    if words[:1] == ["--parent"]:
        parent.end_with(int(words[1]))
        words = words[2:]
    if words[0] == "torch.distributed.run" and "-m" in words:  # its processes are started like this one
        words[words.index("-m")] = FILE
    sys.argv[1:] = words[1:]
    if words[0] == "torch.distributed.run":
        from checkpoints import launch  # noqa: PLC0415

        sys.exit(launch.main(words[1:]))
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
