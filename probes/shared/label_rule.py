"""What the values of label maps mean: which are void, which number the classes have, and which colour stands for which label.

255 is void everywhere. Nothing is guessed from the values: `--background` and `--ignore` say the others.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints.cli import UserError, WorkError
from pretrain.images.formats import BadImage, read_file

NOTHING = 255
"""Void, in files and in memory."""
Colour = tuple[int, int, int]
LISTS = ("classes.txt", "classes.json")


class Rule(NamedTuple):
    """How labels of a file become classes from 0. Where 0 is the background, label 1 is the first class, else label 0 is."""

    background: int | None = 0
    """The label of pixels that belong to no class, None where all have one."""
    ignore: tuple[int, ...] = (NOTHING,)
    """Further void labels."""
    colours: tuple[Colour, ...] = ()
    """The colour of each label from 0, where maps are pictures in colours."""

    @property
    def first(self) -> int:
        """The label of the first class."""
        return 1 if self.background == 0 else 0

    @property
    def void(self) -> list[int]:
        """The labels that are no class."""
        return sorted({NOTHING, *self.ignore} | ({self.background} if self.background is not None else set()))


AS_ADE20K = Rule()


class ClassList(NamedTuple):
    """A data set's own classes, in the order of their labels, and a colour for each, if they have some."""

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    file: Path

    def of_classes(self, rule: Rule) -> tuple[str, ...]:
        """The names of the classes: a table of colours begins with label 0, which may be the background."""
        return self.names[1:] if self.colours and rule.background == 0 else self.names


def chosen(background: str | None, ignore: tuple[int, ...], default: int | None, listed: ClassList | None) -> Rule:
    """The rule by the flags. Raises UserError for what is no label, and where listed classes come without --background."""
    if background is None and listed is not None:
        one = listed.names[1 if listed.colours else 0]
        raise UserError(
            f"{listed.file} lists classes: give --background 0 if label 0 is void and label 1 is {one}, "
            f"or --background none if label 0 is {listed.names[0]}"
        )
    number: int | None = default
    if background is not None:
        word = background.strip().lower()
        if word != "none" and not (word.isdecimal() and word.isascii() and int(word) <= NOTHING):
            raise UserError(f"--background {background[:40]}: give a label, 0 to 255, or none")
        number = None if word == "none" else int(word)
    wrong = [label for label in ignore if not 0 <= label <= NOTHING]
    if wrong:
        raise UserError(f"--ignore {wrong[0]}: labels are 0 to 255")
    return Rule(number, tuple(sorted({*ignore, NOTHING})), () if listed is None else listed.colours)


def class_list(root: Path) -> ClassList | None:
    """`classes.txt`, `NAME` or `R G B NAME` a line, or `classes.json`, a list of names or of {"name": ..., "color": [R, G, B]}.

    None where there is neither. Raises WorkError where it is no list of 2 to 254 different names (255 with colours).
    """
    file = next((root / name for name in LISTS if (root / name).is_file()), None)
    if file is None:
        return None
    try:
        text = read_file(file).decode("utf-8-sig")
        rows = json.loads(text) if file.suffix == ".json" else _rows_of_text(text, file)
    except (BadImage, ValueError, RecursionError) as error:
        raise WorkError(f"{file} cannot be read ({type(error).__name__}): one name a line (.txt), or a list (.json)") from error
    rows = [_row(row) for row in rows] if isinstance(rows, list) else [None]
    if any(row is None for row in rows):
        raise WorkError(f"{file} is no list of names, or of names with colours")
    names, colours = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    if not 2 <= len(set(names)) == len(names) < NOTHING + any(colours):
        raise WorkError(f"{file} has {len(names)} names, {len(set(names))} of them different: 2 to 254 different ones are needed")
    if any(colours) and (not all(colours) or len(set(colours)) < len(colours)):
        raise WorkError(
            f"{file} has {len(names)} names and {len(set(colours) - {()})} different colours: each name needs its own"
        )
    return ClassList(names, colours if any(colours) else (), file)


def lines(text: str, file: Path) -> list[str]:
    """The names of a list, one a line. Raises WorkError where a line before the last is empty: later names would move up."""
    names = [line.strip() for line in text.rstrip().splitlines()]
    if "" in names:
        raise WorkError(
            f"{file}: line {names.index('') + 1} is empty, and a class may be missing there: remove the line, or name it"
        )
    return names


def _rows_of_text(text: str, file: Path) -> list[Any]:
    rows: list[Any] = []
    for line in lines(text, file):
        words = line.replace(",", " ").split(None, 3)
        coloured = len(words) == 4 and all(word.isdecimal() and word.isascii() and len(word) <= 3 for word in words[:3])
        rows.append({"name": words[3].strip(), "color": [int(word) for word in words[:3]]} if coloured else line)
    return rows


def _row(row: Any) -> tuple[str, Any] | None:
    """A name and its colour or (); None for anything else."""
    name, colour = (row.get("name"), row.get("color", [])) if isinstance(row, dict) else (row, [])
    if not isinstance(name, str) or not name or not isinstance(colour, list) or len(colour) not in (0, 3):
        return None
    if not all(type(value) is int and 0 <= value <= 255 for value in colour):
        return None
    return name, tuple(colour)
