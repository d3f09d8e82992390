"""The file of DALL-E's encoder: a pickled module, read without running code from it, and ours, which cannot hold any.

Every class of the module is replaced by one that can do nothing, and the weights are collected from what that was given.
torch has no part in it: its safe reader takes no modules out of files from before 1.6.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints import store, torch_pickle
from checkpoints.cli import UserError

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


def read(path: Path) -> dict[str, Tensor]:
    """Weights by their published names, float32. Raises UserError for a file that holds anything else."""
    store.look_at(path)
    if path.suffix == ".safetensors":
        weights, metadata = store.read_safetensors(path)
        kind = metadata.get("about", {}).get("tokenizer")
        if kind != KIND:
            raise UserError(f"{path} is no encoder of DALL-E" + (f": open it as {kind}:{path}" if kind else ""))
        return weights
    try:
        with open(path, "rb") as file:
            module, raw = torch_pickle.read(file, dict.fromkeys(PUBLISHED, Inert))
            if not isinstance(module, Inert):
                raise ValueError(f"it holds a {type(module).__name__.lower()}, not the published encoder of DALL-E")
            return {name: torch_pickle.tensor(part, raw).float() for name, part in module.weights("")}
    except (OSError, ValueError, MemoryError) as error:
        raise UserError(f"{path} is not a readable checkpoint: {error}; take the published encoder.pkl") from error


def save(path: Path, weights: Mapping[str, Tensor], source: Path) -> None:
    """Write the encoder's weights as safetensors."""
    store.save_backbone(path, weights, {"tokenizer": KIND, "source": source.name, "sha256": store.sha256(source)})


class Inert(torch_pickle.Attributes):
    """Stand-in for every class of the published file: keeps its attributes, and does nothing."""

    def weights(self, prefix: str) -> Iterator[tuple[str, torch_pickle.Part]]:
        """Parameters of this module and of those in it, by name."""
        for name, part in _named(self, "_parameters"):
            if isinstance(part, torch_pickle.Part):
                yield prefix + name, part
        for name, module in _named(self, "_modules"):
            if isinstance(module, Inert):
                yield from module.weights(f"{prefix}{name}.")


def _named(module: Inert, kind: str) -> list[tuple[str, Any]]:
    held = module.held.get(kind)
    return [(name, value) for name, value in held.items() if isinstance(name, str)] if isinstance(held, dict) else []
