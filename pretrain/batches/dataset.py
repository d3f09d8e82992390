"""The batch of any step: which images, what is drawn for them, and their crops.

Everything random is addressed by (seed, step, process), so the batch of a step is the same however training came there.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from checkpoints.architecture import MEAN, STD
from checkpoints.cli import WorkError
from pretrain.batches import augment, masking, resample
from pretrain.engine import distributed
from pretrain.engine.bad_images import Bad, too_many
from pretrain.images.decode import BadImage
from pretrain.images.source import Images

# One stream of random numbers for each use, so that adding a draw to one does not move the others.
ORDER, CROPS, MASKS, LOCAL_MASKS = 0, 1, 2, 3


class Placed(NamedTuple):
    """Positions of the global crops in their images: left, upper, width, height in pixels, and whether they are mirrored."""

    box: Int[Tensor, "v b 4"]
    flip: Bool[Tensor, "v b"]


class Batch(NamedTuple):
    """One process's share of a step."""

    crops: Float[Tensor, "v b c h w"]
    masks: masking.Masks
    local_crops: Float[Tensor, "n b c hl wl"]
    bad: Sequence[Bad] = ()
    """Images that others had to stand in for."""
    placed: Placed | None = None
    local_masks: masking.Masks | None = None
    """Masks of local crops; None unless these are masked too."""

    def to(self, device: torch.device) -> "Batch":
        return cast(Batch, _to(self, device))

    def tensors(self) -> Iterator[Tensor]:
        """All of them, masks' own included."""
        yield from _tensors(self)


def _to(value: Any, device: torch.device) -> Any:
    """Tensors in named tuples on another device, everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    nested = isinstance(value, Batch | Placed | masking.Masks)
    return type(value)(*(_to(part, device) for part in value)) if nested else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Batch | Placed | masking.Masks):
        for part in value:
            yield from _tensors(part)


class Decoded(NamedTuple):
    """A batch whose crops are not made yet."""

    images: resample.Packed
    global_crops: Sequence[augment.Crops]
    local_crops: augment.Crops
    masks: masking.Masks
    bad: Sequence[Bad]
    step: int
    local_masks: masking.Masks | None = None


class Chosen(NamedTuple):
    """The images of a step, decoded (or left to the device), and what is to be done with them."""

    pixels: list[np.ndarray | resample.Jpeg]
    crops: list[augment.Crops]
    bad: list[Bad]


class StepDataset(Dataset[Batch | Decoded]):
    """Batches by their number: that of the step, or `accumulate` of them for each step.

    `make_crops` false leaves crops to the device, `device_decodes` also plain JPEGs; with `local_grid` local crops have masks.
    """

    def __init__(
        self,
        images: Images,
        views: augment.MultiCrop,
        masks: masking.MaskSettings,
        grid: tuple[int, int],
        batch_size: int,
        seed: int,
        *,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        accumulate: int = 1,
        most_bad: int = 20,
        make_crops: bool = True,
        device_decodes: bool = False,
        local_grid: tuple[int, int] | None = None,
    ) -> None:
        self.images, self.views, self.masks, self.grid = images, views, masks, grid
        self.batch_size, self.seed, self.mean, self.std = batch_size, seed, mean, std
        self.most_bad, self.make_crops, self.device_decodes = most_bad, make_crops, device_decodes
        self.local_grid = local_grid
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.accumulate = accumulate
        self.steps_per_epoch = len(images) // (batch_size * self.world_size * accumulate)
        self._known_bad: dict[int, str] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))

    def chosen(self, step: int) -> np.ndarray:
        """Indices of the images of a step: every epoch a new order, every image at most once in it."""
        epoch, position = divmod(step, self.steps_per_epoch * self.accumulate)
        if self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, ORDER, epoch])
            self._order = epoch, self.images.order(generator)
        start = (position * self.world_size + self.rank) * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def __getitem__(self, step: int) -> Batch | Decoded:
        return self.get(step, device_decodes=self.device_decodes)

    def get(self, step: int, *, device_decodes: bool) -> Batch | Decoded:
        """The batch of a step."""
        generator = np.random.default_rng([self.seed, CROPS, step, self.rank])
        pixels, crops, bad = self._decode(self.chosen(step), self._draw(generator), device_decodes)
        generator = np.random.default_rng([self.seed, MASKS, step, self.rank])
        masks = masking.draw(generator, self.masks, len(self.views.global_views), self.batch_size, *self.grid)
        global_crops, local_crops = crops[:-1], crops[-1]
        local_masks = self._local_masks(step)
        if self.make_crops:
            ready = [array for array in pixels if isinstance(array, np.ndarray)]
            batch = make_batch(ready, global_crops, local_crops, masks, bad, self.mean, self.std)
            return batch._replace(local_masks=local_masks)
        return Decoded(resample.pack(pixels), global_crops, local_crops, masks, bad, step, local_masks)

    def _local_masks(self, step: int) -> masking.Masks | None:
        if self.local_grid is None:
            return None
        generator = np.random.default_rng([self.seed, LOCAL_MASKS, step, self.rank])
        return masking.draw(generator, self.masks, self.views.locals, self.batch_size, *self.local_grid)

    def _draw(self, generator: np.random.Generator) -> list[augment.Draws]:
        """Draws of each global view, then of the local views."""
        drawn = [augment.draw(generator, view, 1, self.batch_size) for view in self.views.global_views]
        return [*drawn, augment.draw(generator, self.views.local_view, self.views.locals, self.batch_size)]

    def _decode(self, indices: np.ndarray, draws: list[augment.Draws], device_decodes: bool) -> Chosen:
        """Every image as small as its crops allow, with their boxes in it; good images stand in for bad ones."""
        sizes = [*(view.size for view in self.views.global_views), self.views.local_view.size]
        size_of_crop = np.repeat(sizes, [len(drawn.flip) for drawn in draws])
        pixels: list[np.ndarray | resample.Jpeg] = []
        placed: list[np.ndarray] = []
        bad: list[Bad] = []
        for number, index in enumerate(indices):
            of_image = [augment.Draws(*(values[:, number : number + 1] for values in drawn)) for drawn in draws]
            array, box = self._decode_one(int(index), of_image, size_of_crop, bad, device_decodes)
            pixels.append(array)
            placed.append(box)
        if len({array.dtype for array in pixels if isinstance(array, np.ndarray)}) > 1:  # 8 bit beside deeper ones
            pixels = [_unit(array) if isinstance(array, np.ndarray) else array for array in pixels]
        counts = np.cumsum([len(drawn.flip) for drawn in draws])[:-1]
        groups = np.split(np.stack(placed, axis=1), counts)
        crops = [augment.Crops(drawn, box, size) for drawn, box, size in zip(draws, groups, sizes, strict=True)]
        return Chosen(pixels, crops, bad)

    def _decode_one(
        self, index: int, draws: list[augment.Draws], sizes: np.ndarray, bad: list[Bad], device_decodes: bool
    ) -> tuple[np.ndarray | resample.Jpeg, np.ndarray]:
        """The image, or the next good one, and the boxes [x, 4] of its crops. Raises WorkError when too many are bad.

        The next by number, whatever was met before; what this process has found bad is named again, not read again.
        """
        for _ in range(self.most_bad + 1):
            try:
                if index in self._known_bad:
                    raise BadImage(self._known_bad[index])
                opened = self.images.open(index)
                size = np.array([opened.width]), np.array([opened.height])
                box = np.concatenate([augment.boxes(drawn, *size)[:, 0] for drawn in draws])
                if device_decodes and opened.plain_jpeg():
                    return resample.Jpeg(opened.encoded, opened.width, opened.height), box
                factor = augment.reduction(box, sizes)
                pixels = opened.pixels(factor)
                if pixels.shape[:2] != (opened.height, opened.width):
                    box = augment.shrink(box, round(opened.width / pixels.shape[1]), pixels.shape[1], pixels.shape[0])
                return pixels, box
            except BadImage as error:
                self._known_bad[index] = str(error)
                bad.append(Bad(index, self.images.where(index), str(error)))
                index = (index + 1) % len(self.images)
        raise WorkError(too_many(bad, self.most_bad))


def _unit(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array


def make_batch(
    images: Sequence[np.ndarray] | resample.Packed,
    global_crops: Sequence[augment.Crops],
    local_crops: augment.Crops,
    masks: masking.Masks,
    bad: Sequence[Bad],
    mean: Sequence[float],
    std: Sequence[float],
) -> Batch:
    """Crops from images, where those are."""
    crops = torch.cat([augment.make(images, crops, mean, std) for crops in global_crops])
    shape = (0, crops.shape[1], crops.shape[2], local_crops.size, local_crops.size)
    made = augment.make(images, local_crops, mean, std) if len(local_crops.box) else crops.new_zeros(shape)
    box = torch.from_numpy(np.concatenate([view.box for view in global_crops])).to(crops.device, non_blocking=True)
    flip = torch.from_numpy(np.concatenate([view.draws.flip for view in global_crops])).to(crops.device, non_blocking=True)
    return Batch(crops, masks, made, bad, Placed(box, flip))
