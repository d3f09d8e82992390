"""One measurement after the other, in this process, so that libraries are loaded once; what fails stops nothing else."""

import contextlib
import io
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints import reading, store, terminal
from checkpoints.cli import DONE, run_command
from probes import cluster, knn, logistic
from probes.compare.plan import Cell, Plan
from probes.linear import __main__ as linear
from probes.retrieval import __main__ as retrieval
from probes.segment import __main__ as segment
from probes.shared import record
from probes.shared.console import duration

MAINS: dict[str, Callable[[Sequence[str]], Any]] = {
    "knn": knn.main,
    "linear": linear.main,
    "logistic": logistic.main,
    "cluster": cluster.main,
    "retrieval": retrieval.main,
    "segment": segment.main,
}
INTERRUPTED = 130


class Done(NamedTuple):
    """A cell and what came of it: its record, or why there is none."""

    cell: Cell
    record: dict[str, Any] | None
    reason: str = ""
    seconds: float = 0.0


def run_all(plan: Plan, out: Path, again: bool) -> list[Done]:
    """Measure what has no record yet, with a line for each: what, its number, the time left. Raises KeyboardInterrupt."""
    found: list[Done] = []
    missing = [cell for cell in plan.cells if again or _record(out, cell) is None]
    began, number = time.perf_counter(), 0
    for cell in plan.cells:
        if cell not in missing:
            found.append(Done(cell, _record(out, cell)))
            continue
        one = measure(cell, out)
        found.append(one)
        number += 1
        left = (time.perf_counter() - began) / number * (len(missing) - number)
        what = f"{cell.probe}, {cell.data}, {cell.model}" + (f", seed {cell.seed}" if cell.seed else "")
        said = one.reason or "done"
        rest = f"; about {duration(left)} left" if number < len(missing) else ""
        terminal.say(f"[{number} of {len(missing)}] {what}: {said} ({duration(one.seconds)}{rest})", error=True)
    if len(missing) < len(plan.cells):
        there = len(plan.cells) - len(missing)
        terminal.say(f"{there} of {len(plan.cells)} measurements were there already in {out}", error=True)
    return found


def _path(out: Path, cell: Cell) -> Path:
    return out / "records" / f"{cell.name}.json"


def _record(out: Path, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell; None where there is none, or a damaged one."""
    try:
        return record.read(_path(out, cell))
    except ValueError:
        return None


def measure(cell: Cell, out: Path) -> Done:
    """Run the probe; what it prints goes to logs/NAME.log. Raises KeyboardInterrupt where it was told to stop."""
    began, said = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code, reason = _run(cell, [*cell.words, "--out", str(_path(out, cell))])
    seconds = time.perf_counter() - began
    log = out / "logs" / f"{cell.name}.log"
    store.write_bytes(log, said.getvalue().encode("utf-8", "backslashreplace"))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    found = _record(out, cell)
    if code == DONE and found is not None:
        return Done(cell, found, seconds=seconds)
    return Done(cell, None, reason or _last_line(log), seconds)


def _run(cell: Cell, words: Sequence[str]) -> tuple[int, str]:
    """Exit code, and a reason where the probe itself said none."""
    try:
        return run_command(MAINS[cell.probe], words), ""
    except SystemExit as error:  # a flag that tyro refuses
        return error.code if isinstance(error.code, int) else 1, ""
    except Exception as error:  # a bug of one probe stops the others as little as a user's mistake
        traceback.print_exc()
        return 1, f"failed: {type(error).__name__}: {store.first_line(error)}"


def _last_line(log: Path) -> str:
    lines = reading.text(log, reading.MOST_LISTED, "replace").strip().splitlines()
    sentence = next((line for line in reversed(lines) if line.startswith(("error: ", "failed: "))), lines[-1] if lines else "")
    return sentence[:300] or "it said nothing"
