"""Features in a file (`probes.embed`, or another program) in the place of a backbone and its images: `--embeddings FILE`."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from checkpoints import flat, store
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from checkpoints.published import Contents
from pretrain.images.formats import BadImage
from pretrain.images.source import Content, Images, Subset
from pretrain.models.backbone import Loaded
from pretrain.models.measured import Measured, Preprocessing
from probes.shared import feature_files
from probes.shared.feature_files import Rows

POOLED = (None, "cls")
"""Values of --features that a file of pooled features answers for."""


class StoredBackbone(Measured):
    """Stands for the backbone whose features a file holds. It has no weights but the file's digest, and computes nothing."""

    digest: Tensor

    def __init__(self, shape: Architecture, digest: str) -> None:
        super().__init__()
        self.shape, self.abilities = shape, frozenset()
        self.preprocessing = Preprocessing(shape.mean, shape.std, shape.image_size, shape.image_size)
        self.register_buffer("digest", torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8))


class StoredImages(Images):
    """Images of which only names, labels and features are known."""

    def __init__(self, path: Path, part: str | None) -> None:
        rows = opened(path)
        self.numbers = np.arange(len(rows.names)) if part is None else np.flatnonzero(rows.parts == part)
        self.path, self._rows = path, rows
        self.name = str(path) if part is None else f"{path} ({part})"
        self.labels = None if rows.labels is None else rows.labels[self.numbers]
        self.classes = list(rows.classes)

    def __len__(self) -> int:
        return len(self.numbers)

    def content(self, index: int) -> Content:
        raise BadImage("only its features are there")

    def where(self, index: int) -> str:
        return self._rows.names[int(self.numbers[index])]

    def fingerprint(self) -> str:
        return store.checksum([store.sha256(self.path), self.numbers.tolist()])


@functools.lru_cache(maxsize=4)
def opened(path: Path) -> Rows:
    """The content of a file of features. Raises UserError for what is none."""
    return feature_files.read(path)


def check(options: Any) -> None:
    """Raise UserError for options that features in a file leave without meaning."""
    for name in ("ckpt", "val", "crop", "resize", "untrained", "group", "label_column", "task"):
        if getattr(options, name, None):
            raise UserError(f"{flat.flag(name)} and --embeddings do not go together: the features have been computed")
    if getattr(options, "view", "paper") != "paper":
        raise UserError("--view and --embeddings do not go together: the features have been computed")
    if options.data != "sample":
        raise UserError("--data and --embeddings do not go together: the file has names and labels of its own")
    if getattr(options, "features", None) not in POOLED:
        raise UserError(
            f"--features {options.features} is not in {options.embeddings}, which holds the pooled feature: leave it out"
        )
    if getattr(options, "mode", None) == "paper":
        raise UserError("--mode paper needs the images: leave --embeddings or --mode out")
    if getattr(options, "baselines", False):
        raise UserError("--baselines needs the images: leave --embeddings or --baselines out")


def loaded(path: Path) -> Loaded:
    """What stands for the checkpoint: the file of features, with the architecture that it names."""
    rows = opened(path)
    of = dict(rows.about.get("checkpoint") or {})
    arch, patch, epoch = of.get("arch", "unknown"), of.get("patch_size", 1), of.get("epoch", 0)
    if not (isinstance(arch, str) and all(isinstance(one, int) and one >= 0 for one in (patch, epoch))):
        raise UserError(f"{path} says of its checkpoint what can be of none: write it again with probes.embed")
    shape = Architecture(arch, max(patch, 1), max(patch, 1), 3, rows.features.shape[1], 0, 1)
    return Loaded(StoredBackbone(shape, store.sha256(path)), path, epoch, Contents("features", {"only": {}}))


def view(path: Path) -> dict[str, Any]:
    """What the file says of the view, for a record's protocol."""
    about = opened(path).about
    return dict(about.get("view") or {}) | {"embeddings_of": dict(about.get("checkpoint") or {}), "embedded": about.get("data")}


def parts(path: Path) -> tuple[Images, Images]:
    """Images to learn from and to test on. Raises UserError where the file has not both."""
    names = sorted(set(opened(path).parts.tolist()))
    if not {"train", "val"} <= set(names):
        raise UserError(
            f"{path} holds the part {' and '.join(names)} alone: this probe needs train and val (probes.embed without --part)"
        )
    return StoredImages(path, "train"), StoredImages(path, "val")


def features(images: Images) -> np.ndarray | None:
    """The stored features [n, d] of such images, or of a subset of them; None for others."""
    found = _rows(images)
    return None if found is None else np.asarray(opened(found[0]).features[found[1]], dtype=np.float32)


def _rows(images: Images) -> tuple[Path, np.ndarray] | None:
    if isinstance(images, StoredImages):
        return images.path, images.numbers
    inner = _rows(images.images) if isinstance(images, Subset) else None
    return None if inner is None or not isinstance(images, Subset) else (inner[0], inner[1][images.numbers])
