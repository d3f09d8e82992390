"""Weighted k-nearest-neighbour classification (paper section 4.1), on features that are already there.

q queries, t bank, d width, k neighbours.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain.batches import augment
from pretrain.batches.augment import REDUCTION_MARGIN
from pretrain.batches.feeding import fed
from pretrain.evaluate import finite
from pretrain.evaluate.views import evaluation_view
from pretrain.images.decode import BadImage
from pretrain.images.source import Images
from pretrain.models.backbone import Backbone
from pretrain.models.measured import pooled

TEMPERATURE = 0.07
KS = (10, 20, 100, 200)
TOP = 5
BLOCK = 1024
"""Queries at a time."""
MOST_VALUES = 1 << 26
"""Of neighbours at a time: queries x neighbours x what each has."""
PIECE = 65536
"""Rows of the bank at a time."""


def features(
    backbone: Backbone, images: Images, *, resize: int, crop: int, batch_size: int = 256, workers: int = 0, reduced: bool = False
) -> Float[Tensor, "q d"]:
    """Last [CLS] token (or pooled feature) of every image, of length one, float32 on the CPU, on the probes' centre crop.

    `workers` processes decode; `reduced`: large JPEGs at a fraction of their size, which moves pixels by about one level of 255.
    Raises WorkError naming an image whose token is not finite.
    """
    device, shape = next(backbone.parameters()).device, backbone.shape
    blocks = [torch.empty(0, shape.embed_dim)]
    batches = [range(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
    views = _Views(images, resize, crop, shape, reduced)
    crops = fed(views, batches, min(workers, len(batches)), collate=torch.stack, ahead=2, pin_memory=device.type == "cuda")
    for numbers, batch in zip(batches, crops, strict=True):
        with torch.inference_mode():
            tokens = pooled(backbone, batch.to(device, non_blocking=True)).float()
            finite.checked(tokens, backbone, lambda row, numbers=numbers: images.where(numbers[row]))  # type: ignore[misc]
            blocks.append(F.normalize(tokens, dim=1).cpu())
    return torch.cat(blocks)


class _Views(Dataset[Any]):
    """The probes' view of each image."""

    def __init__(self, images: Images, resize: int, crop: int, shape: Architecture, reduced: bool) -> None:
        self._images, self._resize, self._crop, self._shape, self._reduced = images, resize, crop, shape, reduced

    def __getitem__(self, number: int) -> Tensor:
        pixels = read(self._images, number, REDUCTION_MARGIN * self._resize if self._reduced else None)
        return evaluation_view(pixels, self._resize, self._crop, mean=self._shape.mean, std=self._shape.std)


def read(images: Images, number: int, least: int | None = None) -> np.ndarray:
    """The pixels of an image that must be there; `least`: a side that is long enough, where it can be decoded smaller.

    Raises UserError naming an image that is not there.
    """
    try:
        if least is None:
            return images[number]
        opened = images.open(number)
        return opened.pixels(max(1, min(opened.width, opened.height) // least))
    except BadImage as error:
        raise UserError(f"{images.where(number)} cannot be used ({error}): repair it or take it out") from error


def pixels(
    images: Images, mean: Sequence[float] = augment.MEAN, std: Sequence[float] = augment.STD, *, resize: int, crop: int
) -> Float[Tensor, "q d"]:
    """The baseline that has learnt nothing: each image's normalised pixels, of length one."""
    views = [evaluation_view(read(images, n), resize, crop, mean=mean, std=std).flatten() for n in range(len(images))]
    return F.normalize(torch.stack(views), dim=1)


class Found(NamedTuple):
    """The k nearest of each query, nearest first."""

    similarity: Float[Tensor, "q k"]
    row: Int[Tensor, "q k"]
    """Row of the bank."""


Within = Callable[[Tensor, Tensor, int], Found]
"""Finds the nearest of queries [q, d] in one piece of a bank [t, d]."""


def by_product(queries: Float[Tensor, "q d"], bank: Float[Tensor, "t d"], count: int) -> Found:
    """By blocked matrix products: memory is BLOCK x bank."""
    parts = [(block @ bank.T).topk(count, dim=1) for block in queries.split(BLOCK)]
    return Found(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]))


def nearest(
    queries: Float[Tensor, "q d"],
    bank: Float[np.ndarray, "t d"] | Float[Tensor, "t d"],
    count: int,
    *,
    within: Within = by_product,
    others: bool = False,
    unit: bool = False,
) -> Found:
    """The `count` rows of the bank (or all) with the largest dot products, on the queries' device.

    The bank may be an array on disk: it is read once, PIECE rows at a time, and memory does not grow with it. `unit`: its rows
    are normalised. `others`: the queries are the bank; excludes each query from its own neighbours (leave-one-out).
    """
    wanted = min(count, len(bank) - others)
    best: Found | None = None
    for start in range(0, len(bank), PIECE):
        rows = bank[start : start + PIECE]
        piece = (rows if isinstance(rows, Tensor) else torch.tensor(rows)).to(queries.device)
        piece = F.normalize(piece, dim=1) if unit else piece
        in_piece = within(queries, piece, min(wanted + others, len(piece)))
        best = _merged(best, Found(in_piece.similarity, in_piece.row + start), wanted + others)
    assert best is not None
    return _without_self(best) if others else best


def _merged(best: Found | None, more: Found, count: int) -> Found:
    if best is None:
        return more
    similarity = torch.cat([best.similarity, more.similarity], dim=1)
    top = similarity.topk(min(count, similarity.shape[1]), dim=1)
    return Found(top.values, torch.cat([best.row, more.row], dim=1).gather(1, top.indices))


def _without_self(nearest: Found) -> Found:
    """Each query's neighbours without itself, or without the last where many are equally near and it is not among them."""
    itself = nearest.row == torch.arange(len(nearest.row), device=nearest.row.device)[:, None]
    itself[:, -1] |= ~itself.any(dim=1)
    return Found(*(values[~itself].view(len(itself), -1) for values in nearest))


def vote(
    queries: Float[Tensor, "q d"],
    bank: Float[np.ndarray, "t d"] | Float[Tensor, "t d"],
    labels: Int[Tensor, " t"],
    classes: int,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, Int[Tensor, "q top"]]:
    """For each k the classes of every query, best first (five, or as many as there are). See `votes`."""
    return votes(nearest(queries, bank, max(ks)), labels, classes, ks, temperature)


def votes(
    neighbours: Found, labels: Int[Tensor, " t"], classes: int, ks: Sequence[int] = KS, temperature: float = TEMPERATURE
) -> dict[int, Int[Tensor, "q top"]]:
    """Each of the k nearest votes for its class with exp(similarity / temperature).

    Classes with equal votes (none, say) stand in the order of their numbers, as in the original. A k larger than the bank
    means the whole bank. Queries go in blocks: memory is BLOCK x classes. Raises UserError for a temperature with which a vote is
    beyond float32: all such votes would be equal.
    """
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for similarity, row in zip(neighbours.similarity.split(BLOCK), neighbours.row.split(BLOCK), strict=True):
        weights, voted = _weights(similarity, temperature), labels.to(row.device)[row]
        for k in ks:
            counted = torch.zeros(len(row), classes, dtype=weights.dtype, device=weights.device)
            counted.scatter_add_(1, voted[:, :k], weights[:, :k])
            predictions[k].append(counted.sort(dim=1, descending=True, stable=True).indices[:, :TOP])
    return {k: torch.cat(blocks) for k, blocks in predictions.items()}


def _weights(similarity: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, "b k"]:
    weights = (similarity / temperature).exp()
    if not weights.sum(dim=1).isfinite().all():
        raise UserError(f"a temperature of {temperature:g} makes votes that are not finite: give a greater one")
    return weights


def shares(
    neighbours: Found, labels: Int[Tensor, " t"], classes: int, k: int, temperature: float = TEMPERATURE
) -> Float[Tensor, "q classes"]:
    """Each class's share of the votes of the k nearest, on the CPU. Raises UserError as `votes`."""
    blocks = []
    for similarity, row in zip(neighbours.similarity.split(BLOCK), neighbours.row.split(BLOCK), strict=True):
        weights = _weights(similarity[:, :k], temperature)
        counted = torch.zeros(len(row), classes, dtype=weights.dtype, device=weights.device)
        counted.scatter_add_(1, labels.to(row.device)[row[:, :k]], weights)
        blocks.append((counted / weights.sum(dim=1, keepdim=True)).cpu())
    return torch.cat(blocks)


def means(neighbours: Found, values: Float[Tensor, "t v"], k: int, temperature: float = TEMPERATURE) -> Float[Tensor, "q v"]:
    """Mean of what the k nearest have, by the same weights as their votes, on the CPU: numbers, or 0 and 1 for each label.

    Raises UserError as `votes`.
    """
    blocks, size = [], max(1, MOST_VALUES // (k * values.shape[1]))
    values = values.to(neighbours.row.device)
    for similarity, row in zip(neighbours.similarity.split(size), neighbours.row.split(size), strict=True):
        weights = _weights(similarity[:, :k], temperature)
        summed = torch.einsum("bk,bkv->bv", weights, values[row[:, :k]])
        blocks.append((summed / weights.sum(dim=1, keepdim=True)).cpu())
    return torch.cat(blocks)


def accuracy(predictions: Int[Tensor, "q top"], labels: Int[Tensor, " q"], top: int = 1) -> float:
    """Percent of queries whose class is among the first `top` predictions."""
    return 100.0 * (predictions[:, :top].cpu() == labels[:, None]).any(dim=1).double().mean().item()
