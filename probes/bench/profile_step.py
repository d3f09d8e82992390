"""Where a training step's time goes: `python -m probes.bench.profile_step --out DIR`.

Steps of `probes/bench/step.py` under torch's profiler: a trace for chrome://tracing or Perfetto, and a table of the kernels that
take longest.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from checkpoints import places, store, terminal
from checkpoints.cli import WorkError, parse, run_command
from probes.bench import step as bench_step

WARM = 3
"""Steps before those that are looked at."""
ROWS = 40


@dataclass(frozen=True)
class ProfileOptions(bench_step.BenchStepOptions):
    """Profile training steps as training does them on this device (or another --variant)."""

    out: Path = Path("profile")
    """The folder for trace.json, top_kernels.txt and profile.json."""
    steps: int = 20
    """Profiled steps."""


def profiled(prepared: bench_step.Prepared, steps: int, device: torch.device) -> tuple[Any, float]:
    """torch's profile of so many steps, and their seconds, the profiler's own work included."""
    for _ in range(WARM):
        prepared.take()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    began = time.perf_counter()
    with profile(activities=activities) as found:
        for _ in range(steps):
            prepared.take()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return found, time.perf_counter() - began


def main(arguments: Sequence[str]) -> None:
    chosen = parse(ProfileOptions, arguments, prog="python -m probes.bench.profile_step")
    variant = "ours" if chosen.variant == "all" else chosen.variant
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if variant == "original":
        bench_step.required_clone(chosen)
    trace = chosen.out / "trace.json"
    places.tried(trace)
    chosen.out.mkdir(parents=True, exist_ok=True)  # the profiler makes none, and only logs that it could not write
    found, seconds = profiled(bench_step.prepare(bench_step.of_variant(chosen, variant), device), chosen.steps, device)
    found.export_chrome_trace(os.fspath(trace))
    if not trace.is_file():
        raise WorkError(f"{trace} was not written: see what the profiler says above")
    averages, on = found.key_averages(), "device" if device.type == "cuda" else "cpu"
    table = averages.table(sort_by=f"self_{on}_time_total", row_limit=ROWS)
    store.write_bytes(chosen.out / "top_kernels.txt", table.encode())
    top = sorted(averages, key=lambda one: -getattr(one, f"self_{on}_time_total"))[:5]
    numbers = {"steps": chosen.steps, "ms_a_step_profiled": 1000 * seconds / chosen.steps}
    numbers |= {f"ms a step: {one.key[:60]}": getattr(one, f"self_{on}_time_total") / 1000 / chosen.steps for one in top}
    bench_step.write_json(chosen.json or chosen.out / "profile.json", numbers)
    terminal.say(f"{chosen.steps} steps profiled: {trace} and top_kernels.txt beside it")


if __name__ == "__main__":
    sys.exit(run_command(main))
