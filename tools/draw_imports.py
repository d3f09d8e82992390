"""What imports what, as a drawing in docs/code.md: `python tools/draw_imports.py` renews it, `--check` compares it.

Exit code 0, or 1 where `--check` finds another drawing than the code has.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "code.md"
FLOORS = ("pretrain", "probes", "transfer")
BEGIN, END = "<!-- drawing: tools/draw_imports.py -->\n", "<!-- end of the drawing -->\n"


def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports, as far down as the import statement says."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def edges(floor: str) -> dict[str, set[str]]:
    """Room -> the rooms of the same floor that it imports. A room is a folder, or a file of its own."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / floor).rglob("*.py")):
        room = path.relative_to(ROOT / floor).parts[0].removesuffix(".py")
        if room != "__init__":
            below = {name.split(".")[1] for name in imported(path) if name.startswith(f"{floor}.")}
            found[room] = found.get(room, set()) | (below - {room})
    return found


def direct(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same without the edges that a longer way implies."""

    def reached(room: str) -> set[str]:
        return found[room].union(*(reached(below) for below in found[room]))

    return {room: {one for one in below if not any(one in reached(other) for other in below)} for room, below in found.items()}


def drawing() -> str:
    """One Mermaid graph a floor: an arrow from a room to what it imports; what follows from other arrows is left out."""
    parts = []
    for floor in FLOORS:
        lines = [f"    {room} --> {below}" for room, some in sorted(direct(edges(floor)).items()) for below in sorted(some)]
        parts.append("\n".join((f"`{floor}/`\n\n```mermaid", "graph TD", *lines, "```\n")))
    return "\n".join(parts)


def renewed(page: str) -> str:
    """The page with the drawing of now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str]) -> int:
    page = PAGE.read_text(encoding="utf-8")
    now = renewed(page)
    if arguments == ["--check"]:
        return int(page != now)
    PAGE.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
