"""Ask commands for their --help, each in a fork of this process, so that torch is imported once.

    python -m tests.support.programs.help_of [--quick] MODULE...

Prints a JSON object: by module, its exit code and what it printed on both outputs. With --quick as the commands themselves do it,
without heavy libraries; those that are loaded all the same are named in a last line of what was printed.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from typing import IO

QUICK = sys.argv[1:2] == ["--quick"]
if QUICK:
    words, sys.argv = sys.argv, ["-m", "--help"]
    from checkpoints import placeholders

    sys.argv = words[1:]
else:
    import torch  # noqa: F401 (what takes long)


def child(module: str, output: IO[bytes]) -> None:
    """`python -m MODULE --help`; ends the process."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    sys.argv = [module, "--help"]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if QUICK:
        heavy = [name for name in sorted(placeholders.HEAVY) if hasattr(sys.modules.get(name), "__file__")]
        print(f"loaded: {' '.join(heavy)}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def asked(module: str) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if not pid:
            child(module, output)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        return code, output.read().decode()


if __name__ == "__main__":
    print(json.dumps({module: asked(module) for module in sys.argv[1:]}))
