"""One line for each start or resumption of a run: time, machine, versions (`starts.jsonl` in its folder)."""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

from checkpoints import store
from pretrain.engine import distributed

PACKAGES = ("torch", "torchvision", "timm", "numpy")


def note(folder: Path, step: int, device: torch.device, precision: str) -> None:
    """Append a line, in the main process only. Raises WorkError if it cannot be written."""
    if not distributed.is_main():
        return
    line = {
        "step": step,
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count() or 1,
        "processes": distributed.world_size(),
        "precision": precision,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    store.append(folder / "starts.jsonl", json.dumps(line) + "\n")


def processor() -> str:
    """Name of the CPU's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
