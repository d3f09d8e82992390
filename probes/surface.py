"""The library in three functions: `from probes import load, embed, compare`.

    backbone = load("ibot_vits16")                   # or a run's folder, a file, timm:NAME, ...
    features, names, labels = embed(backbone, "DIR")[:3]
    table = compare(["runs/mine", "dinov2_vits14"], ["DIR"])
    print(table.markdown())

All else is imported when they are called. Errors are `checkpoints.cli.UserError` (a ValueError) and `WorkError`, a sentence each.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from pretrain.models.backbone import Backbone
    from probes.compare.table import Comparison

NAMES = ("load", "embed", "compare")


class Embeddings(NamedTuple):
    """Features of n images."""

    features: "np.ndarray"
    """[n, d] float32, the pooled feature: the last [CLS], or what the backbone has in its place."""
    names: list[str]
    labels: "np.ndarray | None"
    """[n] whole numbers into `classes`; None where the images have none."""
    classes: list[str]


def load(checkpoint: str | Path | None = None, *, key: str = "teacher", device: str = "cpu") -> "Backbone":
    """A frozen backbone, in evaluation mode: whatever --ckpt takes; None is the newest run under `runs`.

    It maps images [b, c, h, w], normalised by `backbone.shape.mean` and `.std`, to tokens [b, 1 + patches, d], [CLS] first. `key`
    is `teacher` or `student`.
    """
    from pretrain.backbones.open import open_backbone
    from probes.shared.subject import named_device

    path = None if checkpoint is None else Path(checkpoint)
    return open_backbone(path, key=key).backbone.to(named_device(device))


def embed(
    backbone: "Backbone | str | Path",
    data: str | Path = "sample",
    *,
    part: str | None = None,
    crop: int | None = None,
    resize: int | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> Embeddings:
    """Features of all images of a data set, or of one `part` (`train`, `val`); whatever --data takes.

    A torch module of one's own by the protocol of docs/backbones.md is a backbone too. Features come from the cache that all
    probes share where they are there. `crop` and `resize` are in pixels, by default as `python -m probes.embed` has them.
    """
    from pretrain.backbones import own
    from probes.features.embedding import embedded

    network = load(backbone) if isinstance(backbone, (str, Path)) else own.known(backbone)
    options = {"crop": crop, "resize": resize, "limit": limit, "batch_size": batch_size, "workers": workers}
    return Embeddings(*embedded(network, str(data), part, Path(cache) if cache else None, **options))


def compare(
    checkpoints: Sequence[str | Path],
    data: Sequence[str | Path] = ("sample",),
    probes: Sequence[str] = (),
    *,
    out: str | Path = "compare",
    **options: Any,
) -> "Comparison":
    """The table of `python -m probes.compare`: `.rows()`, `.markdown()`, `.csv()`, `.latex()`, `.ranks()`, `.best()`.

    `options` are those of the command, by name: `seeds`, `crop`, `resize`, `limit`, `suite`, `device`, ... A measurement that
    failed stands in `.failed`; records and tables lie in `out`.
    """
    from checkpoints import bounds
    from checkpoints.cli import UserError
    from probes.compare.plan import CompareOptions
    from probes.compare.run import compare as run

    known = tuple(str(one) for one in checkpoints), tuple(str(one) for one in data)
    chosen: Any = tuple(probes)
    found = CompareOptions(ckpt=known[0], data=known[1], probes=chosen, out=Path(out), **options)
    for sentence in bounds.wrong(found):
        raise UserError(sentence)
    return run(found)


class _Package(ModuleType):
    """The package `probes`: its functions stay what they are when commands of the same names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in NAMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def keep_functions(package: str) -> None:
    """`probes.embed` and `probes.compare` are functions, though modules have these names: importing one sets no attribute."""
    sys.modules[package].__class__ = _Package
