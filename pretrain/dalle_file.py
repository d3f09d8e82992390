"""The file of DALL-E's encoder: a pickled module, read without running code from it, and ours, which cannot hold any.

Every class of the module is replaced by one that can do nothing, and the weights are collected from what that was given.
"""

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from checkpoints import store
from checkpoints.command import UserError

ADDRESS = "https://cdn.openai.com/dall-e/encoder.pkl"
KIND = "dalle"
PUBLISHED = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
)
"""Classes in the published file."""
BEFORE_ZIP = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How files of torch before 1.6 begin. torch's own safe reader does not take modules out of these."""


def read(path: Path) -> dict[str, Tensor]:
    """Weights by their published names, float32. Raises UserError for a file that holds anything else."""
    store.look_at(path)
    if path.suffix == ".safetensors":
        weights, metadata = store.read_safetensors(path)
        kind = metadata.get("about", {}).get("tokenizer")
        if kind != KIND:
            raise UserError(f"{path} is no encoder of DALL-E" + (f": open it as {kind}:{path}" if kind else ""))
        return weights
    with open(path, "rb") as file:
        old = file.read(len(BEFORE_ZIP)) == BEFORE_ZIP
    module = _read_old(path) if old else store.read_object(path, [(Inert, name) for name in PUBLISHED])
    if not isinstance(module, Inert):
        raise UserError(f"{path} holds a {type(module).__name__}, not the published encoder of DALL-E")
    return {name: weight.detach().float() for name, weight in module.weights("")}


def save(path: Path, weights: Mapping[str, Tensor], source: Path) -> None:
    """As safetensors."""
    store.save_backbone(path, weights, {"tokenizer": KIND, "source": source.name, "sha256": store.sha256(source)})


class Inert:
    """What stands for every class of the published file: it keeps what it is given, and does nothing."""

    held: Mapping[str, Any] = {}
    dump_patches = False
    """torch asks old modules for it."""

    def __setstate__(self, state: Any) -> None:
        self.held = state if isinstance(state, dict) else {}

    def weights(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """Parameters of this module and of those in it, by name."""
        for name, weight in self.held.get("_parameters", {}).items():
            if isinstance(weight, Tensor):
                yield prefix + name, weight
        for name, module in self.held.get("_modules", {}).items():
            if isinstance(module, Inert):
                yield from module.weights(f"{prefix}{name}.")


KNOWN: dict[str, Any] = {
    **dict.fromkeys(PUBLISHED, Inert),
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch.device": torch.device,
    "__builtin__.set": set,
}
"""All that an old file may name, storages apart, which torch answers for itself."""


class Restricted(pickle.Unpickler):
    """Knows the names in KNOWN and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in KNOWN:
            raise UserError(f"it holds code ({full}), which is never run; take the published encoder.pkl")
        return KNOWN[full]


def _read_old(path: Path) -> Any:
    """What a file of torch before 1.6 holds."""
    reader: Any = ModuleType("restricted")  # torch wants a module like pickle
    reader.Unpickler, reader.load = Restricted, lambda file, **options: Restricted(file, **options).load()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks that the classes' source has changed
            return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(f"{path} is not a readable checkpoint: {error or type(error).__name__}") from error
