"""Any ViT of timm with a class token, by its name there: registers, LayerScale, SwiGLU, rotary positions, as timm computes them.

b images, t = 1 + patches, d width.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers import DropPath, resample_abs_pos_embed
from torch import Tensor, nn

from checkpoints.architecture import Architecture, timm_model, timm_shape
from checkpoints.cli import UserError
from checkpoints.store import first_line


class TensorDropPath(nn.Module):
    """timm's DropPath with its rate in a tensor: a number would make a graph of its own of every block."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(rate), persistent=False)
        self.rate: Tensor

    def forward(self, x: Float[Tensor, "images *rest"]) -> Float[Tensor, "images *rest"]:  # noqa: F821  # names of axes
        """`x` of each image times 0 or 1 / (1 - rate)."""
        if not self.training:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class AnyViT(nn.Module):
    """timm's model as images (and masks) to tokens, its weights under `model.` with timm's names.

    Masks replace what the patch embedding gives, before positions are added, as everywhere. Registers are left out of the tokens.
    The arguments are those of `pretrain.models.vit.ViT`.
    """

    def __init__(
        self, shape: Architecture, *, maskable: bool, drop_path: float = 0.0, fused: bool = True, checkpointed: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.fused, self.recompute_activations = shape, fused, False
        self.compiled = False
        settings: dict[str, Any] = {"in_chans": shape.channels, "drop_path_rate": drop_path, "dynamic_img_size": True}
        settings["global_pool"] = "token"  # else the last norm of some would stand behind a pooling that nobody asks for
        if shape.patch_size != timm_shape(shape.arch, shape.image_size, shape.channels).patch_size:
            settings["patch_size"] = shape.patch_size  # DINOv2 trained on with other patches, as Phikon-v2
        try:
            model: Any = timm_model(shape.arch, img_size=shape.image_size, **settings)
        except UserError:
            raise
        except (TypeError, RuntimeError, AssertionError, ValueError) as error:
            why = f"timm cannot make it for crops of several sizes ({first_line(error)})"
            raise UserError(f"--arch {shape.arch}: {why}") from error
        for part in model.modules():
            if hasattr(part, "fused_attn"):
                part.fused_attn = fused
        model.set_grad_checkpointing(checkpointed)
        self.model: Any = model
        if maskable:
            self.masked_embed = nn.Parameter(torch.zeros(1, shape.embed_dim))

    def compile_blocks(self) -> None:
        """From now on blocks run compiled while they train. Rates of stochastic depth become tensors: so graphs are shared."""
        self.compiled = True
        for block in self.blocks:
            for part in [*block.modules()]:
                for name, child in part.named_children():
                    if isinstance(child, DropPath):
                        setattr(part, name, TensorDropPath(child.drop_prob or 0.0).to(self._device()).train(child.training))
            block.compile(fullgraph=True, dynamic=False)

    def leave_uncompiled(self) -> None:
        """Undo `compile_blocks`; rates stay tensors."""
        self.compiled = False
        for block in self.blocks:
            block._compiled_call_impl = None  # torch has no public way back from `Module.compile`

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def blocks(self) -> Any:
        """All blocks, first to last."""
        return self.model.blocks

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm behind the blocks."""
        return getattr(self.model, "norm", None)

    def maps(
        self, images: Float[Tensor, "b c h w"], taps: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[Float[Tensor, "b d _ _"]]:
        """Patch tokens as maps after every block, or after those of `taps` (from 0); `norm`: each through the final norm."""
        indices = None if taps is None else list(taps)
        return list(self.model.forward_intermediates(images, indices=indices, norm=norm, intermediates_only=True))

    def forward(self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b gh gw"] | None = None) -> Float[Tensor, "b t d"]:
        """Tokens after the final norm, [CLS] first, registers left out."""
        # torch has no other switch that leaves compiled modules as they are for one call
        eager = self.compiled and not self.training
        stance = torch.compiler.set_stance("force_eager") if eager else contextlib.nullcontext()
        with self._masked(mask), stance:
            return self._without_registers(self.model.forward_features(images))

    def forward_multi(self, groups: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """`forward` for crops of several sizes, one size after the other."""
        return [self(images, mask) for images, mask in groups]

    def last_blocks(self, images: Float[Tensor, "b c h w"], count: int) -> list[Float[Tensor, "b t d"]]:
        """Tokens after each of the last `count` blocks, each through the final norm, the very last one last."""
        layers = self.model.forward_intermediates(
            images, indices=count, norm=True, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        return [torch.cat([prefix[:, :1], patches], dim=1) for patches, prefix in layers]

    def last_patches_before_norm(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Patch tokens of the last block without the final norm."""
        (patches,) = self.model.forward_intermediates(images, indices=1, norm=False, output_fmt="NLC", intermediates_only=True)
        return patches

    def from_timm(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights under timm's or their authors' names -> ours, by timm's own filter for its pretrained files."""
        known = sys.modules[type(self.model).__module__]
        converted = known.checkpoint_filter_fn(dict(weights), self.model) if hasattr(known, "checkpoint_filter_fn") else weights
        return {f"model.{name}": weight for name, weight in converted.items()}

    def resized_positions(self, side: int) -> dict[str, Tensor]:
        """The learnt positions for a grid of `side` x `side` patches, by their name; none where a model has others."""
        positions = getattr(self.model, "pos_embed", None)
        if positions is None:
            return {}
        prefix = 0 if self.model.no_embed_class else self.model.num_prefix_tokens
        return {"model.pos_embed": resample_abs_pos_embed(positions.detach(), [side, side], num_prefix_tokens=prefix)}

    def _without_registers(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :1], tokens[:, self.model.num_prefix_tokens :]], dim=1)

    @contextlib.contextmanager
    def _masked(self, mask: Tensor | None) -> Iterator[None]:
        """Context in which the patch embedding puts the mask token where `mask` is true."""
        if mask is None:
            yield
            return

        def replace(module: nn.Module, inputs: object, patches: Tensor) -> Tensor:
            places = mask if patches.ndim == 4 else mask.flatten(1)  # [b, gh, gw, d], or [b, gh * gw, d]
            return torch.where(places[..., None], self.masked_embed.to(patches.dtype), patches)

        handle = self.model.patch_embed.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()
