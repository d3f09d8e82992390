"""Frozen features of any images from any checkpoint: computed once, kept on disk, never stale.

One forward gives what all probes need of an image: the [CLS] tokens of the last four blocks, each after the final norm, and
the mean of the last block's patch tokens; on request the patch tokens, their mean before the final norm, or the mean of those
that [CLS] looks at. They lie as arrays in a folder whose name is the digest of all that decides them: the backbone's weights,
the images, how they are seen, the precision. A changed weight or file is another folder. What was interrupted is continued.

n images, w width of four [CLS] side by side, d width of the last block, t patches.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from checkpoints import once, places, store
from checkpoints.cli import MISNAMED, UserError, WorkError
from checkpoints.places import cache_folder
from pretrain.batches.feeding import fed
from pretrain.engine import distributed
from pretrain.evaluate import finite, knn
from pretrain.evaluate.views import evaluation_view
from pretrain.images.digests import digest
from pretrain.images.source import Images, Subset
from pretrain.models.backbone import Backbone
from pretrain.models.measured import Measured, pooled_and_patches, require
from pretrain.models.vit import ViT
from probes.features import kept
from probes.shared import console, stored
from probes.shared.subject import Common, View

VERSION = 1
"""Version of stored features; raise it when the forward pass or the view changes."""
BLOCKS = 4
HELD = 1 << 30
"""Bytes of features of a part of images that are held in memory."""
FEW = 4000
"""Images that are decoded in this process, as starting others takes longer."""


class Features(NamedTuple):
    """Features of n images in their order: memory-mapped arrays by the name of the token that they hold."""

    arrays: Mapping[str, np.ndarray]

    @property
    def cls(self) -> Float[np.ndarray, "n d"]:
        """[CLS] of the last block."""
        return side_by_side(self.arrays, "cls")[0]

    def width(self, kind: str) -> int:
        """Width of `rows`."""
        return sum(part.shape[1] for part in side_by_side(self.arrays, kind))

    def rows(self, kind: str, numbers: np.ndarray | slice) -> Float[Tensor, "b _"]:
        """Features of some images, of one kind (see `side_by_side`)."""
        return torch.cat([torch.tensor(part[numbers]) for part in side_by_side(self.arrays, kind)], dim=1)


STANDARD = ("blocks", "mean")
"""Of our own backbones, by one forward; see `standard`."""


def side_by_side(arrays: Mapping[str, Any], kind: str) -> list[Any]:
    """The arrays that a kind of features concatenates: `cls`, `cls4`, `cls+mean`, or an array by its own name."""
    if kind == "cls4":
        return [arrays["blocks"]]
    if "pooled" in arrays and kind in ("cls", "cls+mean"):
        return [arrays["pooled"], *([arrays["mean"]] if kind == "cls+mean" else [])]
    if kind in ("cls", "cls+mean"):
        last = arrays["blocks"][:, -arrays["mean"].shape[1] :]
        return [last, arrays["mean"]] if kind == "cls+mean" else [last]
    return [arrays[kind]]


def array_of(features: str) -> str:
    """A kind of features by the name that --features has for it; records state the kind."""
    return {"patches": "raw_mean", "patches_norm": "mean"}.get(features, features)


def needed(kind: str, backbone: Backbone | None = None) -> tuple[str, ...]:
    """The arrays behind a kind of features of a backbone. Raises UserError where a measured one has no such features."""
    if isinstance(backbone, Measured):
        if kind in ("cls", "cls+mean", "mean"):
            if kind != "cls":
                require(backbone, "patches")
            return standard(backbone)
        if kind == "cls4":
            require(backbone, "cls", "blocks")
            return ("blocks",)
    return STANDARD if kind in ("cls", "cls4", "cls+mean", "mean") else (kind,)


def standard(backbone: Backbone) -> tuple[str, ...]:
    """Arrays that most probes need: of a measured backbone the pooled feature, with the mean patch where there are patches."""
    if not isinstance(backbone, Measured):
        return STANDARD
    return ("pooled", "mean") if "patches" in backbone.abilities else ("pooled",)


def extract(backbone: Backbone, images: Images, view: View, options: Common, arrays: tuple[str, ...] = ()) -> Features:
    """Features of all images, from the cache where they are there. All processes must call it, and all get everything.

    `arrays` as in `represent`, by default those of `standard`. Raises UserError naming an image that cannot be read, WorkError
    one whose features are not finite, and where there is no room. Kept ones that do not agree with their checksum are computed
    again, which is said.
    """
    if (known := stored.features(images)) is not None:
        return Features({"pooled": known})
    arrays = arrays or standard(backbone)
    about = description(backbone, images, view, options.precision, arrays)
    folder = _folder(about, options)
    if isinstance(images, Subset) and (some := _of_whole(backbone, images, view, options, arrays)) is not None:
        return some
    try:
        if not _kept_by_all(folder, arrays, len(images)):
            with _alone(folder):
                if not _kept_by_all(folder, arrays, len(images)):  # another command may have made them meanwhile
                    _fill(folder, about, backbone, images, view, options, arrays)
        found = kept.finished(folder, arrays, len(images), looked_at=True)
    except OSError as error:
        why = error.strerror or store.first_line(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)) or error.errno in MISNAMED:
            raise UserError(f"features cannot be kept in {folder.parent} ({why}): give a folder with --cache") from error
        raise WorkError(
            f"features could not be written to {folder.parent} ({why}): make room, or give another --cache"
        ) from error
    if found is None:
        raise WorkError(f"{folder} was changed meanwhile: start again")
    return Features(found)


def _folder(about: Mapping[str, Any], options: Common) -> Path:
    """Where features lie that these plain values decide."""
    return (options.cache or cache_folder("IBOT_FEATURES", "features")) / digest([json.dumps(about, sort_keys=True).encode()])


def _of_whole(backbone: Backbone, images: Subset, view: View, options: Common, arrays: Sequence[str]) -> Features | None:
    """The rows of images whose source's features are kept, where memory holds them; None where they are not."""
    whole = images.images
    folder = _folder(description(backbone, whole, view, options.precision, arrays), options)
    if not folder.is_dir() or not _kept_by_all(folder, arrays, len(whole)):
        return None
    found = kept.finished(folder, arrays, len(whole), looked_at=True)
    if found is None or sum(array[:1].nbytes for array in found.values()) * len(images) > HELD:
        return None
    return Features({name: array[images.numbers] for name, array in found.items()})


def _kept_by_all(folder: Path, arrays: Sequence[str], rows: int) -> bool:
    """Whether the features are there and whole; the main process looks for all."""
    return distributed.any_true(distributed.is_main() and kept.finished(folder, arrays, rows) is not None)[0]


def _alone(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Other commands wait until this one has made the features."""
    return once.alone(folder) if distributed.is_main() else contextlib.nullcontext()


def description(backbone: Backbone, images: Images, view: View, precision: str, arrays: Sequence[str]) -> dict[str, Any]:
    """All that decides the features, as plain values."""
    origin = {"origin": backbone.origin} if isinstance(backbone, Measured) else {}
    return origin | {
        "version": VERSION,
        "weights": weights_digest(backbone),
        "shape": {name: one for name, one in backbone.shape._asdict().items() if name != "value_range" or one},
        "images": images.fingerprint(),
        "channels": images.channels,
        "view": list(view if view[2:] != View(0, 0)[2:] else view[:2]),
        "precision": precision,
        "arrays": list(arrays),
    }


def weights_digest(backbone: nn.Module) -> str:
    """Digest of all that decides a backbone's output for an image."""
    return store.checksum({name: weight for name, weight in backbone.state_dict().items() if name != "masked_embed"})


def represent(backbone: Backbone, crops: Float[Tensor, "b c h w"], arrays: Sequence[str]) -> dict[str, Tensor]:
    """The features of a batch, by name, float32.

    `blocks` [b, w]: [CLS] (Swin: mean token) of the last four blocks, side by side, the last one at the end. `mean` [b, d]: mean
    of the last block's patch tokens. `patches` [b, t, d]: those. `raw_mean` [b, d]: their mean before the final norm (the
    original's average pooling, whose norm is the identity). `partsK` [b, d]: mean of the K patch tokens, without the final norm,
    at which the last [CLS] looks most (paper Figure 5). `pooled` [b, d]: a measured backbone's pooled feature.
    """
    if isinstance(backbone, Measured):
        return {name: value.float() for name, value in _of_measured(backbone, crops, arrays).items()}
    found: dict[str, Tensor] = {}
    if {"blocks", "mean", "patches"} & set(arrays):
        outputs = backbone.last_blocks(crops, BLOCKS)
        last = outputs[-1][:, 1:]
        found = {"blocks": torch.cat([tokens[:, 0] for tokens in outputs], dim=1), "mean": last.mean(dim=1), "patches": last}
    if "raw_mean" in arrays:
        found["raw_mean"] = backbone.last_patches_before_norm(crops).mean(dim=1)
    counts = {name: int(name.removeprefix("parts")) for name in arrays if name.startswith("parts")}
    if counts:
        assert isinstance(backbone, ViT)
        tokens, attention = backbone.raw_patches(crops)
        order = attention.float().argsort(dim=1, descending=True)[:, :, None].expand_as(tokens)
        ranked = tokens.gather(1, order)
        found |= {name: ranked[:, :count].mean(dim=1) for name, count in counts.items()}
    return {name: found[name].float() for name in arrays}


def _of_measured(backbone: Measured, crops: Tensor, arrays: Sequence[str]) -> dict[str, Tensor]:
    """`represent` of a backbone that is only measured. Raises UserError for what it has not."""
    if strange := [name for name in arrays if name not in ("pooled", "mean", "patches", "blocks")]:
        words = "patch tokens before the final norm" if strange[0] == "raw_mean" else "those patches"
        raise UserError(f"{backbone.shape.arch}: {words} are read of iBOT's own networks only: give other --features")
    found: dict[str, Tensor] = {}
    if {"mean", "patches"} & set(arrays):
        pooled, patches = pooled_and_patches(backbone, crops)
        found = {"pooled": pooled, "patches": patches, "mean": patches.mean(dim=1)}
    elif "pooled" in arrays:
        found["pooled"] = backbone.pooled(crops)
    if "blocks" in arrays:
        require(backbone, "cls", "blocks")
        found["blocks"] = torch.cat([tokens[:, 0] for tokens in backbone.last_blocks(crops, BLOCKS)], dim=1)
    return {name: found[name] for name in arrays}


def _fill(
    folder: Path, about: dict[str, Any], backbone: Backbone, images: Images, view: View, options: Common, names: Sequence[str]
) -> None:
    """Compute what is not there yet, block by block, each process its share; the folder appears when all is done.

    Raises WorkError naming an image whose features are not finite, OSError where there is no room.
    """
    partial = places.below(folder.parent, f"{folder.name}.partial")
    size, block = len(images), options.batch_size
    starts = list(range(0, size, block))
    missing: list[int] = []
    if distributed.is_main():
        shapes = _shapes(backbone, view, names)
        done = kept.lay_out(partial, about | {"name": images.name}, shapes, size)
        missing = [start for start in starts if not all(done[start : start + block])]
    missing = distributed.gathered(missing)
    rows = kept.Rows(partial, names, size)
    mine, there = missing[distributed.rank() :: distributed.world_size()], len(starts) - len(missing)
    what = f"features of {images.name}" + (f" ({there} of {len(starts)} blocks were there)" if there else "")
    for start, crops in console.steps(what, _batches(images, mine, view, backbone, options), len(mine)):
        found = _forward(backbone, crops, options.precision, names)
        for values in found.values():
            finite.checked(values, backbone, lambda row, start=start: images.where(start + row))  # type: ignore[misc]
        rows.write(slice(start, start + len(crops)), {name: values.numpy() for name, values in found.items()})
    distributed.barrier()
    if distributed.is_main():
        kept.seal(partial, folder, names)
    distributed.barrier()


def _shapes(backbone: Backbone, view: View, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of one image's features, by array."""
    device, shape = next(backbone.parameters()).device, backbone.shape
    with torch.inference_mode():
        one = represent(backbone, torch.zeros(1, shape.channels, view.crop, view.crop, device=device), names)
    return {name: tuple(values.shape[1:]) for name, values in one.items()}


def _forward(backbone: Backbone, crops: Tensor, precision: str, names: Sequence[str]) -> dict[str, Tensor]:
    device = next(backbone.parameters()).device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        found = represent(backbone, crops.to(device, non_blocking=True), names)
    return {name: values.cpu() for name, values in found.items()}


class _Views(Dataset[Any]):
    """Each image as the probe sees it. Raises UserError naming one that cannot be read."""

    def __init__(self, images: Images, view: View, backbone: Backbone) -> None:
        self._images, self._view = images, view
        self._spread = backbone.shape.mean, backbone.shape.std

    def __getitem__(self, index: int) -> Tensor:
        return evaluation_view(knn.read(self._images, index), *self._view, *self._spread)


def _batches(
    images: Images, starts: Sequence[int], view: View, backbone: Backbone, options: Common
) -> Iterator[tuple[int, Float[Tensor, "b c h w"]]]:
    """Blocks of views with the number of their first image. Raises UserError naming an image that cannot be used."""
    blocks = [range(start, min(start + options.batch_size, len(images))) for start in starts]
    workers = worker_count(options, len(images))
    loader = fed(
        _Views(images, view, backbone),
        blocks,
        workers,
        collate=torch.stack,
        ahead=2,
        pin_memory=next(backbone.parameters()).is_cuda,
    )
    yield from zip(starts, loader, strict=True)


def worker_count(options: Common, images: int) -> int:
    """Processes that decode."""
    if options.workers is not None:
        return options.workers
    return 0 if images <= FEW else max(1, (os.cpu_count() or 1) // distributed.world_size())
