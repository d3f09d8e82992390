"""The page of promises: each row says a fault, what is promised, and tests that exist."""

import ast
import re
from pathlib import Path

from tests.support.commands import ROOT

PAGE = ROOT / "docs" / "promises.md"
HEAD = "| fault | what is promised | test that tries it |"


def rows(text: str) -> list[list[str]]:
    """The cells of every table's rows; a bar after a backslash is text."""
    lines = [line for line in text.splitlines() if line.startswith("|") and line != HEAD and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def functions_of(file: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, kinds)} if file.is_file() else set()


def test_every_promise_names_tests_that_exist() -> None:
    found = rows(PAGE.read_text())
    assert len(found) > 50
    known = {path: functions_of(ROOT / path) for path in set(re.findall(r"`(tests/[\w/]+\.py)::", PAGE.read_text()))}
    for cells in found:
        assert len(cells) == 3 and all(cells), cells
        named = re.findall(r"`([^`]*)`", cells[2])
        assert named, cells
        for one in named:
            path, colons, name = one.partition("::")
            assert colons and name.startswith("test_") and name in known.get(path, set()), f"{one} does not exist"


def test_no_fault_is_promised_twice() -> None:
    faults = [cells[0] for cells in rows(PAGE.read_text())]
    assert sorted(set(faults)) == sorted(faults)


def test_the_page_is_found_from_the_readme_and_the_page_on_security() -> None:
    assert "docs/README.md" in (ROOT / "README.md").read_text()
    for name in ("README.md", "security.md"):
        assert "promises.md" in (ROOT / "docs" / name).read_text()
