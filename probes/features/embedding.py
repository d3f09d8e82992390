"""Pooled features of a data set in memory, from the cache that all probes share."""

from pathlib import Path
from typing import Any

import numpy as np

from pretrain.images import values
from pretrain.images.open import open_images, part_or_all
from pretrain.models.backbone import Backbone
from probes.features.cache import extract
from probes.shared.subject import Common, limited, view_of


def embedded(
    backbone: Backbone, data: str, part: Any, cache: Path | None, **options: Any
) -> tuple[np.ndarray, list[str], np.ndarray | None, list[str]]:
    """Features [n, d], names, labels [n] or None, classes. Raises UserError for what cannot be read."""
    asked = Common(data=data, cache=cache, **options)
    shape = backbone.shape
    whole = part or (None if data == "sample" else part_or_all(data, None))
    images = open_images(data, whole, shape.channels, shape.value_range)
    values.refuse_others(images)
    images = limited(images, asked)
    found = np.array(extract(backbone, images, view_of(backbone, asked), asked).cls)
    labels = None if images.labels is None else np.asarray(images.labels, dtype=np.int64)
    return found, [images.where(number) for number in range(len(images))], labels, [str(name) for name in images.classes]
