"""Placeholders for the heavy libraries in a process that only prints --help: its answer takes a part of a second, not five.

A command's options stand in modules that import torch and others for the work. Where --help (or -h) is typed, nothing is
computed: these libraries are then modules whose every name is one class that can be subclassed, called, indexed and used as a
decorator, and does nothing. Such a process never goes on (`checkpoints/cli.py`).
"""

import importlib.machinery
import os
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, Protocol

HEAVY = frozenset(
    "torch torchvision timm sklearn scipy faiss matplotlib transformers datasets onnx onnxscript onnxruntime triton pyarrow "
    "webdataset tifffile tensorboard safetensors jaxtyping mmengine mmcv mmpretrain mmdet mmseg pycocotools imagecorruptions "
    "cv2 skimage pandas numba".split()
)
WORDS = ("-h", "--help")


class _Kind(type(Protocol)):  # type: ignore[misc]  # of all bases that classes have beside one of a library
    """Every attribute, item, product and instance of the placeholder is the placeholder."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Placeholder

    def __call__(cls, *values: Any, **named: Any) -> Any:
        decorated = len(values) == 1 and not named and _is_ours(values[0])
        return values[0] if decorated else Placeholder

    def __getitem__(cls, key: Any) -> Any:
        return Placeholder

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __or__(cls, other: Any) -> Any:
        return Placeholder

    __ror__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = __or__
    __matmul__ = __floordiv__ = __and__ = __or__

    def __lt__(cls, other: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__


class Placeholder(metaclass=_Kind):
    """Stands for whatever a library has."""

    def __init_subclass__(cls, **named: Any) -> None:
        """A subclass may say anything of itself, as those of a library may."""


def _is_ours(value: Any) -> bool:
    """Whether a call's only value is what it decorates."""
    return value is not Placeholder and isinstance(value, (FunctionType, type))


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "0"
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Placeholder


class _Finder:
    """Finds and makes the modules of HEAVY."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in HEAVY:
            return None
        return importlib.machinery.ModuleSpec(name, cls, is_package=True)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """There is nothing to run."""


def are_here() -> bool:
    """Whether this process has placeholders."""
    return _Finder in sys.meta_path


def install(start: str) -> None:
    """In a command that was typed with --help, before anything is imported: placeholders. `start` is `checkpoints/start.py`."""
    first = sys.argv[:1]
    command = first == ["-m"] or (bool(first) and os.path.realpath(first[0]) == start and "torch.distributed.run" not in sys.argv)
    if command and any(word in WORDS for word in sys.argv[1:]) and "torch" not in sys.modules:
        sys.meta_path.insert(0, _Finder)
