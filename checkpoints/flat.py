"""The options of a command seen flat: the fields of a dataclass and of the dataclasses in it (groups), a flag each."""

import dataclasses
from collections.abc import Iterator
from typing import Any


def fields(options: type) -> Iterator["dataclasses.Field[Any]"]:
    """A field for each flag, in the order of --help."""
    for field in dataclasses.fields(options):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from fields(field.type)
        else:
            yield field


def values(options: Any) -> dict[str, Any]:
    """The value of each flag by its field's name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        grouped = dataclasses.is_dataclass(value) and not isinstance(value, type)
        found |= values(value) if grouped else {field.name: value}
    return found


def flag(name: str) -> str:
    """As it is typed."""
    return "--" + name.replace("_", "-")


def names(field: "dataclasses.Field[Any]") -> set[str]:
    """A field's flag, and its aliases (`tyro.conf.arg`)."""
    aliases = (getattr(one, "aliases", None) or () for one in getattr(field.type, "__metadata__", ()))
    return {flag(field.name)}.union(*aliases)
