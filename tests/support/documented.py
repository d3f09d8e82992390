"""What the documents tell people to type: the commands of README.md, CONTRIBUTING.md and docs/, with the modules they call."""

import re
import shlex
from typing import NamedTuple

from tests.support.commands import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BEGINNINGS = ("tools/", "python -m ", "torchrun ", "sbatch ", "checkpoints.", "pretrain.", "probes.", "transfer.")
"""Of inline code that is a command."""
MENTION = r"\w+(\.\w+)+|tools/|tools/slurm\.sbatch|tools/completion\.bash"
"""Inline code that names a module or a file, and is none."""
TOOLS: dict[str, tuple[str, ...]] = {
    "tools/pretrain.sh": ("pretrain.train",),
    "tools/slurm.sbatch": ("pretrain.train",),
    "tools/reproduce.sh": ("probes.reproduce",),
    "tools/ablate.sh": ("probes.ablate",),
    "tools/gpu_day.sh": ("probes.bench.gpu_day",),
    "tools/transfer_coco.sh": ("transfer.train", "--task", "coco"),
    "tools/transfer_ade20k.sh": ("transfer.train", "--task", "ade20k"),
}
"""The module, and the flags before those that are given, of a tool that is a Python command."""
BENCHES = {part: f"probes.bench.{part}" for part in ("data", "step", "sources", "knn", "count")}
"""The parts of tools/bench.sh."""
SHELL = ("git", "cd", "source", "conda", "docker", "pip", "tools/setup.sh", "tools/test.sh")
"""Commands that no module answers."""
LEFT_OUT = ("...", "FLAGS")
"""Words that stand for what the reader adds."""


class Command(NamedTuple):
    """One command."""

    where: str
    """The document."""
    text: str
    """As it is written, on one line."""
    module: str
    """The Python module that answers it; nothing for a tool of its own."""
    arguments: tuple[str, ...]
    wrong: str = ""
    """Why nobody answers it."""


def commands() -> list[Command]:
    """All of them in their order, each once."""
    found: dict[tuple[str, ...], Command] = {}
    for document in DOCUMENTS:
        for line in typed(document.read_text()):
            try:
                one = answered(document.name, line)
            except LookupError as error:
                one = Command(document.name, line, "", (), str(error))
            found.setdefault((one.module, *(one.arguments if one.module else (one.text,))), one)
    return list(found.values())


def typed(text: str) -> list[str]:
    """The lines of a document's bash blocks, and its inline code that is a command."""
    lines: list[str] = []
    for language, block in FENCE.findall(text):
        if language == "bash":
            whole = block.replace("\\\n", " ").splitlines()
            bare = (shlex.join(shlex.split(line, comments=True)) for line in whole)
            lines += [part for line in bare for part in re.split(r" '?&&'? ", line) if part]
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        line = " ".join(code.split())
        if line.startswith(BEGINNINGS) and not re.fullmatch(MENTION, line):
            lines.append(line)
    return lines


def answered(where: str, line: str) -> Command:
    """A line with its module. Raises LookupError for what nobody here answers."""
    words = [word for word in shlex.split(line) if word not in LEFT_OUT]
    if words[0] in ("torchrun", "python"):
        if "-m" not in words:
            raise LookupError("there is no -m MODULE")
        words = words[words.index("-m") + 1 :]
    elif words[0] == "sbatch":
        words = words[1:]
    if words[0] in SHELL:
        return Command(where, line, "", tuple(words))
    if words[0] == "tools/bench.sh" and words[1:2] and words[1] in BENCHES:
        words = [BENCHES[words[1]], *words[2:]]
    elif words[0] in TOOLS:
        words = [*TOOLS[words[0]], *words[1:]]
    place = ROOT / words[0].replace(".", "/")
    if not re.fullmatch(r"\w+(\.\w+)+", words[0]) or not (place.with_suffix(".py").exists() or (place / "__main__.py").exists()):
        raise LookupError(f"{' '.join(words[:2])} is no command here")
    return Command(where, line, words[0], tuple(words[1:]))


def python_blocks() -> list[tuple[str, str]]:
    """Python that the documents show, in blocks or in a line: document, code."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        blocks = [block for language, block in FENCE.findall(text) if language == "python"]
        lines = [code for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)) if re.match(r"(from|import) \w", code)]
        found += [(document.name, code) for code in (*blocks, *lines)]
    return found
