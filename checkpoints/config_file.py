"""--config FILE: flags from a file, in YAML or in the JSON of a run's config.json, as if they were typed.

The file was written by anyone: it is read as text, and names local paths only. What would be fetched, run or imported is typed.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from checkpoints import flat, reading, sections

MOST = 1 << 20
"""Bytes of such a file."""
NOTHING = ("null", "~", "None", "")
"""Words for a value that is not given."""
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""What begins a name that is opened otherwise than as a path: hf:, pipe:, timm:, an address."""
DEVICES = ("device",)
"""Flags whose values have a colon and open nothing."""
SAMPLE = re.compile(r"sample(:[0-9]+)?")
"""The embedded data."""
MUST_EXIST = ("ckpt", "init_from", "saliency")
"""Flags that take published names besides paths: those would be fetched."""
TYPED = {"track": ("none", "tensorboard"), "tokenizer": ("colour",)}
"""Flags that send, fetch or import something for all other values than these."""

PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str"))
"""Kinds of YAML values that are read."""


class Wrong(ValueError):
    """The file cannot be followed; the message says why and what to do."""


class _Texts(yaml.BaseLoader):
    """Lists, mappings and texts: nothing else is made of YAML, and no key counts twice."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag not in PLAIN:
            raise Wrong(f"{node.tag[:60]} is no plain value: leave such tags out")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_twice([str(key) for key in keys])
        return dict(super().construct_mapping(node, deep))


def _refuse_twice(keys: Sequence[str]) -> None:
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise Wrong(f"{twice[0]} stands there twice: leave one of them out")


def _plain(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON with its words as YAML has them."""
    _refuse_twice([key for key, _ in pairs])
    return {key: _as_text(value) for key, value in pairs}


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return {True: "true", False: "false", None: "null"}.get(value, value) if value in (True, False, None) else value


def with_file(words: Sequence[str], options: type) -> list[str]:
    """The words, with those that the named file adds behind them in place of its flag. Raises Wrong."""
    flag = sections.config_flag(options)
    places = [place for place, word in enumerate(words) if word == flag]
    if not places:
        return list(words)
    if len(places) > 1:
        raise Wrong(f"{flag} is given twice: give one file")
    place = places[0]
    if place + 1 == len(words) or words[place + 1].startswith("--"):
        raise Wrong(f"{flag} needs a file: a run's config.json, or YAML of the same form")
    path = Path(words[place + 1])
    typed = [*words[:place], *words[place + 2 :]]
    try:
        return typed + _words(read(path), options, typed)
    except Wrong as error:
        raise Wrong(f"{flag} {path}: {error}") from None


def read(path: Path) -> dict[str, Any]:
    """Values by name, each a text or a list of texts. Raises Wrong."""
    try:
        text = reading.text(path, MOST).removeprefix("\ufeff")
        if text.lstrip().startswith("{"):
            found = json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_plain)
        else:
            found = yaml.load(text, Loader=_Texts)
    except OSError as error:
        raise Wrong(f"it cannot be read ({error.strerror}): give a file of flags") from error
    except UnicodeDecodeError as error:
        raise Wrong("it is no text in UTF-8: give a file of flags") from error
    except Wrong:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise Wrong(f"it is neither YAML nor JSON ({reason}): give lines such as `epochs: 100`") from error
    if found is None or found == "":
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Wrong("it holds no names with values: give lines such as `epochs: 100`")
    return found


def _words(values: Mapping[str, Any], options: type, typed: Sequence[str]) -> list[str]:
    """Flags and values for what is not typed. Raises Wrong for a name that is no flag, and for what a file may not say."""
    fields = {field.name: field for field in flat.fields(options)}
    given = {"--" + word[2:].removeprefix("no-") for word in typed if word.startswith("--")} | set(typed)
    words: list[str] = []
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            cure = f"perhaps {flat.flag(close[0])}" if close else "leave it out"
            raise Wrong(f"there is no flag {flat.flag(name)[:60]}: {cure}")
        field = fields[name]
        if not flat.names(field) & given:
            words += _typed(field, value)
    return words


def _typed(field: Any, value: Any) -> list[str]:
    """One flag with its values. Raises Wrong."""
    flag, values = flat.flag(field.name), value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        raise Wrong(f"{flag} has more than a value or a list of values: give those")
    if not isinstance(value, list) and value in NOTHING:
        if not _may_be_none(field.type):
            raise Wrong(f"{flag} has no value: give one, or leave it out")
        return [flag, "None"]
    for one in values:
        _refuse(field.name, flag, one)
    return [flag, *values]


def _may_be_none(kind: Any) -> bool:
    """Whether a field's type has None beside others."""
    return type(None) in get_args(kind.__origin__ if hasattr(kind, "__metadata__") else kind)


def _refuse(name: str, flag: str, value: str) -> None:
    """Raise Wrong for a value that a file may not give."""
    cure = f"a file does not say what is fetched, run, sent or imported: type {flag} {value[:100]}"
    if value.startswith("-") and not re.fullmatch(r"-[0-9.]+(e[+-]?[0-9]+)?", value, re.IGNORECASE):
        raise Wrong(f"{flag} begins with a dash: type it")
    if name in DEVICES or SAMPLE.fullmatch(value):
        return
    if name in TYPED and value not in TYPED[name]:
        raise Wrong(cure)
    if SCHEME.match(value):
        raise Wrong(cure)
    if name in MUST_EXIST and not Path(value).exists():
        raise Wrong(f"{flag} {value[:100]} is no path that is there, and {cure}")
