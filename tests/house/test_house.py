"""The house: floors and rooms import only what lies below them, packages stay plain, documents do not lie about files."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints.version import __version__
from tests.support.commands import ROOT
from tools.draw_imports import edges, imported

FLOORS = ["checkpoints", "pretrain", "probes", "transfer"]
DOORS = ["checkpoints.export", "checkpoints.inspect"]
"""Commands that nothing imports: they may use any floor, for no circle can pass through them."""
ROOMS = {
    "pretrain": {
        "train": "run setup evaluate options batches method images engine",
        "config": "recipes",
        "curves": "engine",
        "run": "setup options tokenizers method batches images engine",
        "setup": "options tokenizers method evaluate batches images models engine",
        "options": "recipes engine",
        "method": "tokenizers batches models engine",
        "tokenizers": "evaluate images models",
        "backbones": "models",
        "evaluate": "batches images models engine",
        "batches": "images engine",
        "images": "sample engine",
        "sample": "",
        "models": "",
        "recipes": "",
        "engine": "",
    },
    "probes": {
        "surface": "compare features shared",
        "compare": "report tables knn logistic cluster segment linear retrieval features shared",
        "embed": "features shared",
        "reproduce": "robustness finetune linear retrieval video paper features shared",
        "ablate": "tables paper shared",
        "live": "report",
        "report": "tables paper features shared",
        "tables": "paper shared",
        "robustness": "visualize linear features shared",
        "semi": "finetune knn linear logistic shared",
        "parts": "linear paper features shared",
        "linear": "paper features shared",
        "paper": "finetune",
        "knn": "features shared",
        "logistic": "features shared",
        "cluster": "features shared",
        "segment": "shared",
        "visualize": "report features shared",
        "retrieval": "features shared",
        "bench": "features shared",
        "finetune": "shared",
        "video": "shared",
        "features": "shared",
        "shared": "",
    },
    "transfer": {
        "train": "prepare report results trained config hooks watching options resume networks schedules screen blame",
        "screen": "report",
        "blame": "options",
        "prepare": "network_config layout results config options labels coco_images data coco_layout pictures report "
        "resume scenes scales schedules",
        "schedules": "options",
        "scales": "scenes",
        "network_config": "config options backbone normalising",
        "report": "results trained config options",
        "results": "",
        "trained": "",
        "config": "results options choosing distributions exports backbone layer_decay necks ops resizing resume cfg_options "
        "config_keys",
        "distributions": "",
        "cfg_options": "config_keys",
        "config_keys": "exports",
        "predict": "config options backbone pictures resume watching trained",
        "options": "",
        "choosing": "",
        "labels": "scenes",
        "hooks": "pictures",
        "backbone": "layout levels networks",
        "layout": "levels",
        "levels": "",
        "necks": "levels",
        "networks": "",
        "normalising": "",
        "configs": "",
        "data": "coco_layout annotations coco_boxes coco_used scenes",
        "coco_layout": "annotations coco_from_voc coco_from_yolo",
        "coco_from_voc": "",
        "coco_from_yolo": "",
        "coco_boxes": "",
        "coco_images": "annotations",
        "coco_used": "",
        "watching": "",
        "annotations": "",
        "exports": "",
        "layer_decay": "",
        "ops": "",
        "pictures": "",
        "resizing": "",
        "resume": "",
        "scenes": "",
    },
}
"""Floor -> room (a folder, or a file of its own) -> the rooms of the same floor that it imports, nearest first."""
STARTED = {
    "pretrain/run/report_process.py": {"probes.report", "probes.live"},
    "pretrain/run/progress.py": {"probes.knn"},
    "probes/reproduce/steps.py": {"transfer.train"},
}
"""Modules of a higher floor that are named to be started, as processes of their own or in a command that is printed."""
LOADED_BY_PATH = {"probes/bench/step.py", "pretrain/backbones/own.py"}
"""Files that load another by its path: the plain implementation that the tests compare with; a file that was typed as --ckpt."""


def sources() -> Iterator[tuple[str, Path]]:
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            yield floor, path


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def named(path: Path) -> set[str]:
    """Modules of this project that stand as whole strings in a file."""
    strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    return {one for one in strings if isinstance(one, str) and re.fullmatch(rf"(?:{'|'.join(FLOORS)})(?:\.\w+)+", one)}


def above(floor: str, names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] in FLOORS[FLOORS.index(floor) + 1 :]}


def test_imports_only_go_down() -> None:
    for floor, path in sources():
        if name_of(path) not in DOORS:
            assert not above(floor, imported(path)), f"{path} on floor {floor} imports from above"


def test_modules_of_a_higher_floor_are_started_by_name_only_where_it_is_said() -> None:
    found = {path.relative_to(ROOT).as_posix(): above(floor, named(path)) for floor, path in sources()}
    assert {file: names for file, names in found.items() if names} == STARTED


def test_files_are_loaded_by_path_only_where_it_is_said() -> None:
    found = {path.relative_to(ROOT).as_posix() for _, path in sources() if "spec_from_file_location" in path.read_text()}
    assert found == LOADED_BY_PATH


@pytest.mark.parametrize("floor", ROOMS)
def test_rooms_import_only_the_rooms_below_them(floor: str) -> None:
    assert edges(floor) == {room: set(below.split()) for room, below in ROOMS[floor].items()}


@pytest.mark.parametrize("floor", ROOMS)
def test_no_circle_passes_through_the_rooms(floor: str) -> None:
    rooms = {room: set(below.split()) for room, below in ROOMS[floor].items()}
    while rooms:
        lowest = [room for room, below in rooms.items() if not below & rooms.keys()]
        assert lowest, f"a circle among {sorted(rooms)}"
        for room in lowest:
            del rooms[room]


def test_corridors_are_short() -> None:
    for floor, most in {"pretrain": 16, "probes": 25}.items():
        inside = [path for path in (ROOT / floor).iterdir() if path.name not in {"__pycache__", "__init__.py", "py.typed"}]
        assert len(inside) <= most, f"{floor}: {len(inside)} rooms and files"


def test_no_test_imports_a_test() -> None:
    """What tests share lies in tests/support."""
    for path in (ROOT / "tests").rglob("*.py"):
        modules = {name for name in imported(path) if name.startswith("tests.")}
        assert all(name.startswith("tests.support.") for name in modules), f"{path} imports {sorted(modules)}"


def test_doors_are_imported_by_nothing() -> None:
    for _, path in sources():
        assert not imported(path) & {name for door in DOORS for name in (door, f"{door}.main")}, path


def test_package_files_leave_the_current_folder_import_torch_and_do_nothing_else() -> None:
    """What `python -m` runs first stands there, the same on all floors; rooms have empty ones."""
    first = (ROOT / FLOORS[0] / "__init__.py").read_text()
    assert [type(node) for node in ast.parse(first).body] == [
        ast.Expr,
        ast.Import,
        ast.Import,
        ast.If,
        ast.ImportFrom,
        ast.ImportFrom,
        ast.Expr,
    ]
    surface = (
        first
        + """
from probes import surface
from probes.surface import compare as compare
from probes.surface import embed as embed
from probes.surface import load as load

surface.keep_functions(__name__)
"""
    )
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("__init__.py"):
            wanted = surface if floor == "probes" else first
            assert path.read_text() == (wanted if path.parent == ROOT / floor else ""), path


def test_every_source_file_says_what_it_is() -> None:
    for _, path in sources():
        assert path.name == "__init__.py" or "configs" in path.parts or ast.get_docstring(ast.parse(path.read_text())), path


def test_files_that_the_documents_name_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for name in re.findall(r"`((?:checkpoints|pretrain|probes|tools|tests|docs)/[\w./-]+)`", document.read_text()):
            assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_the_drawing_of_the_imports_is_current() -> None:
    """`python tools/draw_imports.py` renews it."""
    assert subprocess.run([sys.executable, str(ROOT / "tools" / "draw_imports.py"), "--check"], check=False).returncode == 0


def test_an_undefined_name_is_found_by_both_checkers(tmp_path: Path) -> None:
    """Both were told to look away from such names once."""
    text = "def warm(warmup: int) -> int:\n    return warmupp\n"
    path = tmp_path / "undefined.py"
    path.write_text(f'"""A file."""\n\n\n{text}')
    config = ["--config", str(ROOT / "pyproject.toml")]
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *config, str(path)], check=False, capture_output=True, text=True
    )
    assert found.returncode == 1 and "F821" in found.stdout
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    found = subprocess.run([sys.executable, "-m", "mypy", *options, str(path)], check=False, capture_output=True, text=True)
    assert found.returncode == 1 and "name-defined" in found.stdout


def test_a_release_has_one_number_and_one_date() -> None:
    """What the package, the changelog and the citation say."""
    release = re.search(r"^## (\S+) \((\d{4}-\d{2}-\d{2})\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = (ROOT / "CITATION.cff").read_text()
    assert release and release[1] == __version__
    assert f"\nversion: {release[1]}\n" in cited and f'\ndate-released: "{release[2]}"\n' in cited
