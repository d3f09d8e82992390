"""Options of a training beside those that its run began with."""

import dataclasses
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any


def as_values(options: Any) -> dict[str, Any]:
    """The fields of a dataclass of options as plain values, for JSON and checkpoints."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(options).items()
    }


def differences(
    now: Mapping[str, Any], stored: Mapping[str, Any], default: Mapping[str, Any], free: Container[str]
) -> dict[str, str]:
    """Which values `stored` has otherwise, but for those that are `free` to change: option -> words.

    An option that is newer than the run had its value of `default`, None where that has none.
    """
    then = {name: stored.get(name, default.get(name)) for name in now}
    return {
        name: f"--{name.replace('_', '-')} was {then[name]}, now {now[name]}"
        for name in now
        if name not in free and then[name] != now[name]
    }
