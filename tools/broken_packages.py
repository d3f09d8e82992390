"""Take out the packages of this Python's environment that were not written whole, so that they are installed again; names them.

For tools/setup.sh after a set-up that was interrupted: pip and uv take a package for installed by its .dist-info folder alone.
"""

import shutil
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path


def whole(package: Distribution) -> bool:
    """Whether each file that its RECORD names is there with its size."""
    files = package.files
    if package.read_text("RECORD") is None or files is None:
        return False
    for file in files:
        try:
            size = Path(str(file.locate())).stat().st_size
        except OSError:
            if file.suffix != ".pyc":
                return False
            continue
        if file.size is not None and file.size != size:
            return False
    return True


def main() -> None:
    """Remove the .dist-info of what is broken; its other files are written over."""
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for package in list(distributions(path=[place])):
            folder = Path(str(package.locate_file(""))) / getattr(package, "_path", "")
            if folder.suffix == ".dist-info" and not whole(package):
                print(f"not whole: {folder.name}")
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
