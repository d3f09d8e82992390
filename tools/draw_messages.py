"""Every error message of the commands, by what it is about, as docs/messages.md: `python tools/draw_messages.py` renews it.

Exit code 0, or 1 where `--check` finds another page than the code has.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "messages.md"
ERRORS = {"UserError": 2, "WorkError": 1}
"""Exit codes."""
TITLES = {
    "pretrain/images": "Images and labels",
    "pretrain/batches": "Images and labels",
    "probes/shared": "Measuring",
    "probes/features": "Measuring",
    "pretrain/evaluate": "Measuring",
    "checkpoints": "Checkpoints and files",
    "pretrain/backbones": "Backbones of other libraries",
    "pretrain/models": "Networks",
    "pretrain/setup": "Flags of pretraining that do not go together",
    "pretrain/options": "Flags of pretraining that do not go together",
    "pretrain/tokenizers": "Tokenizers",
    "pretrain": "Pretraining",
    "probes/compare": "Comparing backbones",
    "probes/finetune": "Fine-tuning",
    "probes/reproduce": "The paper's tables",
    "probes/ablate": "The paper's tables",
    "probes/paper": "The paper's tables",
    "probes/report": "Reports",
    "probes/bench": "Speed",
    "probes": "Probes",
    "transfer/exports": "Exports",
    "transfer": "Detection and segmentation",
}
"""Folder -> section; the longest one that fits counts."""
HEAD = """# Every error message

A message says what is wrong and what to do. Exit code 2: the command or its input (nothing was done); 1: work that failed.
*Slanted* words stand for what the message names. The list is made from the code (`draw_messages.py`).
"""


class Message(NamedTuple):
    """One message: its text with names for what is filled in, and the exit code."""

    section: str
    text: str
    code: int


def words(node: ast.expr) -> str:
    """A message's text; nothing where it is another's. What is filled in is slanted."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) if isinstance(part, ast.Constant) else f"*{filled(part)}*" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return words(node.left) + (words(node.right) or "*...*")
    if isinstance(node, ast.IfExp):
        return words(node.body) or words(node.orelse)
    return ""


def filled(part: ast.expr) -> str:
    """A word for what is filled in: the last name that it is made of."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    if isinstance(value, ast.Call) and value.args and getattr(value.func, "attr", "join") == "join":
        value = value.args[0]
    found = (one for one in ast.walk(value) if isinstance(one, ast.Attribute | ast.Name))
    names = [one.attr if isinstance(one, ast.Attribute) else one.id for one in found]
    return names[0].strip("_").replace("_", " ") if names else "..."


def messages() -> Iterator[Message]:
    """All of them, in the order of the code."""
    for floor in ("checkpoints", "pretrain", "probes", "transfer"):
        for path in sorted((ROOT / floor).rglob("*.py")):
            inside = path.relative_to(ROOT).as_posix()
            section = TITLES[max((folder for folder in TITLES if inside.startswith(f"{folder}/")), key=len)]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
                    text = words(node.args[0])
                    if re.search(r"[a-z]{3}", re.sub(r"\*[^*]*\*", "", text)):
                        yield Message(section, text, ERRORS[node.func.id])


def page() -> str:
    """The whole page: a table a section, each message once."""
    found = sorted(set(messages()), key=lambda one: (one.section, one.text.lstrip("*-").lower()))
    parts = [HEAD]
    for section in sorted({one.section for one in found}):
        rows = [f"| {escaped(one.text)} | {one.code} |" for one in found if one.section == section]
        parts.append("\n".join((f"\n## {section}\n", "| message | exit code |", "|---|---|", *rows, "")))
    return "".join(parts)


def escaped(text: str) -> str:
    """As a cell of a Markdown table."""
    return " ".join(re.sub(r"([|<>\[\]`])", r"\\\1", text).split()).replace("**", "* *")


def main(arguments: list[str]) -> int:
    now = page()
    if arguments == ["--check"]:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != now)
    PAGE.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
