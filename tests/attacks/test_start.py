"""Folders of somebody's data with files that Python would import from the current folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import elsewhere
from tests.support.commands import ROOT

FLOORS = ("checkpoints", "pretrain", "probes", "transfer")
FOUND_FIRST = ("probes", "pretrain", "transfer", "sitecustomize", "usercustomize")
"""What Python itself imports before a module that is typed as `python -m`, if the current folder is on the path then."""
HOSTILE = (
    *FOUND_FIRST,
    "checkpoints",
    "tifffile",
    "torch",
    "numpy",
    "tyro",
    "json",
    "rich",
    "runpy",
    "pip",
    "mmengine",
    "ctypes",
)
TOOLS = (
    ("setup.sh", ()),
    ("pretrain.sh", ("--help",)),
    ("bench.sh", ("knn", "--help")),
    ("ablate.sh", ("--help",)),
    ("reproduce.sh", ("--help",)),
    ("transfer_coco.sh", ("--gpus", "2", "--help")),  # by torchrun
    ("transfer_ade20k.sh", ("--gpus", "1", "--help")),
)


def trap(folder: Path, *without: str) -> Path:
    """A folder of modules that write their name to PWNED, and a matplotlibrc that matplotlib complains of."""
    folder.mkdir()
    for name in sorted({*HOSTILE} - {*without}):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'PWNED')!r}, 'a').write('{name} ')\n")
    (folder / "matplotlibrc").write_text("lines.linewidth: nonsense\n")
    return folder


def run(folder: Path, *words: str, **environment: str) -> str:
    """Both outputs of a command that ends well in this folder, where nothing is run that lies there."""
    left_out = ("PYTHONPATH", "PYTHONSAFEPATH", "VIRTUAL_ENV", "CONDA_PREFIX")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    whole = {**kept, "PYTHON": sys.executable, **environment}
    done = subprocess.run(words, cwd=folder, env=whole, capture_output=True, text=True, check=False, timeout=300)
    pwned = folder / "PWNED"
    assert not pwned.exists(), f"{words} ran {pwned.read_text()}"
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(("tool", "flags"), TOOLS, ids=[tool for tool, _ in TOOLS])
def test_no_tool_imports_from_the_folder_it_is_called_in(tool: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    """46c01a2 ran json.py, torch.py, probes.py and others there, by python -m; sitecustomize.py for PYTHONPATH's empty entry."""
    folder = trap(tmp_path / "data")
    said = run(folder, "bash", str(ROOT / "tools" / tool), *flags, PYTHONPATH=f":.:{tmp_path}/nothing:")
    assert ("usage: " if flags else "has what is needed") in said


@pytest.mark.parametrize("module", ["probes.knn", "pretrain.curves", "checkpoints.inspect", "transfer.train"])
def test_no_module_typed_as_python_m_imports_from_the_current_folder(module: str, tmp_path: Path) -> None:
    """46c01a2 ran torch.py and tyro.py, and matplotlib read the matplotlibrc. Without PYTHONSAFEPATH, as on Python 3.10.

    Not protected, and said so in docs/security.md: what Python looks for before it has found the module's package.
    """
    folder = trap(tmp_path / "data", *FOUND_FIRST, *([] if module.startswith("probes") else ["checkpoints"]))
    said = run(folder, sys.executable, "-m", module, "--help", PYTHONPATH=str(ROOT))
    assert "usage: " in said and "matplotlibrc" not in said


def test_what_a_command_starts_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """There was no such start in 46c01a2: children were started by python -m. A path that is named relatively is none."""
    folder = trap(tmp_path / "data", *FOUND_FIRST)
    (folder / "lib").mkdir()
    shutil.copy(folder / "json.py", folder / "lib" / "json.py")
    script = "import os, sys, json, checkpoints; print(sys.path, os.environ['PYTHONPATH'], os.environ['PYTHONSAFEPATH'])"
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "script.py").write_text(script)
    start = str(ROOT / "checkpoints" / "start.py")
    said = run(folder, sys.executable, start, "script", PYTHONPATH=os.pathsep.join(["lib", "", f"{tmp_path}/kept", "."]))
    assert str(folder) not in said and f"{ROOT}{os.pathsep}{tmp_path}/kept 1" in said


def test_the_environment_that_is_set_up_keeps_the_current_folder_off_the_path(tmp_path: Path) -> None:
    """46c01a2 left `activate` as it was. Twice set up, it says it once."""
    (tmp_path / "tools").mkdir()
    for tool in ("setup.sh", "install.sh"):
        shutil.copy(ROOT / "tools" / tool, tmp_path / "tools")
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    for shell in ("", ".fish", ".csh"):
        (scripts / f"activate{shell}").write_text("# made by venv")
    for _ in range(2):
        run(tmp_path, "bash", str(tmp_path / "tools" / "setup.sh"))
    assert [(scripts / f"activate{shell}").read_text().count("PYTHONSAFEPATH") for shell in ("", ".fish", ".csh")] == [1, 1, 1]
    asked = f"source '{scripts}/activate'; '{sys.executable}' -c 'import sys; print(sys.path[:1])'"
    assert sys.version_info < (3, 11) or "['']" not in run(tmp_path, "bash", "-c", asked)


def test_processes_and_matplotlib_come_in_by_one_door_each() -> None:
    """46c01a2 started six children by `sys.executable -m` and imported matplotlib in seven files."""
    doors = {
        r"sys\.executable": {"start.py", "subprocesses.py", "progress.py"},
        r"(?m)^\s*(import|from) matplotlib": {"figures.py"},
    }
    for what, known in doors.items():
        files = {path.name for floor in FLOORS for path in (ROOT / floor).rglob("*.py") if re.search(what, path.read_text())}
        assert files == known, what


def test_ctrl_c_while_libraries_are_imported_is_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 showed a traceback of importlib. What is no Ctrl-C is shown whole."""
    for error in (KeyboardInterrupt(), ImportError("no torch")):
        elsewhere.shortly(type(error), error, None)
    assert capsys.readouterr().err == "interrupted\nImportError: no torch\n"
