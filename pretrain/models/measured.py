"""Backbones that are measured as they are, and trained in dense transfer alone: other libraries' networks and one's own.

Each says what it has: a pooled feature always; a [CLS] token, patch tokens on a grid, the last blocks and attention where there
are such. A probe that needs what a backbone lacks refuses it in one sentence before any work (`require`).

b images, n patches of a grid row by row, d width of the pooled feature, p width of the patch tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from checkpoints.architecture import Architecture
from checkpoints.cli import UserError
from checkpoints.store import first_line

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Ability = Literal["cls", "patches", "blocks", "attention"]
WORDS: dict[Ability, str] = {
    "cls": "[CLS] token",
    "patches": "patch tokens on a grid",
    "blocks": "tokens of its last blocks",
    "attention": "attention of [CLS] that can be read",
}


STOCHASTIC_DEPTH, RECOMPUTED = "stochastic depth", "recomputed activations"
"""Words for what `make_trainable_` may find lacking."""


class Preprocessing(NamedTuple):
    """What a backbone's authors do to an image: resize, centre crop, scale to 0..1, normalise."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int
    """Pixels of a side that enter the network."""
    resize: int
    """Pixels of the shorter side before the centre crop."""
    interpolation: Interpolation = "bicubic"
    squash: bool = False
    """Resize both sides to `resize`, whatever the proportions."""


class Outputs(NamedTuple):
    """What one forward gives of a batch."""

    pooled: Float[Tensor, "b d"]
    cls: Float[Tensor, "b p"] | None
    patches: Float[Tensor, "b n p"] | None


class Measured(nn.Module):
    """A frozen network of any kind behind one face.

    `shape` describes it as `Architecture` does our own; its `patch_size` are the pixels of a patch token's side (of the whole
    image where there is no grid). `origin` is what decides its outputs besides weights and shape, for the key of kept features.
    """

    shape: Architecture
    preprocessing: Preprocessing
    abilities: frozenset[Ability]
    origin: str = ""
    multiple: int = 1
    """Sides of images must be multiples of it."""
    cls_is_pooled: bool = False
    """Whether the pooled feature is the [CLS] token of the last block."""

    def outputs(self, images: Float[Tensor, "b c h w"]) -> Outputs:
        """Pooled feature, [CLS] and patch tokens, the last two None where there are none."""
        raise NotImplementedError

    def pooled(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """The pooled feature alone."""
        return self.outputs(images).pooled

    def last_blocks(self, images: Float[Tensor, "b c h w"], count: int) -> list[Float[Tensor, "b t p"]]:
        """Tokens of the last blocks or stages, the very last one last; first token: [CLS], or the mean of the patches."""
        raise NotImplementedError

    def get_last_selfattention(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b heads t t"]:
        """Attention weights of the last block for [CLS] and the patches."""
        raise NotImplementedError

    def last_patches_before_norm(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
        """Raises UserError: other libraries' networks do not show them alike."""
        raise UserError(f"{self.shape.arch}: patch tokens before the final norm are read of iBOT's own networks only")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Transformer blocks of one grid, first to last; none of a network of stages."""
        return []

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm behind the blocks that `maps` uses, where there is one."""
        return None

    def maps(
        self, images: Float[Tensor, "b c h w"], taps: Sequence[int] | None = None, *, norm: bool = False
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Maps after each block or stage, or after those of `taps` (from 0); `norm`: of blocks, through the final norm.

        Raises UserError where the network shows none.
        """
        raise UserError(f"{self.shape.arch} does not show the maps of its blocks or stages")

    def make_trainable_(self, *, drop_path: float, checkpointed: bool) -> list[str]:
        """Let the weights be trained, with stochastic depth of that rate; `checkpointed`: blocks are computed twice.

        Returns what of that the network lacks, in words.
        """
        self.requires_grad_(True)
        return [*([STOCHASTIC_DEPTH] if drop_path else []), *([RECOMPUTED] if checkpointed else [])]

    def fit(self, size: int) -> None:
        """Take images of `size` pixels from now on. Raises UserError for a size that the network cannot take."""

    def fresh(self) -> "Measured":
        """The same network with random weights. Raises UserError where it cannot be made anew."""
        raise UserError(f"{self.shape.arch} cannot be made with random weights: leave the untrained baseline out")

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        """Tokens as our own backbones give them, the pooled feature first. Raises UserError where there are no such tokens."""
        require(self, "patches")
        found = self.outputs(images)
        assert found.patches is not None
        if found.pooled.shape[-1] != found.patches.shape[-1]:
            widths = f"{found.pooled.shape[-1]} and {found.patches.shape[-1]}"
            raise UserError(f"{self.shape.arch}: its pooled feature and its patch tokens differ in width ({widths})")
        return torch.cat([found.pooled[:, None], found.patches], dim=1)


def mean_first(patches: Float[Tensor, "b n p"] | None) -> Float[Tensor, "b t p"]:
    """Patch tokens with their mean in front, for networks without a [CLS] token."""
    assert patches is not None
    return torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)


def try_size(network: Measured, size: int) -> None:
    """One forward of a black image of that size. Raises UserError where the network cannot take it."""
    with torch.inference_mode():
        network.outputs(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))


def require(backbone: nn.Module, *abilities: Ability) -> None:
    """Raise UserError naming the first of these that a measured backbone lacks."""
    if isinstance(backbone, Measured):
        for ability in abilities:
            if ability not in backbone.abilities:
                raise UserError(f"{backbone.shape.arch} has no {WORDS[ability]}, which this needs: give another --ckpt")


def pooled(backbone: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """One vector an image: the pooled feature of a measured backbone, of our own the [CLS] token (Swin: mean token)."""
    return backbone.pooled(images) if isinstance(backbone, Measured) else backbone(images)[:, 0]


def patch_tokens(backbone: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
    """Patch tokens of the last block, row by row. Raises UserError where there are none."""
    return pooled_and_patches(backbone, images)[1]


def pooled_and_patches(
    backbone: nn.Module, images: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n p"]]:
    """Both by one forward. Raises UserError where there are no patch tokens."""
    if not isinstance(backbone, Measured):
        tokens = backbone(images)
        return tokens[:, 0], tokens[:, 1:]
    require(backbone, "patches")
    found = backbone.outputs(images)
    height, width = images.shape[2:]
    stride = backbone.shape.stride
    if found.patches is None or found.patches.shape[1] != (height // stride) * (width // stride):
        raise UserError(f"{backbone.shape.arch} gives no grid of patches for images of {height} x {width}: give another size")
    return found.pooled, found.patches


def in_words(backbone: Measured) -> str:
    """What it has, for a person."""
    having = [WORDS[ability] for ability in WORDS if ability in backbone.abilities]
    return ", ".join(["a pooled feature", *having])


def tried(network: str, size: Sequence[int], run: Callable[[], Any]) -> Any:
    """What `run` returns. Raises UserError where a network does not take images of this size (height, width)."""
    try:
        return run()
    except UserError:
        raise
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        if "out of memory" in str(error).lower():
            raise
        sides = " x ".join(map(str, size))
        raise UserError(f"{network} does not take images of {sides} pixels ({first_line(error)}): give another size") from error


def as_map(patches: Float[Tensor, "b n p"], height: int, width: int) -> Float[Tensor, "b p gh gw"]:
    """Patch tokens, row by row, of an image of that size as a map; patches are square."""
    side = round((height * width / patches.shape[1]) ** 0.5)
    return patches.transpose(1, 2).unflatten(2, (height // side, width // side))


def as_patches(found: Float[Tensor, "b p gh gw"]) -> Float[Tensor, "b n p"]:
    """A map as patch tokens, row by row."""
    return found.flatten(2).transpose(1, 2)
