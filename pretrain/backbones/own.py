"""One's own network: `--ckpt python:FILE.py:FUNCTION` of this call's command line, or in Python any module by a protocol.

Three things: `preprocessing` (a dict with `mean`, `std`, `size`, and if wished `resize`, `interpolation`, `squash`), the pooled
feature [b, d] (`pooled(images)`, or what the module returns), and if there is one a grid (`tokens(images)`: [b, n, p] row by row
without [CLS], or a map [b, p, gh, gw]).

b images, n patches, d width of the pooled feature, p width of the patch tokens.
"""

import hashlib
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from checkpoints import checked, reading
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from checkpoints.published import Contents
from checkpoints.store import first_line
from pretrain.models.backbone import Backbone, Loaded
from pretrain.models.measured import Ability, Measured, Outputs, Preprocessing, as_map, as_patches, mean_first, tried
from pretrain.models.swin import Swin
from pretrain.models.timm_vit import AnyViT
from pretrain.models.vit import ViT

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
MOST, PLACE = 2**13, "place"
CURE = "give it mean, std and size, as docs/backbones.md shows"


def opened(said: str) -> Loaded:
    """The module that a function in a file of Python makes.

    Raises UserError unless these very words stand on the command line of this call: no file or record may have code run.
    """
    if not any(word in (said, f"--ckpt={said}") for word in sys.argv[1:]):
        raise UserError(f"{said}: code is run only where it is typed as --ckpt; in Python give the module itself")
    file, _, function = said.removeprefix("python:").rpartition(":")
    path = Path(file)
    if not file or not path.is_file() or not function.isidentifier():
        raise UserError(f"{said}: give --ckpt python:FILE.py:FUNCTION, a file that is there and the name of a function in it")
    try:
        spec: Any = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = getattr(module, function)()
    except (Exception, SystemExit) as error:
        raise UserError(f"{said}: {type(error).__name__}: {first_line(error)}") from error
    name = f"python:{path.name}:{function}"
    backbone = adapted(made, name, hashlib.sha256(reading.content(path)).hexdigest())
    return Loaded(backbone, Path(name), 0, Contents(f"a network of {path.name}", {"only": {}}, arch=name))


def known(backbone: Any) -> Backbone:
    """A backbone of this project as it is, any other module by `adapted`."""
    return backbone if isinstance(backbone, (ViT, Swin, AnyViT)) else adapted(backbone, type(backbone).__name__)


def adapted(module: Any, name: str = "a module", origin: str = "") -> Measured:
    """A module as a backbone to measure; one that is one already as it is. Raises UserError for what the protocol asks for."""
    if isinstance(module, Measured):
        return module
    if not isinstance(module, nn.Module):
        raise UserError(f"{name} is a {type(module).__name__}, not a torch module: make one with `preprocessing` and `pooled`")
    return OwnModel(name, module, origin).eval().requires_grad_(False)


def preprocessing_of(value: Any, name: str) -> Preprocessing:
    """Raises UserError for a preprocessing that lacks something or cannot be."""
    if isinstance(value, Preprocessing):
        value = value._asdict() | {"size": value.crop}
    if not isinstance(value, Mapping) or not {"mean", "std", "size"} <= value.keys():
        raise UserError(f"{name} has no preprocessing: {CURE}")
    mean = tuple(checked.colours(tuple(value["mean"]), f"{name}: mean", 3, -1e6))
    std = tuple(checked.colours(tuple(value["std"]), f"{name}: std", 3, 1e-6))
    crop = checked.count(value["size"], f"{name}: size", 1, MOST)
    resize = checked.count(value.get("resize", crop), f"{name}: resize", crop, MOST)
    interpolation: Any = checked.one_of(value.get("interpolation", "bicubic"), f"{name}: interpolation", INTERPOLATIONS)
    return Preprocessing(mean, std, crop, resize, interpolation, bool(value.get("squash", False)))


class OwnModel(Measured):
    """A module of one's own behind the face of a measured backbone."""

    def __init__(self, name: str, module: nn.Module, origin: str) -> None:
        super().__init__()
        self.preprocessing = preprocessing_of(getattr(module, "preprocessing", None), name)
        self.model: Any = module.eval()
        if next(self.parameters(), None) is None:  # which says where the network lies
            self.register_parameter(PLACE, nn.Parameter(torch.zeros(1), requires_grad=False))
        self._name, self.origin, self._size = name, f"own {origin}", self.preprocessing.crop
        self._describe()

    def outputs(self, images: Float[Tensor, "b c h w"]) -> Outputs:
        return tried(self._name, images.shape[2:], lambda: self._outputs(images, all_of_it=True))

    def pooled(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return tried(self._name, images.shape[2:], lambda: self._outputs(images, all_of_it=False).pooled)

    def last_blocks(self, images: Float[Tensor, "b c h w"], count: int) -> list[Float[Tensor, "b t p"]]:
        """The last tokens alone."""
        return [mean_first(self.outputs(images).patches)]

    def maps(
        self, images: Float[Tensor, "b c h w"], taps: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[Float[Tensor, "b p _ _"]]:
        """The map of its tokens, the only one that the protocol knows."""
        patches = self.outputs(images).patches
        if patches is None:
            raise UserError(f"{self._name} has no tokens(images), so it has no map")
        maps = [as_map(patches, *images.shape[2:])]
        return maps if taps is None else [maps[tap] for tap in taps]

    def fit(self, size: int) -> None:
        if size != self._size:
            self._size, before = size, self._size
            try:
                self._describe()
            except UserError:
                self._size = before
                raise

    def _outputs(self, images: Tensor, *, all_of_it: bool) -> Outputs:
        has_method = callable(getattr(self.model, "pooled", None))
        pooled = self.model.pooled(images) if has_method else self.model(images)
        if not isinstance(pooled, Tensor) or pooled.ndim != 2 or len(pooled) != len(images):
            raise UserError(f"{self._name}: its pooled feature is {_shown(pooled)}, not [{len(images)}, width]")
        if not all_of_it or not callable(getattr(self.model, "tokens", None)):
            return Outputs(pooled, None, None)
        tokens = self.model.tokens(images)
        if not isinstance(tokens, Tensor) or tokens.ndim not in (3, 4) or len(tokens) != len(images):
            raise UserError(f"{self._name}: its tokens are {_shown(tokens)}, not [{len(images)}, patches, width] or a map")
        return Outputs(pooled, None, as_patches(tokens) if tokens.ndim == 4 else tokens)

    def _describe(self) -> None:
        """Find out what it has by two images of zeros."""
        device = next(self.parameters()).device
        with torch.inference_mode():
            found = self.outputs(torch.zeros(2, 3, self._size, self._size, device=device))
        side = 1
        if found.patches is not None:
            side = math.isqrt(found.patches.shape[1])
            if not side or side**2 != found.patches.shape[1]:
                count = found.patches.shape[1]
                raise UserError(
                    f"{self._name}: {count} tokens of a square image are no square grid: leave [CLS] and the like out"
                )
        abilities: set[Ability] = set() if found.patches is None else {"patches"}
        self.abilities = frozenset(abilities)
        mean, std, width = self.preprocessing.mean, self.preprocessing.std, found.pooled.shape[1]
        self.shape = Architecture(self._name, self._size // side, self._size, 3, width, 0, 0, mean=mean, std=std)


def _shown(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
