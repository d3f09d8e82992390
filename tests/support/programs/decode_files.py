"""Decode files one after the other; a JSON line for each: what it gave, and the bytes of memory that it took at its height.

python -m tests.support.programs.decode_files FILES      FILES: JSON list of [path, channels]
"""

import json
import sys
from pathlib import Path

import tifffile  # noqa: F401 (its memory is not a file's)

from pretrain.images.decode import BadImage
from pretrain.images.source import Files


def status(name: str) -> int:
    """Bytes of this process under that name, of which /proc tells in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    for name, channels in json.loads(sys.argv[1]):
        images = Files("files", [Path(name)], None)
        images.channels = channels
        Path("/proc/self/clear_refs").write_text("5")  # the highest use so far is forgotten
        before = status("VmRSS")
        try:
            said = str(images[0].shape)
        except BadImage as error:
            said = f"BadImage: {error}"
        print(json.dumps({"said": said, "peak": status("VmHWM") - before}))


if __name__ == "__main__":
    main()
