"""The record that every measurement writes: one JSON file with all that is needed to believe it or to repeat it."""

import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from checkpoints import escape, places, store, terminal
from checkpoints.cli import UserError, WorkError
from pretrain.engine import distributed
from pretrain.models.backbone import Loaded

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "faiss-cpu", "scikit-learn")


def write(
    path: Path,
    *,
    probe: str,
    table: str,
    loaded: Loaded,
    data: Mapping[str, Any],
    protocol: Mapping[str, Any],
    metrics: Mapping[str, float],
    seconds: float,
    device: str,
) -> None:
    """Write one record and say so; `metrics` are plain numbers. Only the main process writes. Raises UserError if it cannot.

    Raises WorkError, and writes nothing, where a number is not finite.

    `table` names the paper's table (`probes/paper/paper.json`).
    """
    if not distributed.is_main():
        return
    strange = [name for name, value in metrics.items() if not math.isfinite(value)]
    if strange:
        raise WorkError(f"{strange[0]} is not finite ({metrics[strange[0]]}): no record is written to {path}")
    record = {
        "schema": SCHEMA,
        "probe": probe,
        "table": table,
        "checkpoint": {
            "path": str(loaded.path),
            "sha256": store.sha256(loaded.path) if loaded.path.is_file() else None,  # timm's own weights are no one file
            "arch": loaded.backbone.shape.arch,
            "patch_size": loaded.backbone.shape.patch_size,
            "window": loaded.backbone.shape.window or None,
            "epoch": loaded.epoch,
        },
        "data": dict(data),
        "protocol": dict(protocol),
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
        "seconds": round(seconds, 2),
        "device": device,
        "versions": versions(),
    }
    try:
        store.write_bytes(path, escape.json_text(record).encode())
    except OSError as error:
        raise UserError(f"cannot write the record to {path} ({error.strerror}): give another --out") from error
    terminal.say(f"record written to {path}")


def default_path(loaded: Loaded, name: str, suffix: str = ".json") -> Path:
    """Where a record, or what else a probe leaves, goes unless told: `results/` beside the checkpoint file.

    Raises UserError where that is a link.
    """
    return places.below(loaded.path.parent, "results", f"{name}{suffix}")


def versions() -> dict[str, str]:
    """Of Python and of what numbers may depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
