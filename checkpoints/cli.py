"""Shared by every command: lenient flags, errors that say what to do, exit codes."""

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from checkpoints import bounds, config_file, flat, neighbours, original, parent, placeholders, sections, terminal

Options = TypeVar("Options")

DONE, FAILED, WRONG_COMMAND, INTERRUPTED = 0, 1, 2, 75

MACHINE = {
    errno.ENOSPC: "make room, and start again",
    errno.EDQUOT: "make room within your quota, and start again",
    errno.EFBIG: "this file system, or a limit of the shell (ulimit -f), takes no file of that size",
    errno.EROFS: "write elsewhere",
    errno.EACCES: "see to the rights of the file, or write elsewhere",
    errno.EPERM: "see to the rights of the file, or write elsewhere",
    errno.EIO: "the disk has failed to read or write: see to it",
    errno.ESTALE: "the network's file system has lost it: start again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "end other programs: the machine has no open files left",
    errno.ENOMEM: "end other programs: the machine has no memory left",
}
"""Faults of a machine that any reading or writing may meet, and what to do; others are ours, and end in a traceback."""
MISNAMED = {
    errno.ENAMETOOLONG: "no file can have so long a name: give another",
    errno.ELOOP: "its links lead in a circle: give another",
}
"""What is wrong with a name that was given, whatever it was given for."""
SHOWN = 120
"""Letters of a foreign name in an error."""
TRUE_WORDS = frozenset({"true", "on", "yes", "1"})
FALSE_WORDS = frozenset({"false", "off", "no", "0"})


class UserError(ValueError):
    """The command line, or something it names, is wrong. The message carries the cure; the exit code is 2."""


class WorkError(RuntimeError):
    """The work itself failed through no fault of the command line. The exit code is 1."""


def parse(
    options: type[Options],
    arguments: Sequence[str],
    default: Options | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> Options:
    """Command line -> dataclass. Raises UserError for an empty word, which would mean the current folder or nothing, and for a
    number that makes no sense (`checkpoints/bounds.py`).

    `--a_b` and `--a-b` are the same flag; a bool takes `--x`, `--no-x`, `--x true` and `--x false`. Dataclasses in the dataclass
    are sections of --help, their fields flags like the others; else `checkpoints/sections.py` says the sections. --config FILE
    adds flags (`checkpoints/config_file.py`). `description` stands above --help in place of the class's own. Exits with 2 when a
    flag is unknown or its value has the wrong type.
    """
    found: Options = sections.parsed(options, expanded(options, arguments), default, prog, description)
    if placeholders.are_here():  # --help ends the process: here it was the value of another flag
        raise UserError("--help stands where a value should be: give it by itself")
    for sentence in bounds.wrong(found):
        raise UserError(sentence)
    return found


def expanded(options: type, arguments: Sequence[str]) -> list[str]:
    """The words of a command line in plain form, with those of its --config. Raises UserError as `parse`."""
    fields = list(flat.fields(options))
    bools = {flat.flag(field.name) for field in fields if field.type in (bool, "bool")}
    words = _plain_words(arguments, bools)
    try:
        words = original.translated(words, set[str]().union(*map(flat.names, fields)))
        return _plain_words(config_file.with_file(words, options), bools)
    except (original.Replaced, config_file.Wrong) as error:
        raise UserError(str(error)) from None


def at_least(least: int, options: Any, *names: str) -> None:
    """Raise UserError for the first of these options, or of its values, that is smaller; None is no value."""
    for name in names:
        value = getattr(options, name)
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        if value == () or any(one < least for one in values):
            raise UserError(f"{flat.flag(name)} must be {least} or more")


def _plain_words(arguments: Sequence[str], bools: set[str]) -> list[str]:
    words: list[str] = []
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            words.append(name.replace("_", "-"))
            if equals:
                words.append(value)
        else:
            words.append(word)
    _refuse_empty(words)
    return _bools_without_values(words, bools)


def _refuse_empty(words: Sequence[str]) -> None:
    for place, word in enumerate(words):
        if not word.strip():
            flag = next((one for one in reversed(words[:place]) if one.startswith("--")), "an argument")
            raise UserError(f"{flag} is empty (a variable that is not set, perhaps): give a value, or leave it out")


def _bools_without_values(words: list[str], bools: set[str]) -> list[str]:
    plain: list[str] = []
    for word in words:
        previous = plain[-1] if plain else ""
        if previous in bools and word.lower() in TRUE_WORDS:
            continue
        if previous in bools and word.lower() in FALSE_WORDS:
            plain[-1] = "--no-" + previous[2:]
            continue
        plain.append(word)
    return plain


def run_command(main: Callable[[Sequence[str]], Any], arguments: Sequence[str] | None = None) -> int:
    """Run `main`, turn what it raises into one sentence on stderr and an exit code (DONE, FAILED, WRONG_COMMAND).

    No process that is forked here lives on when this one has gone.
    """
    terminal.guard()
    parent.end_with_launcher()
    parent.take_forked_along()
    if arguments is None:  # a process of its own
        neighbours.watch()
    try:
        code = main(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        return FAILED
    except KeyboardInterrupt:
        terminal.say("interrupted", error=True)
        return 130
    except (UserError, terminal.OutputLost, OSError, MemoryError, RuntimeError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        code = WRONG_COMMAND if sentence.startswith("error: ") else FAILED
        if _said_beside(sentence):
            return code
        first, *listed = sentence.split("\n  ") if isinstance(error, WorkError) else [sentence]  # a list of ours, each set in
        terminal.say(first, error=True)
        for line in listed:
            terminal.say(f"  {line}", error=True)
        return code
    return code if isinstance(code, int) else DONE


def _said_beside(sentence: str) -> bool:
    """Whether another process that torchrun started on this machine has said this already: once is enough.

    A mark in torchrun's own folder tells.
    """
    errors = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not errors:
        return False
    digest = hashlib.sha256(sentence.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        os.close(os.open(Path(errors).parent.parent / f"said-{digest}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return True
    except OSError:
        return False
    return False


def _sentence(error: Exception) -> str | None:
    """The message for a user's mistake or a fault of the machine; None for a bug."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, WorkError):
        return f"failed: {error}"
    if isinstance(error, terminal.OutputLost):
        return f"failed: standard output takes nothing more ({error.strerror}): make room where it is sent"
    if isinstance(error, MemoryError):
        return "failed: there is no memory left: end other programs, or give less at once (--batch-size, --workers)"
    if isinstance(error, RuntimeError):
        return _of_torch(error)
    return _of_system(error) if isinstance(error, OSError) else None


def _of_torch(error: RuntimeError) -> str | None:
    """The same of memory that torch did not get; it is not imported for that."""
    if type(error).__name__ == "OutOfMemoryError" or "CUBLAS_STATUS_ALLOC_FAILED" in str(error):
        return "failed: the GPU has too little memory: end its other programs, or give less at once (--batch-size)"
    return _sentence(MemoryError()) if "DefaultCPUAllocator" in str(error) else None


def _of_system(error: OSError) -> str | None:
    """The same of what the system refuses."""
    if error.errno in MISNAMED:
        return f"error: {str(error.filename)[:SHOWN]!r}: {MISNAMED[error.errno]}"
    if error.errno not in MACHINE:
        return None
    return f"failed: {error.strerror}{f' ({error.filename})' if error.filename else ''}: {MACHINE[error.errno]}"
