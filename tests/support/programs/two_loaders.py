"""Two loaders with two workers each, half used; prints the workers' process ids and sleeps.

python -m tests.support.programs.two_loaders
"""

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from checkpoints.cli import run_command
from pretrain.batches import augment, masking
from pretrain.batches.dataset import StepDataset
from pretrain.batches.feeding import as_it_is
from pretrain.batches.loader import Loader
from pretrain.images.source import Images


class Large(Images):
    """Images whose batches do not fit into a pipe."""

    name = "large"

    def __len__(self) -> int:
        return 64

    def content(self, index: int) -> np.ndarray:
        return np.zeros((200, 200, 3), dtype=np.uint8)

    def where(self, index: int) -> str:
        return str(index)


class Numbers(Dataset[np.ndarray]):
    """The same, for a loader of torch alone."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> np.ndarray:
        return np.zeros(500_000)


def main(_: Sequence[str]) -> None:
    view = augment.View(112, (0.5, 1.0), 0.0, 0.0)
    views, masks = augment.MultiCrop((view,), view, 1), masking.MaskSettings((0.0,), (0.0,), "rand")
    steps = StepDataset(Large(), views, masks, (2, 2), 8, 0, make_crops=False)
    loader = Loader(steps, 0, 1000, 2, torch.device("cpu")).made()
    other: Any = DataLoader(Numbers(), batch_size=None, collate_fn=as_it_is, num_workers=2)
    kept = [iter(loader), iter(other)]  # an iterator that is dropped ends its workers
    for one in kept:
        next(one)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)


if __name__ == "__main__":
    run_command(main, [])
