"""What files of a run and of measurements must hold before a page or a table is made of them: they may be anybody's.

Raised is ValueError with a few words; who reads the file says which one it is.
"""

from collections.abc import Mapping
from typing import Any

MOST = 2.0**60
"""Steps, sizes and numbers beyond it are none of a training's."""
OPTIONS = ("batch_size_per_gpu", "accumulate", "out_dim")
"""Of a run's options, those that are computed with."""
TEXTS = frozenset({"alarm", "bad_image", "reason"})
"""Of a line of the log, what is text. Everything else is a number."""
WORDS = {float: "number", str: "text", dict: "set of names and values"}
START: dict[str, type] = {
    "step": float,
    "time": str,
    "device": str,
    "cores": float,
    "processes": float,
    "precision": str,
    "versions": dict,
}
RECORD: dict[str, type] = {"probe": str, "checkpoint": dict, "data": dict, "protocol": dict, "metrics": dict, "versions": dict}


def config(content: Any) -> dict[str, Any]:
    """A run's options."""
    found = _dict(content, "config.json")
    for name in OPTIONS:
        if name in found and not (_is_number(found[name]) and found[name] >= 1):
            raise ValueError(f"{name} in config.json is no size")
    if not isinstance(found.get("recipe"), str | type(None)):
        raise ValueError("recipe in config.json is no name")
    return found


def line(content: Any) -> dict[str, Any]:
    """A line of the log, without the numbers that are none: null, infinite."""
    found = _dict(content, "a line of metrics.jsonl")
    numbers = {name for name in found if name not in TEXTS and not isinstance(found[name], str)}
    good = {name: value for name, value in found.items() if name not in numbers or _is_number(value)}
    strange = [name for name in numbers if isinstance(found[name], list | dict)]
    strange += [name for name in ("step", "epoch", "skipped_steps") if isinstance(good.get(name), str)]
    if strange or "step" not in good:
        raise ValueError(f"{(strange or ['step'])[0]} in a line of metrics.jsonl is no number")
    return good


def start(content: Any) -> dict[str, Any]:
    """When and where a run was begun or taken up."""
    found = _dict(content, "a line of starts.jsonl")
    _typed(found, START, "a line of starts.jsonl")
    _versions(found["versions"])
    return found


def record(content: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement, without the numbers that are none; what older ones lack is empty."""
    found = {"data": {}, "protocol": {}, "versions": {}, **content}
    _typed(found, RECORD, "the record")
    _typed(found["checkpoint"], {"path": str, "arch": str}, "its checkpoint")
    _versions(found["versions"])
    if not all(isinstance(found["data"].get(name), str | type(None)) for name in ("train", "val", "root")):
        raise ValueError("what it calls its images is no text")
    metrics = {name: value for name, value in found["metrics"].items() if value is not None}
    if any(not isinstance(value, int | float) for value in metrics.values()):
        raise ValueError("a number in metrics is none")
    return {**found, "metrics": {name: value for name, value in metrics.items() if _is_number(value)}}


def _dict(content: Any, what: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{what} is no set of names and values")
    return content


def _typed(content: Mapping[str, Any], expected: Mapping[str, type], what: str) -> None:
    for name, kind in expected.items():
        value = content.get(name)
        if not (_is_number(value) if kind is float else isinstance(value, kind)):
            raise ValueError(f"{name} of {what} is missing or no {WORDS[kind]}")


def _versions(content: Mapping[str, Any]) -> None:
    if not all(isinstance(value, str | type(None)) for value in content.values()):
        raise ValueError("a version is no text")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= MOST  # NaN is not
