"""Identity of a training's images, stored in its checkpoint to notice on resuming whether they have changed."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from checkpoints import checked
from pretrain.images import digests
from pretrain.images.source import Images, content_or_error

SAMPLED, SIZED = 256, 20_000
"""Numbers of images whose content, and of files whose size, is compared where there is too much to compare everything."""
ALL, SOME = "all contents", f"sizes and {SAMPLED} contents"


class Identity(NamedTuple):
    """Equal for the same images in the same order, wherever they lie; all fields but the first and the last are digests."""

    images: str
    """Number of images."""
    labels: str
    classes: str
    contents: str
    compared: str
    """Kind of comparison that `contents` is a digest of."""


def identity(images: Images) -> Identity:
    """The identity of a source's images."""
    labels = b"" if images.labels is None else np.ascontiguousarray(images.labels, np.int64).tobytes()
    classes = digests.digest(name.encode("utf-8", "backslashreplace") for name in images.classes)
    return Identity(str(len(images)), digests.digest([labels]), classes, *_contents(images))


def _contents(images: Images) -> tuple[str, str]:
    files = images.files()
    if files is None:
        few = len(images) <= SAMPLED
        return digests.digest(content_or_error(images, index) for index in _spaced(len(images), SAMPLED)), ALL if few else SOME
    if len(files) <= SIZED:
        kept = [digests.state(path) for path in files]
        if sum(found.st_size for found in kept if found) <= digests.AFFORDED:
            return digests.of_files(files), ALL
    else:
        kept = [digests.state(files[index]) for index in _spaced(len(files), SIZED)]
    sizes = (str(found.st_size if found else None).encode() for found in kept)
    sampled = (content_or_error(images, index) for index in _spaced(len(images), SAMPLED))
    return digests.digest([*sizes, *sampled]), SOME


def _spaced(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def differences(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Phrases on how images differ from those of a checkpoint; empty if it has no record of them."""
    if not before or not now or dict(now) == dict(before):
        return []
    if now["images"] != before["images"]:
        return [f"{now['images']} images, there were {before['images']}"]
    words = {
        "labels": "other labels",
        "classes": "other names of classes",
        "contents": f"other images ({now['compared']} compared)",
    }
    return [word for name, word in words.items() if now[name] != before[name]] or ["more or fewer bytes"]


def remembered(value: object, where: str) -> dict[str, str]:
    """The identity that a checkpoint holds, or nothing, of one from before there was one. Raises UserError where it is none."""
    found = checked.mapping(value, where)
    if found and found.keys() != set(Identity._fields):
        checked.refuse(where, ", ".join(sorted(map(str, found)))[:200], f"{', '.join(Identity._fields)}")
    return {name: checked.text(one, f"{where}: {name}") for name, one in found.items()}
