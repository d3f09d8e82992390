"""The batch of any step: which images, what is drawn for them, and their crops.

Everything random is addressed by (seed, step, process), so the batch of a step is the same however training came there.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from checkpoints.architecture import MEAN, STD
from checkpoints.cli import WorkError
from pretrain.batches import augment, color_table, masking
from pretrain.engine import distributed
from pretrain.engine.bad_images import Bad, too_many
from pretrain.images.decode import BadImage
from pretrain.images.source import Images

# One stream of random numbers for each use, so that adding a draw to one does not move the others.
ORDER, CROPS, MASKS, LOCAL_MASKS = 0, 1, 2, 3
Change = Callable[[Tensor, Tensor, Sequence[float], Sequence[float]], Tensor]


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
    nested = isinstance(value, Batch | Cut | Placed | masking.Masks)
    return type(value)(*(_to(part, device) for part in value)) if nested else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Batch | Cut | Placed | masking.Masks):
        for part in value:
            yield from _tensors(part)


class Cut(NamedTuple):
    """The batch as its crops were cut out, 8 bit where the images are, before their colours change."""

    crops: Tensor
    """[v, b, c, h, w]"""
    local_crops: Tensor
    """[n, b, c, hl, wl]"""
    draws: augment.Draws
    local_draws: augment.Draws
    placed: Placed
    masks: masking.Masks
    bad: Sequence[Bad] = ()
    local_masks: masking.Masks | None = None
    table: Tensor | None = None
    """The draws once more, as `color_kernels` reads them; None for crops that it cannot change."""
    local_table: Tensor | None = None

    def to(self, device: torch.device) -> "Cut":
        return cast(Cut, _to(self, device))

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, those of masks included."""
        yield from _tensors(self)


class StepDataset(Dataset[Batch | Cut]):
    """Batches by their number: that of the step, or `accumulate` of them for each step.

    `make_crops` false leaves the crops' colours to the device; with `local_grid` local crops have masks.
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
        local_grid: tuple[int, int] | None = None,
    ) -> None:
        self.images, self.views, self.masks, self.grid = images, views, masks, grid
        self.batch_size, self.seed, self.mean, self.std = batch_size, seed, mean, std
        self.most_bad, self.make_crops = most_bad, make_crops
        self.local_grid = local_grid
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.accumulate = accumulate
        self.steps_per_epoch = len(images) // (batch_size * self.world_size * accumulate)
        self._known_bad: dict[int, str] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))

    @property
    def most_bytes(self) -> int:
        """No batch needs more; the masks and what else there is are less than the tenth that is added."""
        views = self.views
        sides = [*(view.size for view in views.global_views), *[views.local_view.size] * views.locals]
        values = self.batch_size * self.images.channels * sum(side**2 for side in sides)
        deep = self.make_crops or self.images.channels != color_table.CHANNELS
        return math.ceil(values * (4 if deep else 1) * 1.1) + (1 << 20)

    def chosen(self, step: int) -> np.ndarray:
        """Indices of the images of a step: every epoch a new order, every image at most once in it."""
        epoch, position = divmod(step, self.steps_per_epoch * self.accumulate)
        if self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, ORDER, epoch])
            self._order = epoch, self.images.order(generator)
        start = (position * self.world_size + self.rank) * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def __getitem__(self, step: int) -> Batch | Cut:
        """The batch of a step."""
        generator = np.random.default_rng([self.seed, CROPS, step, self.rank])
        (draws, local_draws), held, box, bad = self._cut(self.chosen(step), self._draw(generator))
        generator = np.random.default_rng([self.seed, MASKS, step, self.rank])
        masks = masking.draw(generator, self.masks, len(self.views.global_views), self.batch_size, *self.grid)
        placed = Placed(torch.from_numpy(box), torch.from_numpy(draws.flip))
        cut = Cut(held[0].crops, held[1].crops, draws, local_draws, placed, masks, bad, self._local_masks(step))
        return make_batch(cut, self.mean, self.std) if self.make_crops else _with_tables(cut)

    def _local_masks(self, step: int) -> masking.Masks | None:
        if self.local_grid is None:
            return None
        generator = np.random.default_rng([self.seed, LOCAL_MASKS, step, self.rank])
        return masking.draw(generator, self.masks, self.views.locals, self.batch_size, *self.local_grid)

    def _draw(self, generator: np.random.Generator) -> list[augment.Draws]:
        """Draws of each global view, then of the local views."""
        drawn = [augment.draw(generator, view, 1, self.batch_size) for view in self.views.global_views]
        return [*drawn, augment.draw(generator, self.views.local_view, self.views.locals, self.batch_size)]

    def _cut(
        self, indices: np.ndarray, draws: Sequence[augment.Draws]
    ) -> tuple[tuple[augment.Draws, augment.Draws], list[augment.Held], np.ndarray, list[Bad]]:
        """Draws and crops of the global views together and of the local ones, the global ones' boxes, images that were bad.

        Each image is let go once its crops are cut out; good images stand in for bad ones.
        """
        sizes = [view.size for view in (*self.views.global_views, self.views.local_view)]
        size_of_crop = np.repeat(sizes, [len(drawn.flip) for drawn in draws])
        many, images = len(draws) - 1, len(indices)
        held = [augment.Held(many, images, sizes[0]), augment.Held(self.views.locals, images, sizes[-1])]
        placed = np.empty((many, images, 4), dtype=np.int64)
        bad: list[Bad] = []
        for number, index in enumerate(indices):
            of_image = [augment.Draws(*(values[:, number : number + 1] for values in drawn)) for drawn in draws]
            pixels, box = self._decode_one(int(index), of_image, size_of_crop, bad)
            flip = np.concatenate([drawn.flip[:, 0] for drawn in of_image])
            placed[:, number] = box[:many]
            held[0].put(number, pixels, box[:many], flip[:many])
            held[1].put(number, pixels, box[many:], flip[many:])
        together = augment.Draws(*map(np.concatenate, zip(*draws[:-1], strict=True)))
        return (together, draws[-1]), held, placed, bad

    def _decode_one(
        self, index: int, draws: list[augment.Draws], sizes: np.ndarray, bad: list[Bad]
    ) -> tuple[np.ndarray, np.ndarray]:
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


def _with_tables(cut: Cut) -> Cut:
    """The same with the tables of both kinds of crops, where these have three channels of 8 bit."""
    if cut.crops.dtype != torch.uint8 or cut.crops.shape[2] != color_table.CHANNELS:
        return cut
    table, local_table = (color_table.table(augment.flat(draws)) for draws in (cut.draws, cut.local_draws))
    return cut._replace(table=table, local_table=local_table)


def make_batch(cut: Cut, mean: Sequence[float], std: Sequence[float], kernels: Change | None = None) -> Batch:
    """The batch with its finished crops, where they lie: by `color_kernels.change` if that is given and can change them."""
    if kernels is not None and cut.table is not None and cut.local_table is not None:
        crops, local_crops = (
            kernels(crops.flatten(0, 1), table, mean, std).unflatten(0, crops.shape[:2]) if len(table) else crops.float()
            for crops, table in ((cut.crops, cut.table), (cut.local_crops, cut.local_table))
        )
        return Batch(crops, cut.masks, local_crops, cut.bad, cut.placed, cut.local_masks)
    crops = torch.empty(cut.crops.shape, device=cut.crops.device)
    for view in range(len(crops)):
        part = slice(view, view + 1)
        augment.finish(cut.crops[part], augment.Draws(*(values[part] for values in cut.draws)), mean, std, out=crops[part])
    local_crops = augment.finish(cut.local_crops, cut.local_draws, mean, std)
    return Batch(crops, cut.masks, local_crops, cut.bad, cut.placed, cut.local_masks)
