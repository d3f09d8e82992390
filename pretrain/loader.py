"""Images to batches of crops and masks, from any step on.

Everything random is addressed by (seed, step, process), so the batch of a step is the same however training came there.
"""

import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from checkpoints.command import UserError
from pretrain import augment, distributed, masking
from pretrain.images import Images

# One stream of random numbers for each use, so that adding a draw to one does not move the others.
ORDER, CROPS, MASKS = 0, 1, 2


class Batch(NamedTuple):
    """One process's share of a step."""

    crops: Float[Tensor, "v b c h w"]
    masks: masking.Masks
    local_crops: Float[Tensor, "n b c hl wl"]

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        crops = self.crops.to(device, non_blocking=True)
        return Batch(crops, self.masks.to(device), self.local_crops.to(device, non_blocking=True))


class Steps(Dataset[Batch]):
    """Batches by the number of their step."""

    def __init__(
        self,
        images: Images,
        views: augment.MultiCrop,
        masks: masking.MaskSettings,
        grid: tuple[int, int],
        batch_size: int,
        seed: int,
    ) -> None:
        self.images, self.views, self.masks, self.grid = images, views, masks, grid
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.steps_per_epoch = len(images) // (batch_size * self.world_size)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))

    def chosen(self, step: int) -> np.ndarray:
        """Indices of the images of a step: every epoch a new order, every image at most once in it."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, ORDER, epoch])
            self._order = epoch, generator.permutation(len(self.images))
        start = (position * self.world_size + self.rank) * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def __getitem__(self, step: int) -> Batch:
        generator = np.random.default_rng([self.seed, CROPS, step, self.rank])
        images = [self.images[int(index)] for index in self.chosen(step)]
        crops = torch.stack([self._crops(generator, images, view) for view in self.views.global_views])
        local_view, size = self.views.local_view, self.views.local_view.size
        drawn = [self._crops(generator, images, local_view) for _ in range(self.views.locals)]
        local_crops = torch.stack(drawn) if drawn else crops.new_zeros(0, len(images), 3, size, size)
        masks = masking.draw(
            np.random.default_rng([self.seed, MASKS, step, self.rank]), self.masks, len(crops), len(images), *self.grid
        )
        return Batch(crops, masks, local_crops)

    def _crops(self, generator: np.random.Generator, images: list, view: augment.View) -> Tensor:
        cuts = np.stack([augment.cut(generator, image, view) for image in images])
        return augment.change(generator, cuts, view)


class Loader:
    """Batches on their device from `first` up to `last`; `waited` is the seconds the loop has stood still for them."""

    def __init__(self, steps: Steps, first: int, last: int, workers: int, device: torch.device) -> None:
        self.device = device
        self.waited = 0.0
        self._loader = DataLoader(
            steps,
            batch_size=None,
            sampler=range(first, last),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=4 if workers else None,
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # its own: the global one belongs to the networks
        )

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)
        while True:
            start = time.perf_counter()
            batch = _next(batches)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch.to(self.device)


def _next(batches: Iterator[Batch]) -> Batch | None:
    try:
        return next(batches, None)
    except UserError as error:  # from a worker it comes with that worker's traceback around it
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("checkpoints.command.UserError: ")) from None


def _prepare_worker(_: int) -> None:
    """One thread each; Ctrl-C is the main process's to answer."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
