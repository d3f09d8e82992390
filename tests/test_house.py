"""The house: imports only go down, packages stay plain, documents do not lie about files."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ["checkpoints", "pretrain", "probes", "transfer"]
DOORS = ["checkpoints.export", "checkpoints.inspect"]
"""Commands that nothing imports: they may use any floor, for no circle can pass through them."""


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_imports_only_go_down() -> None:
    for height, floor in enumerate(FLOORS):
        for path in (ROOT / floor).glob("*.py"):
            if f"{floor}.{path.stem}" in DOORS:
                continue
            above = set(FLOORS[height + 1 :]) & imported(path)
            assert not above, f"{path.name} on floor {floor} imports {above} from above"


def test_doors_are_imported_by_nothing() -> None:
    for path in (path for floor in FLOORS for path in (ROOT / floor).glob("*.py")):
        for door in DOORS:
            package, name = door.split(".")
            assert not re.search(
                rf"import {package}\.{name}\b|from {package}\.{name} import|from {package} import .*\b{name}\b", path.read_text()
            ), path


def test_package_files_leave_the_current_folder_and_do_nothing_else() -> None:
    """What `python -m` runs first stands there, the same in all: it can be imported from nowhere before it has been done."""
    first = (ROOT / FLOORS[0] / "__init__.py").read_text()
    assert [type(node) for node in ast.parse(first).body] == [ast.Expr, ast.Import, ast.Import, ast.If]
    for floor in FLOORS:
        assert (ROOT / floor / "__init__.py").read_text() == first
        assert list((ROOT / floor).rglob("__init__.py")) == [ROOT / floor / "__init__.py"]


def test_every_source_file_says_what_it_is() -> None:
    for floor in FLOORS:
        for path in (ROOT / floor).glob("*.py"):
            assert path.name == "__init__.py" or ast.get_docstring(ast.parse(path.read_text())), path


def test_files_that_the_documents_name_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for name in re.findall(r"`((?:checkpoints|pretrain|probes|tools|tests|docs)/[\w./-]+)`", document.read_text()):
            assert (ROOT / name).exists(), f"{document.name} names {name}"
