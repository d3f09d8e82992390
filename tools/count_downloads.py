"""Count what tools/setup.sh downloads, extra by extra: python tools/count_downloads.py (needs uv and the package index).

uv resolves each set with constraints.txt for Python 3.12 on Linux x86_64 and says the size of every wheel; the sums stand in
tools/downloads.txt, which tools/setup.sh reads before it starts. tests/promises/test_setup.py fails when the pins have moved
since.
"""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tools" / "downloads.txt"
TORCH_CPU = 192
"""Megabytes of torch's CPU build (wheel of 2.13.0 for Python 3.11), which no index that uv asks here has."""
CUDA = ("torch", "triton", "nvidia-", "cuda-")
"""Beginnings of the names that torch's CPU build does without, and torch itself."""


def extras() -> list[str]:
    """Those of pyproject.toml, in its order."""
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def pins() -> str:
    """A fingerprint of what decides the versions: constraints.txt and the requirements of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    whole = (ROOT / "constraints.txt").read_text() + repr((project["dependencies"], project["optional-dependencies"]))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def megabytes(*chosen: str) -> dict[str, float]:
    """Package -> size of the file that is fetched, with these extras."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pylock.toml"
        flags = [word for extra in chosen for word in ("--extra", extra)]
        target = ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28"]
        pinned = ["--constraint", str(ROOT / "constraints.txt"), "--format", "pylock.toml", "--quiet", "-o", str(out)]
        subprocess.run(["uv", "pip", "compile", *target, *pinned, *flags, str(ROOT / "pyproject.toml")], check=True)
        packages = tomllib.loads(out.read_text())["packages"]
    return {package["name"]: fetched(package) / 1e6 for package in packages}


def fetched(package: dict[str, Any]) -> int:
    """Bytes of the wheel that fits best (one for this platform before one for any), else of the source."""
    wheels = sorted(package.get("wheels", []), key=lambda wheel: wheel["url"].endswith("-any.whl"))
    return int((wheels or [package["sdist"]])[0]["size"])


def main() -> None:
    """Write the table."""
    base = megabytes()
    without = sum(size for name, size in base.items() if name.startswith(CUDA) and name != "torchvision") - TORCH_CPU
    rows = {"base": sum(base.values()), "cpu-torch": -without}
    for extra in extras():
        rows[extra] = sum(megabytes(extra).values()) - rows["base"]
    head = (
        "# Megabytes that are fetched: the base, and what each extra and --cpu (cpu-torch) add. Made by tools/count_downloads.py."
    )
    TABLE.write_text("\n".join([head, f"# pins {pins()}", *(f"{name} {size:.0f}" for name, size in rows.items())]) + "\n")


if __name__ == "__main__":
    main()
