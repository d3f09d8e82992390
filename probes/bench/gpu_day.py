"""All that is to be measured on a GPU, in one call of ten minutes: `tools/gpu_day.sh --out DIR --cifar10 DIR`.

Each part is a process with a time limit of its own. What is done is not done again; what was cut goes on in the next call.
DIR/gpu_day.json and DIR/gpu_day.md have every part's state and numbers, written after each.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from checkpoints import places, reading, store, terminal
from checkpoints.cli import DONE, FAILED, INTERRUPTED, UserError, parse, run_command
from pretrain.images.open import has_part
from probes.bench import day_plan, day_process
from probes.bench.day_plan import Part

LEAST = 8.0
"""Seconds: with less a part is not begun."""
STOPPED = 130
"""Exit code after a wish to stop, where the part that ran had nothing to save."""


@dataclass(frozen=True)
class GpuDayOptions:
    """Measure everything that needs a GPU, within a number of minutes; the same command goes on."""

    out: Path
    """The folder for gpu_day.json, gpu_day.md, logs, the trace and the runs."""
    cifar10: str | None = None
    """CIFAR-10: the folder of train.parquet and test.parquet (without it pretraining and its probes are left out)."""
    ade20k: str | None = None
    """Label maps for dense transfer, in ADE20K's layout (default: the embedded sample's)."""
    minutes: float = 10.0
    """Of this call; the limits of the parts grow and shrink with it."""
    tiny: bool = False
    """Almost no sizes: to try the whole day out, on a CPU too; the numbers say nothing."""


def main(arguments: Sequence[str]) -> int:
    chosen = parse(GpuDayOptions, arguments, prog="tools/gpu_day.sh")
    for flag, data in (("--cifar10", chosen.cifar10), ("--ade20k", chosen.ade20k)):
        if data is not None and not Path(data).exists():
            raise UserError(f"{flag} {data}: there is nothing of that name")
    if chosen.cifar10 is not None and not has_part(chosen.cifar10, "val"):
        raise UserError(
            f"--cifar10 {chosen.cifar10} has no test images: give the folder that holds train.parquet and test.parquet"
        )
    places.tried(chosen.out / "gpu_day.json")
    chosen.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    day = Day(chosen, device)
    for number, part in enumerate(day.parts):
        code = day.take(part, day.parts[number + 1 :])
        if code is not None:
            return code
    return day.code()


class Day:
    """The state of all parts, as gpu_day.json has it."""

    def __init__(self, chosen: GpuDayOptions, device: str) -> None:
        self.parts = day_plan.parts(chosen.out, chosen.cifar10, chosen.ade20k, device, tiny=chosen.tiny)
        self._out, self._scale = chosen.out, chosen.minutes / 10
        self._end = time.monotonic() + 60 * chosen.minutes
        self._name = torch.cuda.get_device_name() if device == "cuda" else "no GPU: these numbers are a CPU's"
        self.states: dict[str, dict[str, Any]] = _read(chosen.out / "gpu_day.json")
        self._went_on: set[str] = set()

    def take(self, part: Part, following: Sequence[Part]) -> int | None:
        """Run a part unless it is done; an exit code where the user asked to stop."""
        before = self.states.get(part.name, {})
        if part.lacking:
            self._note(part, "left out", part.lacking)
            return None
        if before.get("state") == "done" and before.get("words") == list(part.words) and part.after not in self._went_on:
            terminal.say(f"{part.name}: was done")
            return None
        if part.after and self.states.get(part.after, {}).get("state") not in ("done", "cut"):
            self._note(part, "failed", f"{part.after} has left no checkpoint")
            return None
        limit = self._limit(part, following)
        if limit < LEAST:
            self._note(part, "waiting", "no time was left: the same command goes on")
            return None
        terminal.say(f"{part.name}: at most {limit:.0f} s")
        ended = day_process.run(part.words, self._out / f"{part.name}.log", limit)
        self._went_on.add(part.name)
        saved = ended.code == INTERRUPTED
        if ended.code == 0:
            state = "done"
        elif ended.told or (ended.late and saved and part.takes_rest):
            state = "cut"
        else:
            state = "over its limit" if ended.late else "failed"
        numbers = _numbers(self._out / part.record) if part.record and state == "done" else {}
        self._note(part, state, ended.said, seconds=round(ended.seconds, 1), numbers=numbers)
        if ended.told:
            return INTERRUPTED if saved else STOPPED
        return None

    def _limit(self, part: Part, following: Sequence[Part]) -> float:
        left = self._end - time.monotonic()
        if not part.takes_rest:
            return min(part.seconds * self._scale, left)
        waiting = (one for one in following if not one.lacking and (one.after == part.name or not self._done(one)))
        return left - day_process.PATIENCE - sum(one.seconds * self._scale for one in waiting)

    def _done(self, part: Part) -> bool:
        return self.states.get(part.name, {}).get("state") == "done"

    def _note(self, part: Part, state: str, said: str, **more: Any) -> None:
        """Keep what came of a part, and write both files."""
        self.states[part.name] = {"state": state, "said": said, "words": list(part.words), **more}
        terminal.say(f"{part.name}: {state} ({said})")
        about = {"device": self._name, "torch": torch.__version__, "parts": self.states}
        store.write_bytes(self._out / "gpu_day.json", (json.dumps(about, indent=1) + "\n").encode())
        store.write_bytes(self._out / "gpu_day.md", self._table().encode())

    def _table(self) -> str:
        rows = ["| part | state | seconds | numbers |", "|---|---|---|---|"]
        for part in self.parts:
            one = self.states.get(part.name, {})
            numbers = "; ".join(f"{name} {value:.5g}" for name, value in one.get("numbers", {}).items())
            told = (numbers or str(one.get("said", ""))).replace("|", "/")
            rows.append(f"| {part.name} | {one.get('state', 'not begun')} | {one.get('seconds', '')} | {told} |")
        return f"# GPU day\n\n{self._name}, torch {torch.__version__}\n\n" + "\n".join(rows) + "\n"

    def code(self) -> int:
        """Of the whole day: 1 where a part failed or ran over its limit, 75 where one goes on in the next call."""
        found = {self.states[part.name]["state"] for part in self.parts}
        if found & {"failed", "over its limit"}:
            return FAILED
        return INTERRUPTED if found & {"cut", "waiting"} else DONE


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The parts that an earlier call has noted. Raises UserError where the file is another."""
    if not path.exists():
        return {}
    try:
        parts = json.loads(reading.text(path))["parts"]
    except (ValueError, KeyError, TypeError):
        parts = None
    if not isinstance(parts, dict) or not all(isinstance(one, dict) for one in parts.values()):
        raise UserError(f"{path} is not what this command has written: give another --out")
    return parts


def _numbers(path: Path) -> dict[str, float]:
    """The numbers of a part's JSON, by names with dots between; of a probe's record its metrics."""
    content = json.loads(reading.text(path))
    found: dict[str, float] = {}

    def walk(value: object, name: str) -> None:
        if isinstance(value, Mapping):
            for key, below in value.items():
                walk(below, f"{name}.{key}" if name else str(key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = float(value)

    walk(content.get("metrics", content), "")
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
