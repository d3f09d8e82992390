"""tools/setup.sh on an empty machine: what it says before, by what it installs, and what mends it after an interruption."""

import importlib
import re
import shutil
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.setting_up import Project, wheel

VERSION = "from importlib.metadata import version; print(version('torch'))"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a project that is set up, and what was said."""
    folder = tmp_path_factory.mktemp("ready")
    code, said = Project(folder).setup()
    assert code == 0, said
    return folder, said


def copied(ready: tuple[Path, str], project: Project) -> Project:
    """The project, set up."""
    shutil.copytree(ready[0] / "project" / ".venv", project.root / ".venv", symlinks=True)
    return project


def test_the_sizes_are_those_of_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    counting = importlib.import_module("count_downloads")
    rows = dict(line.split() for line in counting.TABLE.read_text().splitlines() if not line.startswith("#"))
    assert set(rows) == {"base", "cpu-torch", *counting.extras()}
    assert f"# pins {counting.pins()}" in counting.TABLE.read_text(), "python tools/count_downloads.py"
    assert int(rows["base"]) + int(rows["cpu-torch"]) > 0


def test_sizes_and_minutes_are_said_before_anything_is_fetched(ready: tuple[Path, str]) -> None:
    """The first build said 3 GB whatever was asked for, and nothing more until the end."""
    said, before = ready[1], ready[1].partition("environment ready")[0]
    assert re.search(r"pip fetches about 3\.\d GB \(\d\.\d GB on disk\): about \d+ minutes at 100 Mbit/s", before), before
    assert "has what is needed" in said
    assert not (ready[0] / "project" / ".venv" / "unfinished").exists()


def test_what_is_there_stays(ready: tuple[Path, str], project: Project) -> None:
    code, said = copied(ready, project).setup(PIP_FIND_LINKS="/nowhere")
    assert code == 0 and "fetches" not in said


@pytest.mark.parametrize("there", [True, False])
def test_torch_for_the_cpu_comes_from_the_index_that_was_named_else_the_other_is_taken_aloud(
    there: bool, project: Project
) -> None:
    named = project.root.parent / "named"
    named.mkdir()
    for module in ("torch", "torchvision") if there else ():
        wheel(named, module, "2.15.0+cpu")
    code, said = project.setup("--cpu", TORCH_INDEX=str(named))
    assert code == 0, said
    assert project.asked(VERSION) == ("2.15.0+cpu" if there else "2.15.0")
    assert ("has no CPU build of the pinned torch" in said) is not there
    assert "fetches about 0." in said


def test_ctrl_c_leaves_what_the_next_call_mends(project: Project) -> None:
    """The first build took any folder `torch` for an installed torch."""
    code, said = project.interrupted()
    assert code == 130 and "interrupted: start again" in said and "Traceback" not in said
    assert (project.root / ".venv" / "unfinished").exists()
    code, said = project.setup()
    assert code == 0 and "the last set-up did not end" in said, said
    assert project.asked(VERSION) == "2.15.0"


@pytest.mark.parametrize("harm", ["a file is missing", "a file is cut off", "no record"])
def test_a_package_in_parts_is_installed_again(harm: str, ready: tuple[Path, str], project: Project) -> None:
    packages = copied(ready, project).packages()
    (project.root / ".venv" / "unfinished").touch()
    if harm == "no record":
        (packages / "torch-2.15.0.dist-info" / "RECORD").unlink()
    elif harm == "a file is missing":
        (packages / "torch" / "__init__.py").unlink()
    else:
        (packages / "torch" / "__init__.py").write_text("")
    code, said = project.setup()
    assert code == 0, said
    assert (packages / "torch-2.15.0.dist-info" / "RECORD").exists()
    assert project.asked("import torch; print(torch.version)") == "2.15.0"


def test_a_full_disk_is_named_and_pip_is_not_tried_after_uv(ready: tuple[Path, str], project: Project) -> None:
    copied(ready, project).tool("uv", "echo 'error: No space left on device (os error 28)'; exit 2")
    shutil.rmtree(project.packages() / "timm")
    code, said = project.setup(UV_FIND_LINKS=str(project.index))
    assert code == 1 and "error: the disk is full" in said and "pip goes on" not in said
    assert (project.root / ".venv" / "unfinished").exists()


def test_without_a_network_one_sentence_says_so(ready: tuple[Path, str], project: Project) -> None:
    shutil.rmtree(copied(ready, project).packages() / "timm")
    shutil.rmtree(project.packages() / "timm-1.dist-info")
    nowhere = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    code, said = project.setup(**nowhere)
    assert code == 1 and "error: the package index could not be reached" in said, said


def test_uv_installs_with_the_same_pins_where_it_is_there_and_pip_where_it_fails(
    ready: tuple[Path, str], project: Project
) -> None:
    copied(ready, project)
    asked = project.root.parent / "asked"
    timm = project.packages() / "timm"
    for script, said_by in (
        (f'echo "$@" >>{asked}; shift 4; exec "$PY" -m pip install "$@"', "uv fetches"),
        ("exit 2", "pip goes on"),
    ):
        shutil.rmtree(timm)
        shutil.rmtree(timm.with_name("timm-1.dist-info"))
        project.tool("uv", script)
        python = str(project.root / ".venv" / "bin" / "python")
        code, said = project.setup(UV_FIND_LINKS=str(project.index), PY=python)
        assert code == 0 and said_by in said and timm.is_dir(), said
    assert asked.read_text().startswith(
        f"pip install --python {python} --constraint {project.root / 'constraints.txt'} --editable"
    )


def test_pip_is_used_where_it_has_an_index_of_its_own(ready: tuple[Path, str], project: Project) -> None:
    """uv reads no settings of pip: it would ask another index than the one that was chosen."""
    shutil.rmtree(copied(ready, project).packages() / "timm")
    project.tool("uv", "exit 3")
    code, said = project.setup()
    assert code == 0 and "pip installs: its settings name another index" in said and "pip fetches" in said, said


@pytest.mark.parametrize("both", [True, False])
def test_openmmlabs_own_packages_are_not_written_over(both: bool, ready: tuple[Path, str], project: Project) -> None:
    packages = copied(ready, project).packages()
    for name in ("mmdet-3.3.0", *["onedl_mmdetection-3.5.1"] * both):
        (packages / f"{name}.dist-info").mkdir()
        (packages / f"{name}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.split('-')[0]}\nVersion: 3\n"
        )
    code, said = project.setup(*([] if both else ["transfer"]))
    assert code == 2 and said.count("error: ") == 1 and "pip uninstall mmdet" in said, said


@pytest.mark.parametrize("wrong", [("--cpu", "gpu"), ("cpu", "gpu"), ("nonsense",)])
def test_what_cannot_be_set_up_is_said_before_anything_is_made(wrong: tuple[str, ...], project: Project) -> None:
    code, said = project.setup(*wrong)
    assert code == 2 and said.startswith("error: ") and not (project.root / ".venv").exists()
