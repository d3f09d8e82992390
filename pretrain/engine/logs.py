"""Logs (`metrics.jsonl`) of any length: read line by line, sampled to a bounded size, each kept line validated."""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from checkpoints import checked, reading
from checkpoints.cli import UserError
from checkpoints.store import first_line

MOST_LINES = 20_000
"""Largest number of lines that a picture or a page is made of."""
KEPT = ("bad_image", "alarm", "knn")
"""Fields of lines that are never left out of a sample."""
RARE = re.compile(b"|".join(f'"{name}": '.encode() for name in KEPT))
WORDS = frozenset({"bad_image", "reason", "alarm", "replay"})
"""Fields that hold text; others hold a number, or null where that was not finite."""
LONGEST = 1 << 16
RENAMED = {
    "entropy": "target_entropy",
    "spread": "mean_target_entropy",
    "patch_entropy": "patch_target_entropy",
    "patch_spread": "mean_patch_target_entropy",
    "divergence": "kl_divergence",
    "prototypes_used": "prototype_usage",
    "patch_prototypes_used": "patch_prototype_usage",
    "rank": "effective_rank",
    "gradient": "gradient_norm",
}
"""Fields of logs of version 0.1 and their names since. Read under the new names; files stay as they are."""
STEP = re.compile(rb'\{"step": (\d{1,15})[,}]')


class Line(NamedTuple):
    """A line and its number in the file, from 1."""

    number: int
    value: dict[str, Any]


def sampled(path: Path, most: int = MOST_LINES, *, lenient: bool = False) -> list[Line]:
    """All lines where there are at most `most`, else evenly spaced ones, with the last and all that hold one of KEPT.

    Of rare lines too at most `most`; a last one that is half written is left out. Raises UserError that names the line which is
    none of a log, or leaves it out if `lenient`.
    """
    common: list[Line] = []
    rare: list[Line] = []
    every, last = 1, None
    for place, (number, content) in enumerate(_lines(path)):
        last = number, content
        if RARE.search(content):
            if len(rare) < most:
                rare += _parsed(path, number, content, lenient=lenient)
        elif place % every == 0:
            common += _parsed(path, number, content, lenient=lenient)
        if len(common) > most:
            common, every = common[::2], every * 2
    seen = {line.number for line in (*common[-1:], *rare[-1:])}
    if last is not None and last[0] not in seen:
        common += _parsed(path, *last, lenient=lenient)
    return sorted([*common, *rare], key=lambda line: line.number)


def keep_up_to(path: Path, step: int, target: BinaryIO) -> int:
    """Write the lines of a log up to this step to `target`, none if it is 0; how many were left out for having no step."""
    strange = 0
    for number, content in _lines(path):
        at = STEP.match(content)
        steps = [float(at[1])] if at else [line.value["step"] for line in _parsed(path, number, content, lenient=True)]
        strange += not steps
        if step and steps and steps[0] <= step:
            target.write(content.rstrip(b"\r\n") + b"\n")
    return strange


def values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (name for messages, value) for every line. Raises UserError for a line that is not JSON."""
    for number, content in _lines(path):
        where = f"{path} line {number}"
        try:
            yield where, json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is no JSON ({first_line(error)}): {checked.CURE}") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields number and content of every complete line; a last line without newline only if it is JSON. Raises UserError."""
    try:
        with reading.opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip() and (line.endswith(b"\n") or _is_json(line)):
                    yield number, line
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _is_json(line: bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(line)
        return True
    return False


def _parsed(path: Path, number: int, content: bytes, *, lenient: bool) -> list[Line]:
    """The validated line in a list; an empty list for an invalid one if `lenient`, else raises UserError."""
    where = f"{path} line {number}"
    try:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is no JSON ({first_line(error)}): {checked.CURE}") from error
        return [Line(number, _checked(value, where))]
    except UserError:
        if lenient:
            return []
        raise


def _checked(value: Any, where: str) -> dict[str, Any]:
    """A line's validated fields under today's names. Raises UserError."""
    line = checked.mapping(value, where, ("step",))
    checked.number(line["step"], f"{where}: step", 0, checked.MOST)
    for name, field in line.items():
        if name in WORDS:
            checked.text(field, f"{where}: {name}", longest=LONGEST)
        elif isinstance(field, float) and not math.isfinite(field):
            line[name] = None  # as older runs wrote it
        elif field is not None:
            checked.number(field, f"{where}: {name}", -math.inf, math.inf)
    return {RENAMED.get(name, name): field for name, field in line.items()}
