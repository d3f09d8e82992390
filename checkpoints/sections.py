"""Sections of --help: a command's options as the groups of flags that the flag library shows, and back again."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from checkpoints import flat

CONFIG = "config"
CONFIG_HELP = (
    "YAML or JSON file of flags by their names (a run's config.json, say); what is typed beside it counts instead. It names "
    "local paths only: anything to fetch, run or import is typed."
)
INPUT, PROTOCOL, OUTPUT, MACHINE = "input", "protocol", "output", "machine"
ABOUT = {
    INPUT: "What is read.",
    PROTOCOL: "What is done, and how.",
    OUTPUT: "What is written.",
    MACHINE: "How it is computed.",
}
SECTION = {
    INPUT: "ckpt data val key limit names part images init_from recipe distractors whiten tokenizer",
    OUTPUT: "out json folder cache allow_foreign_files pages log_every save_minutes",
    MACHINE: "device workers batch_size gpu_batch_size precision compile checkpoint_activations",
}
"""Fields by their section, PROTOCOL for the others. Groups that the options have themselves stay."""


def config_flag(options: type) -> str:
    """The flag that names a file of flags: --config, or --options where the command has a --config of its own."""
    return "--options" if CONFIG in {field.name for field in flat.fields(options)} else "--config"


def parsed(options: Any, words: list[str], default: Any, prog: str | None, description: str | None) -> Any:
    """An instance of `options` from words of the command line. Ends the process for --help, and with 2 for wrong flags."""
    groups = _groups(options)
    made: list[tuple[str, Any]] = [
        (config_flag(options)[2:], Annotated[Path | None, tyro.conf.arg(metavar="FILE", help=CONFIG_HELP, help_behavior_hint="")])
    ]
    values: dict[str, Any] = {config_flag(options)[2:]: None}
    for name, (kind, fields) in groups.items():
        group = dataclasses.make_dataclass(name.capitalize(), fields.items(), kw_only=True)
        group.__doc__ = kind.__doc__ if kind is not options else ABOUT[name]
        source = default if kind is options or default is None else getattr(default, name)
        given = {one: _value(source, kind, one) for one in fields}
        # its help is said here: the library would look for it in the source of a class that has none
        made.append((name, Annotated[group, tyro.conf.arg(help=group.__doc__)]))
        values[name] = group(**given)
    whole = dataclasses.make_dataclass(options.__name__, made, kw_only=True)
    found: Any = tyro.cli(
        whole,
        args=words,
        default=whole(**values),
        prog=prog,
        description=description or inspect.getdoc(options) or "",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    back: dict[str, Any] = {}
    for name, (kind, fields) in groups.items():
        group_values = {one: getattr(getattr(found, name), one) for one in fields}
        back |= group_values if kind is options else {name: kind(**group_values)}
    return options(**back)


@lru_cache(maxsize=64)
def _groups(options: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Section -> the dataclass that its fields are of, and their annotated types by name."""
    own: dict[str, dict[str, Any]] = {name: {} for name in ABOUT}
    groups: dict[str, tuple[Any, dict[str, Any]]] = {}
    hints = _annotated(options)
    for field in dataclasses.fields(options):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            groups[field.name] = field.type, _annotated(field.type)
        else:
            section = next((one for one, names in SECTION.items() if field.name in names.split()), PROTOCOL)
            own[section][field.name] = hints[field.name]
    return {name: (options, fields) for name, fields in own.items() if fields} | groups


def _annotated(options: Any) -> dict[str, Any]:
    """The type of each field with its help text, and with its default only where the text does not say it."""
    hints, texts = get_type_hints(options, include_extras=True), helps(options)
    found = {}
    for field in dataclasses.fields(options):
        hint, text = hints[field.name], texts.get(field.name, "")
        about: dict[str, Any] = {"help": text, "help_behavior_hint": _hint(field, text)}
        metadata = [*getattr(hint, "__metadata__", ())]
        plain = hint.__origin__ if metadata else hint
        for place, one in enumerate(metadata):
            if hasattr(one, "help_behavior_hint"):  # what tyro.conf.arg has made: there is one for each argument
                metadata[place] = dataclasses.replace(one, **about)
                break
        else:
            metadata.append(tyro.conf.arg(**about))
        parts = (plain, *metadata)
        found[field.name] = Annotated[parts]
    return found


def _hint(field: "dataclasses.Field[Any]", text: str) -> Callable[[str], str]:
    """What stands behind a flag's text: its default, unless the text says it or there is none."""
    own = field.default
    usual = " ".join(map(str, own)) if isinstance(own, tuple) else str(own)

    def shown(value: str) -> str:
        if "(default" in text:
            return "" if value == usual else f"(here: {value})"
        return f"(default: {value})" if value not in ("None", "") else ""

    return shown


def _value(source: Any, kind: Any, name: str) -> Any:
    """A field's value: of the instance, else its default; what must be typed has none."""
    if source is not None:
        return getattr(source, name)
    field = next(one for one in dataclasses.fields(kind) if one.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def helps(options: Any) -> Mapping[str, str]:
    """The text below each field in the source of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    kind: Any
    for kind in reversed(options.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        try:
            source = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]  # type: ignore[arg-type]
        except (OSError, TypeError):  # made while the program runs
            continue
        assert isinstance(source, ast.ClassDef)
        for field, text in zip(source.body, source.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
            if is_text:
                found[field.target.id] = " ".join(text.value.value.split())  # type: ignore[attr-defined]
    return found
