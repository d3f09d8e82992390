"""The record that every measurement writes: one JSON file with all that is needed to believe it or to repeat it."""

import contextlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from checkpoints import checked, escape, places, reading, store, terminal
from checkpoints.cli import UserError, WorkError
from pretrain.engine import distributed
from pretrain.evaluate import faiss_library
from pretrain.models.backbone import Loaded
from probes.shared import record_name

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")


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
    intervals: Mapping[str, tuple[float, float]] | None = None,
    beside: Mapping[str, Callable[[Path], None]] | None = None,
) -> Path:
    """Write one record and say so; where it is. Only the main process writes. Raises UserError if it cannot.

    `metrics` are plain numbers; raises WorkError, and writes nothing, where one is not finite. `table` names the paper's table
    (`probes/paper/paper.json`), `intervals` the 95 % of those that have one (`probes/shared/metrics.py`). `beside` writes what
    belongs to it, by the ending that its name has in place of `.json`. A record of another checkpoint, data set or protocol, or
    with other numbers, that has this name is kept under another (`_make_way`).
    """
    if not distributed.is_main():
        return path
    strange = [name for name, value in metrics.items() if not math.isfinite(value)]
    if strange:
        raise WorkError(f"{strange[0]} is not finite ({metrics[strange[0]]}): no results are written to {path}")
    record = {
        "schema": SCHEMA,
        "probe": probe,
        "table": table,
        "checkpoint": {
            "path": str(loaded.path),
            "sha256": record_name.identity(loaded) if loaded.path.is_file() else None,  # timm's own weights are no one file
            "weights": None if loaded.path.is_file() else record_name.identity(loaded),
            "arch": loaded.backbone.shape.arch,
            "patch_size": loaded.backbone.shape.patch_size,
            "window": loaded.backbone.shape.window or None,
            "epoch": loaded.epoch,
        },
        "data": dict(data),
        "protocol": dict(protocol),
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
        "intervals": {name: [round(low, 4), round(high, 4)] for name, (low, high) in (intervals or {}).items()},
        "seconds": round(seconds, 2),
        "device": device,
        "versions": versions(),
    }
    content, beside = escape.json_text(record).encode(), beside or {}
    try:
        path = _make_way(path, json.loads(content), tuple(beside))
        store.write_bytes(path, content)
        for suffix, write_it in beside.items():  # then: what fails here must not lose the numbers
            write_it(_companion(path, suffix))
    except OSError as error:
        raise UserError(f"cannot write the results to {path} ({error.strerror}): give another --out") from error
    terminal.say(f"results written to {path}")
    return path


def _make_way(path: Path, record: Mapping[str, Any], beside: tuple[str, ...]) -> Path:
    """Path for a record. A record of other content in its place is renamed, with its companions, to `NAME-1.json` and so on.

    A file that is no record stays, and the new one gets such a name. Raises OSError.
    """
    if not os.path.lexists(path):
        return path
    there = _whole(path)
    if there is not None and _same(there, record):
        return path
    wanted, number = there or record, 1
    while os.path.lexists(other := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        found = _whole(other)
        if found is not None and _same(found, wanted):
            break
        number += 1
    if there is None:
        terminal.say(f"note: {path} holds no results and stays; these are in {other.name}")
        return other
    for suffix in beside:
        with contextlib.suppress(FileNotFoundError):
            os.replace(_companion(path, suffix), _companion(other, suffix))
    os.replace(path, other)
    terminal.say(f"note: {path} {_difference(there, record)}: kept as {other.name}")
    return path


NEEDED = ("schema", "probe", "checkpoint", "metrics")
"""Fields that every record has, and other JSON does not."""
LATER: dict[str, Any] = {
    "table": "",
    "data": {},
    "protocol": {},
    "intervals": {},
    "seconds": 0.0,
    "device": "unknown",
    "versions": {},
}
"""Fields that older records lack, and their defaults."""


def read(path: Path) -> dict[str, Any] | None:
    """A record; None for what is none, or cannot be read. Raises UserError, with the field, for one that was damaged."""
    try:
        found = reading.values(path)
    except (OSError, ValueError):
        return None
    return validated(found, str(path)) if isinstance(found, dict) and found.keys() >= set(NEEDED) else None


def validated(content: Any, where: str) -> dict[str, Any]:
    """A record whose parts are of the kinds that pages and tables take them for; metrics that are not finite are left out.

    Raises UserError that names what is otherwise.
    """
    found = LATER | checked.mapping(content, where, NEEDED)
    checked.count(found["schema"], f"{where}: schema", 1, SCHEMA)
    for name in ("probe", "table", "device"):
        checked.text(found[name], f"{where}: {name}")
    checked.number(found["seconds"], f"{where}: seconds", 0)
    checkpoint = checked.mapping(found["checkpoint"], f"{where}: checkpoint", ("path", "arch"))
    for name in ("path", "arch", "sha256"):
        if checkpoint.get(name) is not None or name != "sha256":
            checked.text(checkpoint[name], f"{where}: checkpoint: {name}")
    for name in ("patch_size", "window", "epoch"):
        if checkpoint.get(name) is not None:
            checked.count(checkpoint[name], f"{where}: checkpoint: {name}")
    checked.mapping(found["protocol"], f"{where}: protocol")
    images = checked.mapping(found["data"], f"{where}: data")
    for name in ("train", "val", "root"):
        if images.get(name) is not None:
            checked.text(images[name], f"{where}: data: {name}")
    for name, version_ in checked.mapping(found["versions"], f"{where}: versions").items():
        checked.text(version_, f"{where}: versions: {name}")
    for name, ends in checked.mapping(found["intervals"], f"{where}: intervals").items():
        for end in (*checked.listed(ends, f"{where}: intervals: {name}"), None)[:2]:
            checked.number(end, f"{where}: intervals: {name}")
    metrics = checked.mapping(found["metrics"], f"{where}: metrics")
    known = {name: value for name, value in metrics.items() if not _not_finite(value)}
    found["metrics"] = {name: checked.number(value, f"{where}: metrics: {name}") for name, value in known.items()}
    return found


def _not_finite(value: Any) -> bool:
    """Whether a value is not a measurement: null, or in older records NaN."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _whole(path: Path) -> dict[str, Any] | None:
    """A record that is not damaged."""
    with contextlib.suppress(UserError):
        return read(path)
    return None


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Whose numbers they are: two records with the same are of the same measurement."""
    checkpoint = record["checkpoint"]
    weights = checkpoint.get("sha256") or checkpoint.get("weights") or checkpoint.get("path")
    who = weights, checkpoint.get("arch")  # timm:A@FILE and timm:B@FILE have one file
    return {"probe": record.get("probe"), "checkpoint": who, "data set": record["data"], "protocol": record["protocol"]}


def _same(there: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Whether nothing is lost where one replaces the other: the same measurement, and each of the old numbers."""
    if _identity(there) != _identity(record):
        return False
    return all(name in record["metrics"] and record["metrics"][name] == value for name, value in there["metrics"].items())


def _difference(there: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """What the one is beside the other."""
    before, now = _identity(there), _identity(record)
    parts = " and ".join(f"another {part}" for part in now if before[part] != now[part])
    return f"was of {parts}" if parts else "had other numbers"


def _companion(path: Path, suffix: str) -> Path:
    return path.with_name(path.stem + suffix)


def place(out: Path | None, loaded: Loaded, name: str, options: Any) -> Path:
    """Path of a record, `out` or one in `results/` that no other measurement has (`record_name`), tested before the work.

    Raises UserError if it cannot be written, or if `out` names a file that is not a record: only records are replaced.
    """
    usual = f"{record_name.stem(name, loaded, options)}.json"
    path = places.below(record_name.folder(loaded), usual) if out is None else out
    if not distributed.is_main():
        return path
    if out is not None and out.is_file() and out.stat().st_size and _whole(out) is None:
        raise UserError(f"--out {out} holds no results, and is not replaced: give another --out")
    return places.tried(path)


def left(loaded: Loaded, probe: str, ending: str = ".json") -> list[Path]:
    """Files that a probe has left in `results/`, the newest first: of any data set and checkpoint, also by their older names.

    Raises UserError where the folder is a link.
    """
    return newest_first(record_name.folder(loaded).glob(f"{probe}*{ending}"))


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Plain files by the time of their last change."""
    return sorted((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers may depend on; of faiss the package that is installed."""
    faiss = faiss_library.installed() or {"faiss": "not installed"}
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES} | faiss


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
