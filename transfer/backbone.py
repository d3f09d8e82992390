"""Backbones as feature pyramids for MMDetection and MMSegmentation.

Importing this file registers `IBOTBackbone` with MMEngine. b images, h w pixels, d width; level i has stride 4, 8, 16, 32
(paper App. C; the original's dense backbone). iBOT's own ViTs of patch 8 and 16 and Swins of patch 4 are computed here as the
original does; other networks by their libraries, their tokens resized to strides of 8 or 16 where they are others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from checkpoints import store
from checkpoints.cli import UserError, WorkError
from pretrain.models.backbone import Backbone
from pretrain.models.swin import Swin
from pretrain.models.vit import ViT
from transfer.layout import layout_of
from transfer.levels import STRIDES, Levels, cropped, grid_stride, padded, resized_tokens
from transfer.networks import Wanted, drawn, is_foreign, network, resized


class Pyramid(nn.Module):
    """A network as four maps.

    `levels` false leaves a ViT's four taps on their grid (the linear head), `last` takes the last block's map alone (ViTDet's
    simple feature pyramid). `norm_taps`: the final norm on every tap. `frozen`: the network stays as it is, in evaluation mode.
    `checkpointed` computes blocks again in the backward. `grid`: rows and columns that a ViT's position embeddings are resized to
    once, here, by size, as in the original: that grid is trained, and resized in the forward for images of another; None keeps
    the grid of the checkpoint. Batch norms keep the checkpoint's statistics, unless `statistics` is set to true.
    """

    def __init__(
        self,
        net: Backbone,
        *,
        levels: bool = True,
        last: bool = False,
        norm_taps: bool = False,
        taps: Sequence[int] | None = None,
        grid: Any = None,
        frozen: bool = False,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.shape, self.frozen, self.checkpointed = net, net.shape, frozen, checkpointed
        self.grid = None if grid is None else resized(net, grid)
        self.normed, self.statistics = norm_taps or frozen, False
        self.layout = layout = layout_of(net, taps=taps, last=last, norm=self.normed)
        self.foreign = is_foreign(net)
        own_stride = layout.stride in ((8, 16) if layout.plain else STRIDES[:1])
        self.as_the_original = own_stride and not self.foreign
        self.stride = grid_stride(layout.stride) if layout.plain else STRIDES[0]
        """Pixels of a token's side in the first map, before `levels`."""
        if layout.plain:
            self.levels = Levels(layout.widths[0], self.stride) if levels and not last else None
            if isinstance(net, ViT) and not self.normed:
                net.norm = nn.Identity()
        elif isinstance(net, Swin):
            self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in layout.widths)
            net.norm = nn.Identity()
        else:
            has_batch_norm = any(isinstance(part, _BatchNorm) for part in net.modules())
            self.norms = nn.ModuleList(nn.Identity() if has_batch_norm else LayerNorm2d(width) for width in layout.widths)
        if frozen:
            net.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Pyramid":
        super().train(mode)
        if self.frozen:
            self.net.eval()
        elif not self.statistics:
            for part in self.net.modules():
                if isinstance(part, _BatchNorm):
                    part.eval()
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """The maps, finest first.

        Images are padded with zeros on the right and below until patches divide them; for networks that the original has not,
        until 32 pixels do, and the tokens of that padding are cut off.
        """
        size, layout = images.shape[-2:], self.layout
        images = padded(images, *(() if self.as_the_original else STRIDES[-1:]), layout.stride if layout.plain else self._patch())
        maps: Sequence[Tensor] = self._maps(images)
        factor = layout.stride / self.stride
        maps = [resized_tokens(one, factor) for one in maps]
        if layout.plain and self.levels is not None:
            maps = self.levels(maps)
        if self.as_the_original:
            return tuple(maps)
        strides = [self.stride] * len(maps) if layout.plain and self.levels is None else STRIDES[: len(maps)]
        return tuple(cropped(one, size, stride) for one, stride in zip(maps, strides, strict=True))

    def layer(self, name: str) -> int:
        """Layer of a parameter by its name in the network: 0 is the embedding, `layout.num_layers` the last block or stage."""
        return self.layout.layers.get(name, 0)

    def drawn(self) -> Backbone:
        """The network with random weights. Raises UserError where its library cannot make it anew."""
        return drawn(self.net, self.grid)

    def _patch(self) -> int:
        return self.shape.patch_size if isinstance(self.net, Swin) else 1

    def _maps(self, images: Tensor) -> list[Tensor]:
        if isinstance(self.net, Swin):
            return self._of_stages(self.net, images)
        if isinstance(self.net, ViT):
            return self._of_blocks(self.net, images)
        found = self.net.maps(images, self.layout.taps, norm=self.normed and self.layout.plain)
        return found if self.layout.plain else [norm(one) for norm, one in zip(self.norms, found, strict=True)]

    def _of_blocks(self, net: ViT, images: Tensor) -> list[Tensor]:
        grid = [side // self.shape.patch_size for side in images.shape[-2:]]
        x, maps = net.embed(images), []
        for number, block in enumerate(net.blocks):
            x = self._run(block, x)
            if number in self.layout.taps:
                maps.append(net.norm(x)[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous())
        return maps

    def _of_stages(self, net: Any, images: Tensor) -> list[Tensor]:
        x, maps = net.embed(images), []
        for stage, norm in zip(net.layers, self.norms, strict=True):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self._run(block, x)
            maps.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return maps

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointed and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


@MODELS.register_module()
class IBOTBackbone(Pyramid):
    """A pyramid whose weights come from any checkpoint, as a backbone of MMDetection and MMSegmentation.

    `checkpoint` is whatever `--ckpt` takes; every weight must fit, and `arch`, `patch_size` and `window`, where they are given,
    must be its own. Without one they say what to build with random weights. `lacks` names what was asked for and is not there.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        arch: str | None = None,
        patch_size: int | None = None,
        window: int | None = None,
        key: str = "teacher",
        drop_path: float = 0.0,
        checkpointed: bool = False,
        **how: Any,
    ) -> None:
        """`how` goes to Pyramid."""
        wanted = Wanted(arch, patch_size, window)
        net, lacks = network(checkpoint, wanted, key, drop_path=drop_path, checkpointed=checkpointed)
        super().__init__(net, checkpointed=checkpointed, **how)
        self.lacks = lacks
        self.seal = fingerprint(net) if checkpoint is not None else ""

    def init_weights(self) -> None:
        """MMEngine calls this once everything is built; the weights that were loaded stay, and are looked at again."""
        self.verify()

    def verify(self) -> None:
        """Raise WorkError if the loaded weights are no longer there."""
        if self.seal and fingerprint(self.net) != self.seal:
            raise WorkError("the checkpoint's weights were overwritten while the model was built: nothing was trained")


def fingerprint(net: nn.Module) -> str:
    """A digest of a network's weights; not every use keeps the last norm."""
    return store.checksum({name: weight for name, weight in net.state_dict().items() if not name.startswith("norm.")})


def try_out(settings: Mapping[str, Any]) -> Pyramid | None:
    """A config's backbone, built once before anything is made; None for one of the config's own. Raises UserError."""
    if str(settings.get("type")).rpartition(".")[2] != IBOTBackbone.__name__:
        return None
    try:
        return IBOTBackbone(**{name: value for name, value in settings.items() if name not in ("type", "init_cfg")})
    except TypeError as error:  # an argument that it does not have
        raise UserError(f"model.backbone of the config cannot be built: {store.first_line(error)}") from error
