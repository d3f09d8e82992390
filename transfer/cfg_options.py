"""--cfg-options: single values of a config, each checked against the config before it is set. Nothing of a value is evaluated."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from checkpoints.cli import UserError
from transfer import config_keys

CODE = ("__", "lambda", "import ", "eval(", "exec(", "{{")
CALL = re.compile(r"[\w\])'\"]\s*\(")
"""A bracket after a name."""
COUNTED = ("max_", "num_", "batch_size", "interval", "_iters", "_epochs", "milestones")
"""Parts of names that count something: whole numbers."""
SHOWN = 60


def merge(config: Any, changes: Iterable[str]) -> None:
    """Set every KEY=VALUE in a config. Raises UserError for the first that it does not have or that is of another type."""
    found, changes = {}, list(changes)
    if changes:
        config_keys.fill()
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise UserError(f"--cfg-options {change}: give KEY=VALUE, as in optim_wrapper.clip_grad.max_norm=1")
        value = parsed(change, text)
        _check(config, change, key.split("."), value)
        found[key] = value
    try:
        config.merge_from_dict(found)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"--cfg-options {' '.join(changes)[:SHOWN]} does not fit the config: {str(error)[:200]}") from error


def parsed(change: str, text: str) -> Any:
    """Numbers, True, False, None, words, and lists of them in brackets or with commas."""
    from mmengine.config import DictAction  # noqa: PLC0415 (a heavy import, and an optional one)

    cure = "give numbers, words, True, False, None, or lists such as [1,2] or (1,2)"
    if any(word in text for word in CODE) or CALL.search(text):
        raise UserError(f"--cfg-options {change[:SHOWN]}: code is not evaluated: {cure}")
    depth = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            break
    if depth or not text:
        raise UserError(f"--cfg-options {change[:SHOWN]}: {'brackets do not match' if text else 'no value'}: {cure}")
    try:
        return DictAction._parse_iterable(text)
    except (AssertionError, ValueError, IndexError, RecursionError) as error:
        raise UserError(f"--cfg-options {change[:SHOWN]}: this is no value: {cure}") from error


def _check(config: Any, change: str, names: Sequence[str], value: Any) -> None:
    node: Any = config._cfg_dict
    for depth, name in enumerate(names):
        before = ".".join(names[:depth])
        if isinstance(node, list | tuple):
            if not name.isdigit() or int(name) >= len(node) or isinstance(node, tuple):
                whole = f"give it whole, {before}=[...]" if isinstance(node, tuple) or not node else f"0 to {len(node) - 1}"
                raise UserError(f"--cfg-options {change}: {before} is a list of {len(node)}: {whole}")
            node = node[int(name)]
            continue
        if not isinstance(node, Mapping):
            raise UserError(f"--cfg-options {change}: {before} is {str(node)[:SHOWN]} and has no parts: give {before}=VALUE")
        known = config_keys.known(node, names[:depth])
        if known is not None and name not in known:
            raise UserError(f"--cfg-options {change}: {unknown(name, before, known, there=name in node)}")
        if name not in node and name not in config_keys.GROUPS:
            return
        node = node.get(name, {})
    if names[-1] == "type" and not (isinstance(value, str) and list(config_keys.makers(value))):
        raise UserError(f"--cfg-options {change}: neither toolbox has a {value}{config_keys.nearest_class(str(value))}")
    wrong = _wrong_type(names[-1], node, value)
    if wrong:
        raise UserError(f"--cfg-options {change}: {'.'.join(names)} is {wrong}, as in {names[-1]}={str(node)[:SHOWN]}")


def unknown(name: str, group: str, known: Iterable[str], *, there: bool = False) -> str:
    """Why a key cannot be set, and what is nearest to it."""
    names = sorted(one for one in known if not one.startswith("_") and (not group or one not in config_keys.EXTRA))
    nearest = get_close_matches(name, names, 1, 0.5)
    cure = f"the nearest is {'.'.join(filter(None, (group, nearest[0])))}" if nearest else f"it has {', '.join(names)}"[:300]
    if there:
        return f"nothing reads {name} once the config is read, its copies stand elsewhere: {cure} (--size sets sizes)"
    return f"{group or 'the config'} has no {name}: {cure}"


def _wrong_type(name: str, before: Any, value: Any) -> str:
    """What a key holds where the new value is something else; None may stand everywhere."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    listed = isinstance(value, list | tuple)
    if before is None or value is None:
        return ""
    if isinstance(before, int | float) and not isinstance(before, bool):
        counts = isinstance(before, int) and any(part in name for part in COUNTED)
        whole = not counts or not isinstance(value, float) or value.is_integer()
        return "a number" if not number and not listed else "" if whole else "a whole number"
    fits = {
        bool: (isinstance(value, bool), "True or False"),
        str: (not number and not isinstance(value, bool), "a word"),
        list: (listed or (number and "size" in name), "a list"),
    }
    kind = list if isinstance(before, tuple) else next((one for one in fits if isinstance(before, one)), None)
    fine, what = fits[kind] if kind else (isinstance(value, Mapping), "a group of keys")
    return "" if fine else what
