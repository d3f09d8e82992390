"""Names of records: two measurements that could give other numbers have two names.

`PROBE_DATA_CHECKPOINT-DIGEST_OPTIONS`, as `knn_imagenet_backbone-3f9c21aa_5d1e88`: the digests are of the checkpoint's file, and
of every option that could change a number. All that a command writes beside its record (heads, states, pictures) begins alike.
"""

import dataclasses
import functools
import json
import re
from pathlib import Path
from typing import Any

from checkpoints import places, store
from pretrain.models.backbone import Loaded

ELSEWHERE = ("ckpt", "out", "folder", "cache", "workers", "device", "allow_foreign_files")
"""Options that say where and how fast, not what."""
FOLDER = "results"
LONGEST = 40
"""Characters of a data set's or checkpoint's name in a record's; the digests tell apart what is cut."""


def stem(probe: str, loaded: Loaded, options: Any) -> str:
    """The name of a record without its ending. `options` is the dataclass of the command."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in ELSEWHERE}
    digest = store.checksum(json.dumps(values, sort_keys=True, default=str))[:6]
    data = "embeddings" if getattr(options, "embeddings", None) else getattr(options, "data", None) or "sample"
    return f"{probe}_{plain(str(data))}_{checkpoint(loaded)}_{digest}"


def checkpoint(loaded: Loaded) -> str:
    """Name and digest of a checkpoint, as part of a file's name."""
    return f"{plain(str(loaded.path))}-{identity(loaded)[:8]}"


def identity(loaded: Loaded) -> str:
    """SHA-256 of the checkpoint's file; of the weights themselves where they lie in no one file (timm's own)."""
    path = loaded.path
    if not path.is_file():
        return store.checksum(loaded.backbone.state_dict())
    status = path.stat()
    return _of_file(path.absolute(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _of_file(path: Path, size: int, changed: int) -> str:
    return store.sha256(path)


def plain(name: str) -> str:
    """The last part of a path, an address or a name with a scheme, in characters that every file system and shell takes."""
    name = name.partition("@")[0] if re.match(r"[a-z]+:", name) else name  # torchvision:CIFAR10@FOLDER
    last = name.rstrip("/").rpartition("/")[2].removesuffix(".safetensors").removesuffix(".pth").removesuffix(".pt")
    return re.sub(r"[^A-Za-z0-9.]+", "-", last).strip("-.")[:LONGEST] or "unnamed"


def folder(loaded: Loaded) -> Path:
    """`results/` beside the checkpoint's file; in the working directory for weights that lie in no one file.

    Raises UserError where that is a link.
    """
    return places.below(loaded.path.parent if loaded.path.exists() else Path(), FOLDER)
