"""A little project beside the real tools/setup.sh, and packages that are a few bytes: set-ups of seconds, without a network."""

import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

from tests.support.commands import ROOT

TOOLS = ("setup.sh", "install.sh", "broken_packages.py", "downloads.txt")
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "little"
version = "1"
"""
BACKEND = """
import os, time, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    if os.path.exists("slow"):
        print("building slowly", flush=True)
        time.sleep(60)
    with zipfile.ZipFile(os.path.join(folder, "little-1-py3-none-any.whl"), "w") as file:
        needs = "".join(f"Requires-Dist: {one}\\n" for one in NEEDS)
        extras = "".join(f"Provides-Extra: {one}\\n" for one in ("dev", "cpu", "gpu", "gpu-cuda12", "tensorboard"))
        file.writestr("little-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: little\\nVersion: 1\\n" + needs + extras)
        file.writestr("little-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        file.writestr("little-1.dist-info/RECORD", "")
    return "little-1-py3-none-any.whl"
"""
MODULES = re.findall(r'^BASE_MODULES="(.*)"', (ROOT / "tools" / "setup.sh").read_text(), re.MULTILINE)[0].split()


def wheel(folder: Path, name: str, version: str, **files: str) -> None:
    """A wheel of one module of that name."""
    folder.mkdir(exist_ok=True)
    about = f"{name.replace('-', '_')}-{version}.dist-info"
    inside = {f"{name.replace('-', '_')}/__init__.py": f"version = {version!r}\n", **files}
    inside[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    inside[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    digest = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for path, text in inside.items()
    }
    lines = [f"{path},sha256={digest[path]},{len(text)}" for path, text in inside.items()]
    inside[f"{about}/RECORD"] = "\n".join([*lines, f"{about}/RECORD,,", ""])
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as file:
        for path, text in inside.items():
            file.writestr(path, text)


class Project:
    """The folder that is set up."""

    def __init__(self, folder: Path) -> None:
        """Makes it, with all modules of the base as packages in `folder`/index."""
        self.root, self.index = folder / "project", folder / "index"
        (self.root / "tools").mkdir(parents=True)
        for tool in TOOLS:
            shutil.copy(ROOT / "tools" / tool, self.root / "tools")
        (self.root / "pyproject.toml").write_text(PROJECT)
        (self.root / "backend.py").write_text(f"NEEDS = {MODULES!r}" + BACKEND)
        (self.root / "constraints.txt").write_text("torch==2.15.0\n")
        for module in MODULES:
            wheel(self.index, module, "2.15.0" if module == "torch" else "1")
        self.environment = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        self.bin = folder / "bin"
        self.bin.mkdir()
        path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "uv").exists())
        self.environment |= {"PATH": f"{self.bin}{os.pathsep}{path}", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index)}
        self.environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}

    def tool(self, name: str, script: str) -> None:
        """A command on the path."""
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def setup(self, *flags: str, **environment: str) -> tuple[int, str]:
        """Exit code and words of tools/setup.sh."""
        words = ["bash", str(self.root / "tools" / "setup.sh"), *flags]
        whole = {**self.environment, **environment}
        done = subprocess.run(words, env=whole, cwd=self.root.parent, capture_output=True, text=True, check=False, timeout=300)
        return done.returncode, done.stdout + done.stderr

    def interrupted(self) -> tuple[int, str]:
        """The same, with Ctrl-C while pip builds."""
        # Behind a shell's `&` Ctrl-C is ignored, and a shell that begins so cannot trap it.
        words = ["env", "--default-signal=INT", "bash", str(self.root / "tools" / "setup.sh")]
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        (self.root / "slow").touch()
        with subprocess.Popen(words, env=self.environment, text=True, start_new_session=True, **piped) as process:  # type: ignore[call-overload]
            while process.poll() is None and not self._says("Preparing editable metadata", "Building editable"):
                time.sleep(0.2)
            os.killpg(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        (self.root / "slow").unlink()
        return process.returncode, said

    def _says(self, *words: str) -> bool:
        log = self.root / ".venv" / "setup.log"
        return log.exists() and any(word in log.read_text() for word in words)

    def asked(self, script: str) -> str:
        """What the environment's Python prints."""
        python = self.root / ".venv" / "bin" / "python"
        return subprocess.run(
            [python, "-c", script], capture_output=True, text=True, check=True, cwd=self.root.parent
        ).stdout.strip()

    def packages(self) -> Path:
        """The folder of installed packages."""
        return Path(self.asked("import sysconfig; print(sysconfig.get_path('purelib'))"))
