"""Options of a training beside those that its run began with."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from checkpoints import flat


def as_values(options: Any) -> dict[str, Any]:
    """Options as plain values by their flat names, for JSON and checkpoints."""
    return {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in flat.values(options).items()
    }


def differences(
    now: Mapping[str, Any], stored: Mapping[str, Any], default: Mapping[str, Any], free: Container[str]
) -> dict[str, str]:
    """Which values `stored` has otherwise, but for those that are `free` to change: option -> words.

    An option that is newer than the run had its value of `default`, None where that has none.
    """
    then = {name: stored.get(name, default.get(name)) for name in now}
    return {
        name: f"{flat.flag(name)} was {then[name]}, now {now[name]}"
        for name in now
        if name not in free and then[name] != now[name]
    }
