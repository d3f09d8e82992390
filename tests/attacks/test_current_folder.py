"""Files of the current folder that libraries take settings or machine code from (issue 18, 5).

The first attack and numba's were run on 46c01a2, where every command loaded and ran a `libcuda.so.1`; the others guard what was
built against them.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints import elsewhere
from checkpoints.cli import UserError
from pretrain.engine import trackers
from tests.support.commands import ROOT
from tests.support.programs import glass_blur
from transfer.exports import reload

START = str(ROOT / "checkpoints" / "start.py")
CONSTRUCTOR = (
    '#include <stdio.h>\n__attribute__((constructor)) static void run(void) { FILE *f = fopen("PWNED", "w"); fclose(f); }\n'
)
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which somebody else has filled."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert not (folder / "PWNED").exists()


def run(folder: Path, *words: str, **environment: str) -> str:
    """What a command says that ends well in this folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(words, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_no_driver_is_taken_from_the_current_folder(here: Path) -> None:
    """46c01a2 ran it, by any command: NVIDIA's libcusparseLt searches the current folder before the system's.

    The same by a folder with the name of an installer's placeholder on Python's path.
    """
    (here / "library.c").write_text(CONSTRUCTOR)
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", "library.c"], check=True)
    for placeholder in [entry for entry in sys.path if entry and not os.path.isabs(entry)] or ["__editable__.ibot"]:
        (here / placeholder / "nvidia" / "nvtx" / "lib").mkdir(parents=True)
        shutil.copy("libcuda.so.1", here / placeholder / "nvidia" / "nvtx" / "lib" / "libnvToolsExt.so.1")
    assert "usage: " in run(here, sys.executable, START, "checkpoints.inspect", "--help")
    assert "usage: " in run(here, sys.executable, "-m", "checkpoints.inspect", "--help", PYTHONPATH=str(ROOT))


def test_torch_is_imported_in_another_folder_whoever_starts_it(here: Path, tmp_path: Path) -> None:
    """What the test before does where torch has no such library, or no compiler is there. On 46c01a2 it was this folder."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "torch.py").write_text("import os\nprint('imported in', os.getcwd())\n")
    (kept / "script.py").write_text("import os, checkpoints.places\nprint('run in', os.getcwd())\n")
    (here / "placeholder").mkdir()
    said = run(here, sys.executable, START, "script", PYTHONPATH=f"placeholder:{kept}")
    assert said == f"imported in /\nrun in {here}\n"
    assert elsewhere.absolute(["/a", "placeholder", "gone", "/b"]) == ["/a", "gone", "/b"]


def test_the_current_folder_is_back_whatever_happens_elsewhere(here: Path) -> None:
    """A guard of the mechanism; 46c01a2 had none. The folder may have been moved or removed meanwhile."""
    with pytest.raises(ZeroDivisionError), elsewhere.elsewhere():
        assert Path.cwd() == Path("/")
        here.rename(here.with_name("moved"))
        raise ZeroDivisionError
    assert Path.cwd() == here.with_name("moved")


def test_optional_libraries_are_imported_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 46c01a2 they were imported here."""
    library = here.with_name("library")
    library.mkdir()
    (library / "wandb.py").write_text("import os\nfolder = os.getcwd()\n")
    monkeypatch.syspath_prepend(str(library))
    for imported in (elsewhere.imported("wandb"), reload.needed("wandb", "dev")):
        assert vars(imported)["folder"] == "/"


def test_numba_takes_no_settings_from_the_current_folder(here: Path) -> None:
    """On 46c01a2 it did, whenever it compiled: settings that are no list of settings ended the command in an AttributeError."""
    pytest.importorskip("imagecorruptions")
    (here / ".numba_config.yaml").write_text("- nonsense\n")
    said = run(here, sys.executable, "-m", "tests.support.programs.glass_blur", PYTHONPATH=str(ROOT))
    assert said.strip() == glass_blur.digest()


@pytest.mark.parametrize("file", ["wandb/settings", ".wandb/settings"])
def test_wandb_takes_no_server_from_the_current_folder(file: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 handed over to wandb, which reads `base_url` there and sends it the user's key (by its source)."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    (here / file).parent.mkdir()
    (here / file).write_text("[default]\nbase_url = https://attacker.example\n")
    with pytest.raises(UserError, match="would choose the server that W&B sends your key to"):
        trackers.tracker("wandb", "run", {})
    monkeypatch.setenv("WANDB_DIR", ".")
    trackers.look_through("wandb")
    trackers.look_through("mlflow")


@pytest.mark.parametrize("name", ["mlruns", "mlruns/0", "mlruns/0/meta.yaml", "mlflow.db"])
def test_mlflow_writes_through_no_link_in_the_current_folder(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 handed over to mlflow, which writes where they lead (by its source)."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (here / name).parent.mkdir(parents=True, exist_ok=True)
    (here / name).symlink_to(here.with_name("outside"))
    with pytest.raises(UserError, match=f"{name} is a link to"):
        trackers.tracker("mlflow", "run", {})
