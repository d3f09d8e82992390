"""The faiss that is installed: one of several packages that all provide the module `faiss`, or none."""

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from checkpoints import elsewhere
from checkpoints.cli import UserError

PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
"""The first three are extras of ours (`cpu`, `gpu-cuda12`, `gpu`), the others are built elsewhere from the same source."""
CURE = "tools/setup.sh cpu, or tools/setup.sh gpu for an NVIDIA GPU"
MOST_NEIGHBOURS = 2048
"""What an index on a GPU finds for each query, at most."""


def installed() -> dict[str, str]:
    """Package -> version of those that provide `faiss` here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def is_there() -> bool:
    """Whether there is a faiss to use. Raises UserError where there are two."""
    refuse_two()
    return importlib.util.find_spec("faiss") is not None


def refuse_two() -> None:
    """Raise UserError where two packages provide `faiss`: each has overwritten files of the other."""
    names = list(installed())
    if len(names) > 1:
        raise UserError(
            f"{' and '.join(names)} are both installed, and each has overwritten files of the other: "
            f"pip uninstall {' '.join(names)}, then pip install one of them"
        )


def load(purpose: str) -> Any:
    """The module. Raises UserError where it is not installed (begins with `purpose`), installed twice, or broken."""
    if not is_there():
        raise UserError(f"{purpose} needs faiss, which is not installed: {CURE}")
    try:
        return elsewhere.imported("faiss")
    except (ImportError, OSError) as error:  # a library of CUDA that the machine lacks, say
        name = next(iter(installed()), "faiss")
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is installed but cannot be loaded ({reason}): pip uninstall {name}, then {CURE}") from error


def for_device(purpose: str, device: torch.device) -> tuple[Any, bool]:
    """The module, and whether it can use this device, which is a GPU. Raises UserError as `load`."""
    faiss = load(purpose)
    return faiss, device.type == "cuda" and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def on_gpu(faiss: Any, index: Any, device: torch.device) -> tuple[Any, Any]:
    """An index as one of the GPU, and its memory there, which must live as long as it does."""
    resources = faiss.StandardGpuResources()
    return faiss.index_cpu_to_gpu(resources, device.index or 0, index), resources
