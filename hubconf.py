"""`torch.hub.load("OWNER/REPOSITORY", "ibot_vits16")`, or any checkpoint: `torch.hub.load(..., "load", "timm:NAME")`.

Each returns a frozen backbone that maps normalised images [b, 3, h, w] to tokens [b, 1 + patches, d], [CLS] first
(`backbone.shape` has size, mean and deviation). Weights are fetched once, compared with their digest, and read without running
what a file says.
"""

import json as _json
from pathlib import Path as _Path

from probes import load

__all__ = ["load"]
dependencies = ["torch", "torchvision", "timm", "numpy", "safetensors"]


def _entry(name):
    def entry(key="teacher", device="cpu"):
        return load(name, key=key, device=device)

    entry.__name__, entry.__doc__ = name, f"The checkpoint {name} of checkpoints/zoo.json; `key` is teacher or student."
    return entry


_ZOO = _Path(__file__).resolve().parent / "checkpoints" / "zoo.json"
globals().update({name: _entry(name) for name in _json.loads(_ZOO.read_text(encoding="utf-8"))["checkpoints"]})
