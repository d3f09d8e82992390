"""The door to tokenizers, and the commands that make their files: `python -m pretrain.tokenizers convert|kmeans|patches`.

A tokenizer is named `dalle` (the published encoder, fetched once), `dalle:FILE` (its file, or what `convert` made of it),
`kmeans:FILE` (what `kmeans` or `patches` made) or `colour`. See `docs/tokenizers.md`.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from checkpoints import hold, places, terminal
from checkpoints.architecture import MEAN, STD
from checkpoints.cli import UserError, parse, run_command
from pretrain.evaluate import faiss_library
from pretrain.images.open import open_images
from pretrain.images.source import Images, subset
from pretrain.models.backbone import load_backbone
from pretrain.tokenizers import dalle, dalle_pickle, kmeans, kmeans_fit
from pretrain.tokenizers.kmeans_fit import Look


@dataclass(frozen=True)
class Convert:
    """DALL-E's published encoder (encoder.pkl) -> safetensors, which cannot hold code."""

    file: Annotated[Path, tyro.conf.Positional]
    """The published file."""
    out: Path = Path("encoder.safetensors")
    """Written, whole or not at all."""


@dataclass(frozen=True)
class Tokens:
    """k-means on the patch tokens of a checkpoint (last block, after the final norm, of length one)."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME (default: the newest run)."""
    data: str = "sample"
    """Images, as pretraining takes them."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint to use."""
    codes: int = 512
    """Number of codes."""
    images: int = 10_000
    """At most so many are looked at, drawn from --seed."""
    seed: int = 0
    """Seed of all random draws."""
    out: Path = Path("tokens.safetensors")
    """Written, whole or not at all, with the backbone in it."""


@dataclass(frozen=True)
class Patches:
    """k-means on the raw patches of images (Table 20's patch clustering: 4096 codes of 10 % of ImageNet)."""

    data: str = "sample"
    """Images, as pretraining takes them."""
    patch_size: int = 16
    """Pixels of a patch's side."""
    codes: int = 4096
    """Number of codes."""
    share: float = 0.1
    """Share of the images to use, drawn from --seed."""
    size: int = 224
    """Pixels of the centre crop that is divided into patches."""
    seed: int = 0
    """Seed of all random draws."""
    out: Path = Path("patches.safetensors")
    """Written, whole or not at all."""


def convert(options: Convert) -> None:
    """Read the published file and write ours."""
    places.tried(options.out)
    weights = dalle_pickle.read(options.file)
    encoder = dalle.encoder_of(weights, options.file)
    with _alone(options.out):
        dalle_pickle.save(options.out, weights, options.file)
    count = sum(weight.numel() for weight in encoder.parameters())
    terminal.say(
        f"{options.out}: {len(weights['blocks.output.conv.b'])} codes, {count:,} parameters; use it as dalle:{options.out}"
    )


def cluster_tokens(options: Tokens) -> None:
    """Look at the images through the backbone and write its codes."""
    places.tried(options.out)
    loaded = load_backbone(options.ckpt, key=options.key)
    shape = loaded.backbone.shape
    images = subset(open_images(options.data, "train", shape.channels, shape.value_range), options.images, options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = loaded.backbone.to(device)
    grid = shape.image_size // shape.stride
    look = Look(partial(kmeans.tokens, backbone), shape.image_size, grid, shape.embed_dim, shape.mean, shape.std, device)
    about = kmeans.About("tokens", shape.stride, options.codes, shape.mean, shape.std, shape._asdict(), {})
    _write(options, images, look, about._replace(made={"checkpoint": str(loaded.path), "epoch": loaded.epoch}), backbone)


def cluster_patches(options: Patches) -> None:
    """Cut the images into patches and write their codes."""
    side, size = options.patch_size, options.size
    if not 0 < options.share <= 1:
        raise UserError(f"--share {options.share} must lie above 0 and at most at 1")
    if size < side or size % side:
        raise UserError(f"--size {size} is not divisible by --patch-size {side}")
    places.tried(options.out)
    everything = open_images(options.data, "train")
    images = subset(everything, max(1, round(options.share * len(everything))), options.seed)
    look = Look(partial(kmeans.patches, side=side), size, size // side, 3 * side**2, MEAN, STD, torch.device("cpu"))
    _write(options, images, look, kmeans.About("pixels", side, options.codes, MEAN, STD, None, {}), None)


def _alone(out: Path) -> contextlib.AbstractContextManager[None]:
    """Another command that makes the same file is refused."""
    return hold.held(out.with_name(f".{out.name}.lock"), f"--out {out}", "give another --out")


def _write(options: Tokens | Patches, images: Images, look: Look, about: kmeans.About, backbone: Any) -> None:
    """Gather, cluster, write, and say what has come of it."""
    faiss_library.load("making codes")  # before the work
    with _alone(options.out):
        points = kmeans_fit.gather(images, look, options.codes, options.seed)
        found = kmeans_fit.cluster(points, options.codes, options.seed, look.device)
        said = kmeans_fit.summary(points, found)
        made = about.made | {"data": options.data, "seed": options.seed, "size": look.size, "summary": said}
        kmeans.save(options.out, about._replace(made=made), torch.from_numpy(found.centroids), backbone)
    terminal.say(f"{options.out}: {said}; use it as kmeans:{options.out}")


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "convert": (Convert, convert),
    "kmeans": (Tokens, cluster_tokens),
    "patches": (Patches, cluster_patches),
}
USAGE = f"usage: python -m pretrain.tokenizers {{{','.join(COMMANDS)}}} [flags]; each has its own --help"


def main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] not in COMMANDS:
        if arguments and arguments[0] in ("-h", "--help"):
            terminal.page(f"{__doc__}\n{USAGE}")
            return
        raise UserError(f"say what to make: {USAGE}")
    options, work = COMMANDS[arguments[0]]
    work(parse(options, arguments[1:], prog=f"python -m pretrain.tokenizers {arguments[0]}"))


if __name__ == "__main__":
    sys.exit(run_command(main))
