"""Images are normalised as the backbone's own were: mean and standard deviation of the config's data preprocessor follow it."""

from collections.abc import Sequence
from typing import Any

from checkpoints.architecture import Architecture

FIELDS = ("mean", "std")
KEY = "model.data_preprocessor."


def follow(config: Any, shape: Architecture, typed: Sequence[str]) -> str:
    """Set both, in values of 0 to 255, unless one of them was `typed` (--cfg-options); returns a line that says what is used."""
    given = config.model.get("data_preprocessor")
    if given is None:
        return ""
    kept = [name for name in FIELDS if any(change.startswith(f"{KEY}{name}=") for change in typed)]
    for name in FIELDS:
        if name not in kept:
            given[name] = [round(255 * value, 4) for value in getattr(shape, name)]
    words = ", ".join(f"{name} {' '.join(f'{value:g}' for value in given.get(name) or [])}" for name in FIELDS)
    source = "as --cfg-options say" if kept else "as the backbone's"
    return f"images of 0 to 255 are normalised {source}: {words}"
