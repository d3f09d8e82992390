"""torchvision's classifiers without their last layer: `torchvision:NAME[.WEIGHTS][@FILE]`.

The pooled feature is what the last linear layer would read; the map is what the network's pooling reads.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import StochasticDepth

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError, WorkError
from checkpoints.published import Contents
from checkpoints.resolve import refuse_misfits
from checkpoints.store import first_line
from pretrain.backbones.timm_file import COMPUTED, weights_of
from pretrain.models.backbone import Loaded
from pretrain.models.measured import (
    RECOMPUTED,
    STOCHASTIC_DEPTH,
    Ability,
    Measured,
    Outputs,
    Preprocessing,
    as_map,
    as_patches,
    mean_first,
    tried,
    try_size,
)


def opened(said: str) -> Loaded:
    """The model. Raises UserError for names that torchvision has not and a file that does not fit; WorkError without network."""
    name, _, file = said.removeprefix("torchvision:").partition("@")
    arch, _, tag = name.partition(".")
    if arch not in models.list_models(module=models):
        close = ", ".join(models.list_models(module=models, include=f"*{arch[:6]}*")[:6])
        raise UserError(f"torchvision has no classifier {arch}" + (f": perhaps {close}" if close else ""))
    known = {one.name: one for one in models.get_model_weights(arch)}
    if (tag and tag not in known) or not known:
        raise UserError(f"torchvision has no weights {tag!r} of {arch} (it has: {', '.join(known) or 'none'})")
    weights = known[tag] if tag else models.get_model_weights(arch).DEFAULT
    anew = partial(_made, arch)
    model = _filled(anew(), Path(file), arch) if file else _fetched(arch, weights, said)
    backbone = TorchvisionModel(f"{arch}.{weights.name}", model, preprocessing_of(weights), anew)
    contents = Contents(f"torchvision's {arch}", {"only": {}}, arch=arch)
    return Loaded(backbone.eval().requires_grad_(False), Path(file) if file else Path(said), 0, contents)


def _made(arch: str) -> nn.Module:
    quiet: dict[str, Any] = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    return models.get_model(arch, weights=None, **quiet)


def _fetched(arch: str, weights: Any, said: str) -> nn.Module:
    try:
        return models.get_model(arch, weights=weights)
    except Exception as error:
        cure = f"give a file with --ckpt {said}@FILE"
        raise WorkError(f"torchvision's weights of {arch} could not be fetched ({first_line(error)}): {cure}") from error


def _filled(model: nn.Module, file: Path, arch: str) -> nn.Module:
    weights = weights_of(file, model.state_dict().keys())
    computed = {name: one for name, one in model.state_dict().items() if name.endswith(COMPUTED)}
    refuse_misfits(model, computed | weights, file, f" as torchvision's {arch}")
    model.load_state_dict(weights, strict=False)
    return model


def preprocessing_of(weights: Any) -> Preprocessing:
    """What the weights' own transforms do."""
    how = weights.transforms()
    crop, resize = how.crop_size[0], how.resize_size[0]
    return Preprocessing(tuple(how.mean), tuple(how.std), crop, max(resize, crop), how.interpolation.value)


class TorchvisionModel(Measured):
    """A classifier of torchvision, read before its last linear layer."""

    def __init__(self, name: str, model: nn.Module, preprocessing: Preprocessing, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        _take_off(model)
        self.model: Any = model.eval()
        self.preprocessing, self.origin = preprocessing, "torchvision"
        self._name, self._build, self._size = name, build, preprocessing.crop
        self.multiple = int(getattr(model, "patch_size", 1))
        self._describe()

    def outputs(self, images: Float[Tensor, "b c h w"]) -> Outputs:
        return tried(f"torchvision:{self._name}", images.shape[2:], lambda: self._outputs(images))

    def last_blocks(self, images: Float[Tensor, "b c h w"], count: int) -> list[Float[Tensor, "b t p"]]:
        """The last map alone."""
        return [mean_first(self.outputs(images).patches)]

    def maps(
        self, images: Float[Tensor, "b c h w"], taps: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """After each part of `features`, of a network without it after each of its parts; of a ViT after each block."""
        is_vit = isinstance(self.model, models.VisionTransformer)
        parts = self.blocks if is_vit else list(getattr(self.model, "features", self.model).children())
        seen: list[Tensor] = []
        hooks = [part.register_forward_hook(lambda module, inputs, output: seen.append(output)) for part in parts]
        try:
            tried(f"torchvision:{self._name}", images.shape[2:], lambda: self.model(images))
        finally:
            for hook in hooks:
                hook.remove()
        last_norm = self.final_norm if norm and is_vit else None
        if is_vit:
            maps = [as_map((last_norm or nn.Identity())(one)[:, 1:], *images.shape[2:]) for one in seen]
        else:
            last_channels = isinstance(self.model, models.SwinTransformer)
            maps = [one.permute(0, 3, 1, 2) if last_channels else one for one in seen if one.ndim == 4]
        return maps if taps is None else [maps[tap] for tap in taps]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.encoder.layers) if isinstance(self.model, models.VisionTransformer) else []

    @property
    def final_norm(self) -> nn.Module | None:
        return self.model.encoder.ln if isinstance(self.model, models.VisionTransformer) else None

    def make_trainable_(self, *, drop_path: float, checkpointed: bool) -> list[str]:
        """With torchvision's own stochastic depth, where the network has it, rising from block to block."""
        self.requires_grad_(True)
        dropping = [part for part in self.model.modules() if isinstance(part, StochasticDepth)]
        for number, part in enumerate(dropping):
            part.p = drop_path * number / max(len(dropping) - 1, 1)
        return [*([STOCHASTIC_DEPTH] if drop_path and not dropping else []), *([RECOMPUTED] if checkpointed else [])]

    def fit(self, size: int) -> None:
        if size != self._size:
            try_size(self, size)
            self._size = size
            self._describe()

    def fresh(self) -> "TorchvisionModel":
        device = next(self.parameters()).device
        found = TorchvisionModel(self._name, self._build(), self.preprocessing, self._build)
        found.fit(self._size)
        return found.to(device).eval().requires_grad_(False)

    def _outputs(self, images: Tensor) -> Outputs:
        seen: list[Tensor] = []
        place = getattr(self.model, "encoder", None) or getattr(self.model, "avgpool", None)
        is_vit = isinstance(self.model, models.VisionTransformer)
        if place is None:
            return Outputs(self.model(images).flatten(1), None, None)
        hook = place.register_forward_hook(lambda module, inputs, output: seen.append(output if is_vit else inputs[0]))
        try:
            pooled = self.model(images).flatten(1)
        finally:
            hook.remove()
        if is_vit:
            return Outputs(pooled, seen[0][:, 0], seen[0][:, 1:])
        return Outputs(pooled, None, as_patches(seen[0]) if seen[0].ndim == 4 else None)

    def _describe(self) -> None:
        """Find out what it has by one image of zeros."""
        with torch.inference_mode():
            found = self.outputs(torch.zeros(1, 3, self._size, self._size, device=next(self.parameters()).device))
        abilities: set[Ability] = set()
        if found.patches is not None:
            abilities.add("patches")
        if found.cls is not None:
            abilities.add("cls")
            self.cls_is_pooled = torch.equal(found.cls, found.pooled)
        self.abilities = frozenset(abilities)
        side = 1 if found.patches is None else math.isqrt(found.patches.shape[1])
        mean, std = self.preprocessing.mean, self.preprocessing.std
        name = f"torchvision:{self._name}"
        self.shape = Architecture(name, self._size // side, self._size, 3, found.pooled.shape[1], 0, 0, mean=mean, std=std)


def _take_off(model: nn.Module) -> None:
    """Put nothing in the place of the last linear layer. Raises UserError for a network without one."""
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and not name.startswith("Aux")]
    if type(model).__name__ == "SqueezeNet" or not linear:
        raise UserError("torchvision's network has no last linear layer: give another")
    where, _, last = linear[-1].rpartition(".")
    setattr(model.get_submodule(where), last, nn.Identity())
