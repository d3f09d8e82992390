"""Load checkpoints as a dense run that goes on does: one that was written by MMEngine, and some that would run or fetch.

    python -m tests.support.programs.resume_dense FOLDER

Prints whether the config of the first was kept, and a line for each of the others.
"""

import os
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from transfer.config import toolboxes


class Bomb:
    """Unpickled in the unsafe way, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    toolboxes()
    from mmengine.logging.history_buffer import HistoryBuffer  # noqa: PLC0415 (after its registries are made)
    from mmengine.runner import CheckpointLoader  # noqa: PLC0415

    def load(name: str) -> dict[str, Any]:
        return CheckpointLoader.load_checkpoint(name, "cpu", logger="silent")

    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {"meta": {"config": "open('ran', 'w')", "iter": 2}, "message_hub": {"log_scalars": OrderedDict(loss=history)}}
    torch.save(content, folder / "iter_2.pth")
    found = load(str(folder / "iter_2.pth"))
    back = found["message_hub"]["log_scalars"]["loss"]
    back.update(6.0)
    assert (back.mean(), back.max()) == (3.0, 6.0), (back.mean(), back.max())
    print("config" in found["meta"])
    torch.save({"meta": Bomb(folder / "ran")}, folder / "bomb.pth")
    for name in (str(folder / "bomb.pth"), "https://127.0.0.1:9/model.pth", "torchvision://resnet50"):
        try:
            load(name)
            print("read")
        except Exception as error:
            print(type(error).__name__, error)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
