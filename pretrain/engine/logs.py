"""Reading logs of any length: line by line, or a sample of bounded size."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoints import reading

MOST_LINES = 20_000
"""Lines of measurements that a picture or a page is made of."""
KEPT = ("bad_image", "alarm", "knn")
"""What makes a line too rare, and too telling, to be left out."""


class Line:
    """A parsed line and its number in the file, from 1."""

    __slots__ = ("number", "value")

    def __init__(self, number: int, value: Any) -> None:
        self.number, self.value = number, value


def read(path: Path) -> Iterator[Line]:
    """Lines in their order; a last one that is half written is left out. Raises OSError, and ValueError for no JSON."""
    with reading.opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and line.strip():
                yield Line(number, json.loads(line))
            elif line.strip():
                with contextlib.suppress(ValueError):
                    yield Line(number, json.loads(line))


def sampled(path: Path, most: int = MOST_LINES) -> list[Line]:
    """All lines where there are at most `most`, else evenly spaced ones, with the last and all that hold one of KEPT.

    Of rare lines too at most `most`. Raises as `read` does.
    """
    found: list[Line] = []
    rare: list[Line] = []
    every, last = 1, None
    for place, line in enumerate(read(path)):
        last = line
        if isinstance(line.value, dict) and any(name in line.value for name in KEPT):
            if len(rare) < most:
                rare.append(line)
        elif place % every == 0:
            found.append(line)
        if len(found) > most:
            found, every = found[::2], every * 2
    if last is not None and (not found or last.number > found[-1].number) and (not rare or last.number > rare[-1].number):
        found.append(last)
    return sorted([*found, *rare], key=lambda line: line.number)
