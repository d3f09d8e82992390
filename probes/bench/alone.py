"""One row of a bench's table, measured in a process of its own: so that each has a peak of memory of its own."""

import json
import subprocess

from checkpoints.cli import WorkError
from checkpoints.start import child


def numbers(name: str, module: str, *arguments: object) -> dict[str, float]:
    """What this module of the benches prints as its last line, JSON. Raises WorkError, with the row's `name`, where it fails."""
    done = subprocess.run(child(module, *arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines() or ["no memory, perhaps"]
        raise WorkError(f"{name} failed: {why[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
