"""Any model of timm with features, computed by timm: `timm:NAME[.TAG][@FILE]`.

The pooled feature is timm's own (`forward_features`, then `forward_head(pre_logits=True)`); the tag's `pretrained_cfg` decides
mean, deviation, interpolation, share of the centre crop and size.

b images, n patches, d width of the pooled feature, p width of the patch tokens.
"""

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from checkpoints.architecture import MEAN, STD, Architecture
from checkpoints.cli import UserError
from checkpoints.resolve import pretrained_config
from checkpoints.store import first_line
from pretrain.models.measured import (
    RECOMPUTED,
    STOCHASTIC_DEPTH,
    Ability,
    Measured,
    Outputs,
    Preprocessing,
    as_patches,
    mean_first,
    tried,
)

USUAL = 0.875
"""Share of the resized image that timm's centre crop has where a model does not say it."""
FLEXIBLE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""Arguments with which models take images of several sizes, by family; the first that a model knows is used."""


class TimmModel(Measured):
    """A model of timm. `name` has the tag, if one was named; `build` makes it with random weights, arguments are timm's."""

    def __init__(
        self, name: str, model: nn.Module, build: Callable[..., nn.Module], preprocessing: Preprocessing | None = None
    ) -> None:
        """`preprocessing`: in place of that of timm's `pretrained_cfg` of the name."""
        super().__init__()
        self.model: Any = model.eval()
        self._name, self._build = name, build
        self.preprocessing = preprocessing or preprocessing_of(pretrained_config(name))
        self.origin = "timm"
        self._size = self.preprocessing.crop
        self._describe()

    def outputs(self, images: Float[Tensor, "b c h w"]) -> Outputs:
        return tried(self.shape.arch, images.shape[2:], lambda: self._outputs(images, all_of_it=True))

    def pooled(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return tried(self.shape.arch, images.shape[2:], lambda: self._outputs(images, all_of_it=False).pooled)

    def last_blocks(self, images: Float[Tensor, "b c h w"], count: int) -> list[Float[Tensor, "b t p"]]:
        """Tokens of the last blocks (stages, of a network without blocks of one grid), each through the final norm."""
        return tried(self.shape.arch, images.shape[2:], lambda: self._last_blocks(images, count))

    def get_last_selfattention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads t t"]:
        """As timm computes it without its fused kernel; registers are left out."""
        with self._attention_read() as kept:
            tried(self.shape.arch, images.shape[2:], lambda: self.model.forward_features(images))
        prefix = self._prefix()
        wanted = [0, *range(prefix, kept[0].shape[-1])]
        return kept[0][:, :, wanted][..., wanted]

    @contextlib.contextmanager
    def _attention_read(self) -> Iterator[list[Tensor]]:
        """Context in which the last block's attention weights are put into the list; nothing where there are none to read."""
        attention, kept = self._last_attention(), list[Tensor]()
        if not (hasattr(attention, "fused_attn") and hasattr(attention, "attn_drop")):
            yield kept
            return
        fused, attention.fused_attn = attention.fused_attn, False
        hook = attention.attn_drop.register_forward_hook(lambda module, inputs, output: kept.append(inputs[0]))
        try:
            yield kept
        finally:
            hook.remove()
            attention.fused_attn = fused

    def _last_attention(self) -> Any:
        return getattr(self.model.blocks[-1], "attn", None) if self._has_blocks() else None

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.blocks) if self._has_blocks() else []

    @property
    def final_norm(self) -> nn.Module | None:
        return getattr(self.model, "norm", None)

    def maps(
        self, images: Float[Tensor, "b c h w"], taps: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[Float[Tensor, "b _ _ _"]]:
        if not hasattr(self.model, "forward_intermediates"):
            return super().maps(images, taps, norm=norm)
        settings = {"indices": None if taps is None else list(taps), "output_fmt": "NCHW", "intermediates_only": True}
        run = partial(self.model.forward_intermediates, images, norm=norm, **settings)
        return list(tried(self.shape.arch, images.shape[2:], run))

    def make_trainable_(self, *, drop_path: float, checkpointed: bool) -> list[str]:
        """As timm has it; an argument that a model does not know is said to be lacking."""
        lacks = []
        try:
            model = self._build(**({"drop_path_rate": drop_path} if drop_path else {}))
        except (TypeError, UserError):
            model, lacks = self._build(), [STOCHASTIC_DEPTH]
        model.load_state_dict(self.model.state_dict())
        if checkpointed:
            try:
                model.set_grad_checkpointing(True)  # type: ignore[operator]
            except (AttributeError, AssertionError, TypeError):
                lacks.append(RECOMPUTED)
        self.model = model.eval()
        return lacks

    def fit(self, size: int) -> None:
        """Raises UserError for a size that neither the network nor timm's `set_input_size` takes."""
        if size == self._size:
            return
        try:
            self._takes(size)
        except UserError as error:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # tables of positions are interpolated by timm's own code
                    self.model.set_input_size(img_size=(size, size))
                self._takes(size)
            except Exception:
                own = self.preprocessing
                cure = "give --view own, or that size"
                raise UserError(f"timm:{self._name} takes images of {own.crop} pixels only, not {size}: {cure}") from error
        self._size = size
        self._describe()

    def fresh(self) -> "TimmModel":
        device = next(self.parameters()).device
        found = TimmModel(self._name, self._build(), self._build, self.preprocessing)
        found.fit(self._size)
        return found.to(device).eval().requires_grad_(False)

    def _takes(self, size: int) -> None:
        images = torch.zeros(1, 3, size, size, device=next(self.parameters()).device)
        with torch.inference_mode():
            tried(f"timm:{self._name}", (size, size), lambda: self._outputs(images, all_of_it=True))

    def _describe(self) -> None:
        """Find out what it has by one image of zeros."""
        device = next(self.parameters()).device
        with torch.inference_mode():
            images = torch.zeros(1, 3, self._size, self._size, device=device)
            try:
                with self._attention_read() as attention:
                    found = self._outputs(images, all_of_it=True)
            except Exception as error:  # timm has hundreds of architectures
                raise UserError(f"timm:{self._name} gives no features ({first_line(error)}): give another model") from error
            self.cls_is_pooled = found.cls is not None and torch.equal(found.cls, found.pooled)
        abilities: set[Ability] = set()
        if found.cls is not None:
            abilities.add("cls")
        if found.patches is not None:
            abilities |= {"patches", "blocks"} if self._shows_blocks(found.cls is not None) else {"patches"}
        if found.cls is not None and found.patches is not None and len(attention) == 1:
            tokens = self._prefix() + found.patches.shape[1]
            if attention[0].shape[-2:] == (tokens, tokens):  # XCiT's is of channels
                abilities.add("attention")
        self.abilities = frozenset(abilities)
        side = 1 if found.patches is None else math.isqrt(found.patches.shape[1])
        blocks = len(self.model.blocks) if self._has_blocks() else 0
        heads = getattr(self._last_attention(), "num_heads", 0)
        width, own = found.pooled.shape[1], self.preprocessing
        self.shape = Architecture(self._name, self._size // side, self._size, 3, width, blocks, heads, mean=own.mean, std=own.std)
        embedding = getattr(self.model, "patch_embed", None)
        patch = getattr(embedding, "patch_size", 1)
        self.multiple = int(patch if isinstance(patch, int) else patch[0])

    def _shows_blocks(self, with_cls: bool) -> bool:
        """Whether timm gives the tokens of earlier blocks, [CLS] among them where there is one."""
        forward = getattr(self.model, "forward_intermediates", None)
        return forward is not None and (not with_cls or "return_prefix_tokens" in inspect.signature(forward).parameters)

    def _has_blocks(self) -> bool:
        return isinstance(getattr(self.model, "blocks", None), (nn.Sequential, nn.ModuleList)) and len(self.model.blocks) > 0

    def _prefix(self) -> int:
        """Number of tokens that are not patches."""
        return int(getattr(self.model, "num_prefix_tokens", 0))

    def _outputs(self, images: Tensor, *, all_of_it: bool) -> Outputs:
        features = self.model.forward_features(images)
        pooled = self.model.forward_head(features, pre_logits=True)
        if isinstance(pooled, tuple):  # the two heads of a distilled network
            pooled = sum(pooled) / len(pooled)
        pooled = pooled.flatten(1)
        if not all_of_it:
            return Outputs(pooled, None, None)
        return Outputs(pooled, *self._tokens(images, features))

    def _tokens(self, images: Tensor, features: Any) -> tuple[Tensor | None, Tensor | None]:
        """[CLS] and patch tokens of what `forward_features` gave, after the final norm where there is one."""
        if isinstance(features, Tensor) and features.ndim == 4:
            last_channels = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return None, features.flatten(1, 2) if last_channels else as_patches(features)
        if isinstance(features, Tensor) and features.ndim == 3 and hasattr(self.model, "num_prefix_tokens"):
            prefix = self._prefix()
            has_cls = getattr(self.model, "cls_token", None) is not None
            patches = features[:, prefix:]
            if self._is_grid(patches, images):
                return features[:, 0] if has_cls else None, patches
        with contextlib.suppress(AttributeError, TypeError, AssertionError, NotImplementedError):
            (last,) = self.model.forward_intermediates(images, indices=1, output_fmt="NCHW", intermediates_only=True)
            return None, as_patches(last)
        return None, None

    @staticmethod
    def _is_grid(patches: Tensor, images: Tensor) -> bool:
        """Whether so many tokens are a grid of square patches of images of this size."""
        height, width = images.shape[2:]
        area = height * width / patches.shape[1] if patches.shape[1] else 0
        side = round(math.sqrt(area))
        return side > 0 and (height // side) * (width // side) == patches.shape[1]

    def _last_blocks(self, images: Tensor, count: int) -> list[Tensor]:
        if "blocks" not in self.abilities:
            found = self._outputs(images, all_of_it=True)
            assert found.patches is not None
            first = found.patches.mean(dim=1) if found.cls is None else found.cls
            return [torch.cat([first[:, None], found.patches], dim=1)]
        if "cls" in self.abilities:
            layers = self.model.forward_intermediates(
                images, indices=count, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
            )
            return [torch.cat([prefix[:, :1], patches], dim=1) for patches, prefix in layers]
        few = min(count, len(getattr(self.model, "feature_info", [0])) or 1) if not self._has_blocks() else count
        settings = {"indices": few, "output_fmt": "NCHW", "intermediates_only": True}
        try:
            maps = self.model.forward_intermediates(images, norm=True, **settings)
        except AssertionError:  # Hiera and others have no norm that fits all stages
            maps = self.model.forward_intermediates(images, norm=False, **settings)
        tokens = [as_patches(one) for one in maps]
        return [mean_first(one) for one in tokens]


def preprocessing_of(config: Mapping[str, Any]) -> Preprocessing:
    """What timm's own evaluation does to an image (`timm.data.create_transform` with `is_training=False`)."""
    crop = int(config.get("input_size", (3, 224, 224))[-1])
    resize = math.floor(crop / (config.get("crop_pct") or USUAL))
    mean, std = (tuple(map(float, config.get(name) or usual)) for name, usual in (("mean", MEAN), ("std", STD)))
    interpolation: Any = config.get("interpolation") or "bicubic"
    mode = config.get("crop_mode") or "center"
    if mode == "border":
        raise UserError("timm's crop mode border is not known here: give --crop and --resize")
    return Preprocessing(mean, std, crop, resize, interpolation, squash=mode == "squash")


def built(name: str, **settings: Any) -> nn.Module:
    """timm's model of that name without a classifier, for images of several sizes where it can be."""
    for flexible in FLEXIBLE:
        try:
            return timm.create_model(name, num_classes=0, **settings, **flexible)
        except TypeError:
            if not flexible:
                raise
    raise AssertionError("unreachable")


def named(path: Path) -> str:
    """The name with its tag in `timm:NAME[.TAG][@FILE]`."""
    return str(path).removeprefix("timm:").partition("@")[0]
