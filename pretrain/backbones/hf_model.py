"""Vision models of Hugging Face's transformers, computed by it, the class of a model from a list that stands here.

b images, n patches, d width of the pooled feature, p width of the patch tokens.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from checkpoints.architecture import Architecture
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


class Kind(NamedTuple):
    """A model type of `config.json`: its classes in transformers, and what stands before the patch tokens."""

    config: str
    model: str
    tower: str = ""
    """Field of `config.json` that holds the vision tower's own."""
    cls: bool = True
    """Whether the first token is [CLS]."""
    norm: str = ""
    """Final norm for tokens of earlier blocks; none: they are left as they are."""
    prefix: str = ""
    """Beginning of the vision tower's names, where a file holds more than that."""
    pooler: str = ""
    """Beginning of the names of a pooler's weights, without which it is left out (transformers would draw them)."""


KINDS = {
    "vit": Kind("ViTConfig", "ViTModel", norm="layernorm", pooler="pooler."),
    "deit": Kind("DeiTConfig", "DeiTModel", norm="layernorm", pooler="pooler."),
    "dinov2": Kind("Dinov2Config", "Dinov2Model", norm="layernorm"),
    "dinov2_with_registers": Kind("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", norm="layernorm"),
    "dinov3_vit": Kind("DINOv3ViTConfig", "DINOv3ViTModel", norm="norm"),
    "dinov3_convnext": Kind("DINOv3ConvNextConfig", "DINOv3ConvNextModel", cls=False),
    "clip": Kind("CLIPVisionConfig", "CLIPVisionModel", "vision_config", prefix="vision_model."),
    "clip_vision_model": Kind("CLIPVisionConfig", "CLIPVisionModel", prefix="vision_model."),
    "siglip": Kind("SiglipVisionConfig", "SiglipVisionModel", "vision_config", cls=False, prefix="vision_model."),
    "siglip_vision_model": Kind("SiglipVisionConfig", "SiglipVisionModel", cls=False, prefix="vision_model."),
    "data2vec-vision": Kind("Data2VecVisionConfig", "Data2VecVisionModel", norm="layernorm", pooler="pooler."),
    "beit": Kind("BeitConfig", "BeitModel", norm="layernorm", pooler="pooler."),
    "swin": Kind("SwinConfig", "SwinModel", cls=False),
    "swinv2": Kind("Swinv2Config", "Swinv2Model", cls=False),
    "convnext": Kind("ConvNextConfig", "ConvNextModel", cls=False),
    "convnextv2": Kind("ConvNextV2Config", "ConvNextV2Model", cls=False),
    "resnet": Kind("ResNetConfig", "ResNetModel", cls=False),
}
"""Model types that are read."""


class HuggingFaceModel(Measured):
    """A model of transformers; `build` makes the same with random weights, fields of the configuration changed."""

    def __init__(
        self, name: str, kind: Kind, model: nn.Module, preprocessing: Preprocessing, build: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        self.model: Any = model.eval()
        self.preprocessing, self.origin = preprocessing, "transformers"
        self._name, self._kind, self._build = name, kind, build
        takes = inspect.signature(self.model.forward).parameters
        self._settings = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        size = getattr(self.model.config, "image_size", preprocessing.crop)
        self._own = size if isinstance(size, int) else size[0]
        self._size = preprocessing.crop
        patch = getattr(self.model.config, "patch_size", 1)
        self.multiple = patch if isinstance(patch, int) else patch[0]
        self._describe()

    def outputs(self, images: Float[Tensor, "b c h w"]) -> Outputs:
        return tried(self._name, images.shape[2:], lambda: self._outputs(images))

    def last_blocks(self, images: Float[Tensor, "b c h w"], count: int) -> list[Float[Tensor, "b t p"]]:
        """Of networks of stages the last map alone; of others each block's tokens through the final norm where there is one."""
        blocks = self._blocks()
        if blocks is None:
            patches = self.outputs(images).patches
            assert patches is not None
            return [mean_first(patches)]
        norm = self.final_norm or nn.Identity()
        return [self._sorted(norm(tokens)) for tokens in self._after_blocks(images, count)]

    def get_last_selfattention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads t t"]:
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # the only one that gives its weights
        try:
            found = tried(self._name, images.shape[2:], lambda: self._run(images, output_attentions=True)).attentions[-1]
        finally:
            self.model.set_attn_implementation(usual)
        wanted = [0, *range(self._before(), found.shape[-1])]
        return found[:, :, wanted][..., wanted]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self._blocks() or [])

    @property
    def final_norm(self) -> nn.Module | None:
        return getattr(self.model, self._kind.norm) if self._kind.norm else None

    def maps(
        self, images: Float[Tensor, "b c h w"], taps: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[Float[Tensor, "b _ _ _"]]:
        if self._blocks() is None:
            found = tried(self._name, images.shape[2:], lambda: self._run(images, output_hidden_states=True))
            shown: Any = getattr(found, "reshaped_hidden_states", None) or found.hidden_states
            stages = [one for one in shown if one.ndim == 4]
            return stages if taps is None else [stages[tap] for tap in taps]
        after = self._after_blocks(images, len(self.blocks))
        last_norm = (self.final_norm if norm else None) or nn.Identity()
        chosen = after if taps is None else [after[tap] for tap in taps]
        return [as_map(last_norm(tokens)[:, self._before() :], *images.shape[2:]) for tokens in chosen]

    def make_trainable_(self, *, drop_path: float, checkpointed: bool) -> list[str]:
        """As transformers has it: `drop_path_rate` of the configuration, its own gradient checkpointing."""
        lacks, config = [], self.model.config
        if drop_path and not hasattr(config, "drop_path_rate"):
            lacks.append(STOCHASTIC_DEPTH)
        changed = {"drop_path_rate": drop_path} if hasattr(config, "drop_path_rate") else {}
        model: Any = self._build(**changed)
        model.load_state_dict(self.model.state_dict())
        if checkpointed and model.supports_gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        elif checkpointed:
            lacks.append(RECOMPUTED)
        self.model = model.eval()
        return lacks

    def fit(self, size: int) -> None:
        if size != self._size:
            try_size(self, size)
            self._size = size
            self._describe()

    def fresh(self) -> "HuggingFaceModel":
        device = next(self.parameters()).device
        found = HuggingFaceModel(self._name, self._kind, self._build(), self.preprocessing, self._build)
        found.fit(self._size)
        return found.to(device).eval().requires_grad_(False)

    def _after_blocks(self, images: Tensor, count: int) -> list[Tensor]:
        """Tokens after each of the last `count` blocks."""
        kept: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda module, inputs, output: kept.append(_first(output)))
            for block in self._blocks()[-count:]
        ]
        try:
            tried(self._name, images.shape[2:], lambda: self._run(images))
        finally:
            for hook in hooks:
                hook.remove()
        return kept

    def _run(self, images: Tensor, **more: Any) -> Any:
        settings = self._settings if images.shape[-1] != self._own or images.shape[-2] != self._own else {}
        return self.model(pixel_values=images, **settings, **more)

    def _outputs(self, images: Tensor) -> Outputs:
        found = self._run(images)
        last = found.last_hidden_state
        pooled: Any = getattr(found, "pooler_output", None)
        if last.ndim == 4:
            return Outputs(pooled.flatten(1), None, as_patches(last))
        first = last[:, 0] if self._kind.cls else None
        patches = last[:, self._before() :]
        if pooled is None:
            by_mean = first is None or getattr(self.model.config, "use_mean_pooling", False)
            pooled = patches.mean(dim=1) if by_mean else first
        return Outputs(pooled.flatten(1), first, patches)

    def _before(self) -> int:
        """Number of tokens before the patches."""
        config = self.model.config
        if config.model_type == "dinov3_convnext":
            return 1  # its pooled feature
        distilled = 1 if config.model_type == "deit" else 0
        return (1 + distilled + int(getattr(config, "num_register_tokens", 0) or 0)) if self._kind.cls else 0

    def _sorted(self, tokens: Tensor) -> Tensor:
        """Tokens with [CLS], or the mean of the patches, first."""
        patches = tokens[:, self._before() :]
        return torch.cat([tokens[:, :1] if self._kind.cls else patches.mean(dim=1, keepdim=True), patches], dim=1)

    def _blocks(self) -> Any:
        """Transformer blocks of one grid; None for networks of stages."""
        if not (self._kind.cls or self._kind.model.startswith("Siglip")):
            return None
        lists = [part for name, part in self.model.named_modules() if name.rpartition(".")[2] in ("layer", "layers")]
        return max(lists, key=len)

    def _describe(self) -> None:
        """Find out what it has by one image of zeros."""
        with torch.inference_mode():
            found = self.outputs(torch.zeros(1, 3, self._size, self._size, device=next(self.parameters()).device))
        assert found.patches is not None
        self.cls_is_pooled = found.cls is not None and torch.equal(found.cls, found.pooled)
        abilities: set[Ability] = {"patches", "blocks"}
        if found.cls is not None:
            abilities |= {"cls"} if self._kind.model.startswith("Data2Vec") else {"cls", "attention"}  # whose sdpa keeps it
        self.abilities = frozenset(abilities)
        side, blocks, config = math.isqrt(found.patches.shape[1]), self._blocks(), self.model.config
        heads = config.num_attention_heads if blocks is not None else 0
        depth, width = len(blocks) if blocks is not None else 0, found.pooled.shape[1]
        mean, std = self.preprocessing.mean, self.preprocessing.std
        stride = self._size // max(side, 1)
        self.shape = Architecture(self._name, stride, self._size, 3, width, depth, heads, mean=mean, std=std)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
