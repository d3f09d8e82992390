"""Where the maps of a pyramid come from in a network of any library: blocks or stages, widths, strides, layers.

Of iBOT's own networks it follows from the architecture; others are looked at with an image of zeros, on which their maps' sizes
show the strides, and the gradient of each map the parameters that it depends on.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from checkpoints import layouts
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from pretrain.models.backbone import Backbone
from pretrain.models.layer_index import layer_of
from pretrain.models.swin import Swin
from pretrain.models.vit import ViT
from transfer.levels import STRIDES, taps_of

TRIED = (128, 192)
"""Height and width of the image of zeros, made multiples of the patches if need be."""
LEAST_STRIDE, MOST_STRIDE = 2, 32
"""Of the tokens of a plain network."""


class Layout(NamedTuple):
    """A network as four maps (or one)."""

    plain: bool
    """Whether its blocks share one grid, as a ViT's; else it has stages."""
    taps: tuple[int, ...]
    """The blocks or stages (from 0) whose maps are taken."""
    widths: tuple[int, ...]
    """Of these maps."""
    stride: int
    """Pixels of a token's side in the first of them."""
    layers: Mapping[str, int]
    """Layer of each parameter that is trained, by its name in the network: 0 is the embedding."""
    num_layers: int
    """Blocks, or stages, that layer-wise decay counts."""


def layout_of(net: Backbone, *, taps: Sequence[int] | None = None, last: bool = False, norm: bool = False) -> Layout:
    """The layout of a network; `taps`: blocks to take in place of the usual; `last`: the last block's map alone.

    `norm`: maps go through the final norm. Parameters that no map depends on are left untrained. Raises UserError for a network
    of which there is no such pyramid.
    """
    if isinstance(net, (ViT, Swin)):
        return _own(net.shape, net, taps, last)
    images, every = _tried(net)
    plain = len({found.shape[-2:] for found in every}) == 1
    if last and not plain:
        raise UserError(hierarchical(net.shape))
    if plain:
        stride = _stride(images, every[0])
        if not LEAST_STRIDE <= stride <= MOST_STRIDE:
            raise UserError(f"{net.shape.arch} has tokens of {stride:g} pixels: a pyramid needs {LEAST_STRIDE} to {MOST_STRIDE}")
        if len(every) == 1 and not last:
            raise UserError(f"{net.shape.arch} shows its last map alone: give --neck simple, which needs no other")
        chosen = _last_or_taps(len(every), taps, last)
    else:
        stride, chosen = STRIDES[0], _stages(net.shape, images, every)
    if stride != int(stride):
        raise UserError(f"{net.shape.arch} has tokens of {stride:g} pixels: a pyramid needs whole ones")
    widths = tuple(every[tap].shape[1] for tap in chosen)
    layers, count = _layers(net, images, chosen, plain=plain, norm=norm and plain)
    return Layout(plain, chosen, widths, int(stride), layers, count)


def is_plain(net: Backbone) -> bool:
    """Whether the blocks of a network share one grid. Raises UserError where it shows no maps."""
    if isinstance(net, (ViT, Swin)):
        return isinstance(net, ViT)
    _, every = _tried(net)
    return len({found.shape[-2:] for found in every}) == 1


def hierarchical(shape: Architecture) -> str:
    """Why a network of stages has no simple feature pyramid."""
    return f"--neck simple makes a pyramid of a plain ViT's last map, {shape.arch} is a pyramid by itself: leave it out"


def _last_or_taps(depth: int, taps: Sequence[int] | None, last: bool) -> tuple[int, ...]:
    if last:
        return (depth - 1,)
    return tuple(taps_of(depth) if taps is None else taps)


def _own(shape: Architecture, net: nn.Module, taps: Sequence[int] | None, last: bool) -> Layout:
    layers = {name: layer_of(name, shape) for name, _ in net.named_parameters()}
    if not shape.depths:
        chosen = _last_or_taps(shape.depth, taps, last)
        return Layout(True, chosen, (shape.embed_dim,) * len(chosen), shape.patch_size, layers, shape.depth)
    if last:
        raise UserError(hierarchical(shape))
    widths = tuple(layouts.swin_stages(shape._asdict()).widths)
    return Layout(False, tuple(range(len(widths))), widths, shape.patch_size, layers, shape.depth)


def _tried(net: Any) -> tuple[Tensor, list[Tensor]]:
    """An image that the network takes, and the maps of all its blocks or stages."""
    device, patch = next(net.parameters()).device, int(getattr(net, "multiple", net.shape.patch_size))
    refused: UserError | None = None
    found: tuple[Tensor, list[Tensor]] | None = None
    for multiple in dict.fromkeys((1, patch)):
        images = torch.zeros(1, 3, *(-(-side // multiple) * multiple for side in TRIED), device=device)
        try:
            with torch.inference_mode():
                every = net.maps(images)
        except (UserError, AssertionError, RuntimeError) as error:
            refused = refused or UserError(f"{net.shape.arch} cannot be made a pyramid: {error}")
            continue
        if every and all(_stride(images, one).is_integer() for one in every):
            return images, every
        found = found or ((images, every) if every else None)
        refused = refused or UserError(f"{net.shape.arch} cannot be made a pyramid: it shows no maps of its blocks or stages")
    if found is not None:
        return found
    assert refused is not None
    raise UserError(f"{str(refused).removesuffix(': give another size')}; dense transfer needs images of any size") from refused


def _stride(images: Tensor, found: Tensor) -> float:
    strides = {one / other for one, other in zip(images.shape[-2:], found.shape[-2:], strict=True)}
    return strides.pop() if len(strides) == 1 else 0.5  # a remainder: no grid of square patches


def _stages(shape: Architecture, images: Tensor, every: Sequence[Tensor]) -> tuple[int, ...]:
    """The last stage of each stride."""
    strides = [_stride(images, found) for found in every]
    missing = [str(stride) for stride in STRIDES if stride not in strides]
    if missing:
        has = ", ".join(f"{stride:g}" for stride in dict.fromkeys(strides))
        raise UserError(f"{shape.arch} has maps of strides {has}: a pyramid needs 4, 8, 16 and 32")
    return tuple(max(number for number, one in enumerate(strides) if one == stride) for stride in STRIDES)


def _layers(net: Any, images: Tensor, taps: Sequence[int], *, plain: bool, norm: bool) -> tuple[dict[str, int], int]:
    """Layer of each parameter that the maps depend on, and the number of blocks or stages. The others are left untrained.

    In a network of stages a parameter belongs to the first map that depends on it.
    """
    named = {name: one for name, one in net.named_parameters() if one.requires_grad}
    if not named:
        return {}, len(taps)
    first: dict[str, int] = {}
    with torch.enable_grad():
        maps = net.maps(images.clone(), taps, norm=norm)
        for number, found in enumerate(maps):
            grads = torch.autograd.grad(found.float().sum(), list(named.values()), allow_unused=True, retain_graph=True)
            for name, grad in zip(named, grads, strict=True):
                if grad is not None:
                    first.setdefault(name, number + 1)
    for name in named.keys() - first.keys():
        named[name].requires_grad_(False)
    blocks = {id(one): number for number, block in enumerate(net.blocks) for one in block.parameters()} if plain else {}
    if not blocks:
        return first, len(taps)
    depth = len(net.blocks)
    behind = {id(one) for one in net.final_norm.parameters()} if net.final_norm is not None else set()
    return {
        name: blocks[id(named[name])] + 1 if id(named[name]) in blocks else depth + 1 if id(named[name]) in behind else 0
        for name in first
    }, depth
