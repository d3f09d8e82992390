"""The options of fine-tuning, and how a recipe, a checkpoint and the command line together settle them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from checkpoints import flat
from checkpoints.cli import UserError, at_least, expanded, parse
from pretrain.engine import options as engine_options
from probes.finetune.recipes import DATA_SETS, RECIPES, described, values


@dataclass(frozen=True)
class FinetuneOptions:
    """Fine-tune a pretrained backbone end to end with labels, and test it after every epoch."""

    ckpt: Path | None = None
    """A run's folder, a checkpoint file of any kind, a name of checkpoints/zoo.json, timm:NAME (default: the newest run)."""
    key: Literal["teacher", "student"] = "teacher"
    """Network of the checkpoint (the published IN-22K numbers are the student's)."""
    from_scratch: bool = False
    """Begin with random weights of the checkpoint's shape: the baseline."""
    recipe: Literal["small", "imagenet", "semi", "transfer"] = "small"
    """Named values that the other flags then change; --recipe NAME --help shows them."""
    data: str = "sample"
    """Labelled images, as for pretraining: `sample`, a folder with parts train and val (or test), parquet, shards, hf:NAME,
    torchvision:NAME[@FOLDER]; Cars and iNaturalist in their own layouts."""
    val: str | None = None
    """The test images where --data has no such part."""
    data_set: Literal["cifar10", "cifar100", "inat18", "inat19", "flowers", "cars"] | None = None
    """transfer: whose values to take (default: as --data torchvision:NAME says)."""
    percent: float | None = None
    """Learn from this share of every class, drawn from --seed."""
    names: Path | None = None
    """Learn from the images whose file names this text file lists (SimCLRv2's 1percent.txt and 10percent.txt)."""
    limit: int | None = None
    """Learn from so many images only, drawn from --seed."""
    keep_head_layer: bool = False
    """Put the first layer of the pretrained projection head and its GELU before the new linear layer; needs a full checkpoint."""

    lr: tuple[float, ...] = ()
    """Peak learning rates, used as given. Of several each is run by itself; the best is reported, all are recorded."""
    min_lr: float = 1e-6
    """Learning rate at the end."""
    warmup_lr: float = 0.0
    """Learning rate at the start."""
    warmup_epochs: int | None = None
    """Epochs over which it rises."""
    lr_moves: Literal["step", "deit", "epoch"] = "step"
    """`step`: every step, a cosine over what follows the warm-up. `deit`: every epoch, the warm-up counts in, and an epoch has
    the schedule's value for the one before, as in DeiT's loop. `epoch`: without that delay, to go on with earlier runs."""
    epochs: int | None = None
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step, all processes together."""
    accumulate: int = 1
    """Forwards of each process that make a step: the same step in the memory of one part."""
    weight_decay: float = 0.05
    """Weight decay; biases and one-dimensional tensors have none."""
    decay_embeddings: bool = False
    """Weight decay on position and class tokens too, as in the original's `semi` and `transfer`."""
    layer_decay: float | None = None
    """Block i of n learns with lr x layer_decay^(n + 1 - i), the embedding as block 0, norm and head at the full rate."""
    drop_path: float | None = None
    """Stochastic depth of the last block, rising from 0 at the first."""
    head_scale: float = 1.0
    """The new head's first weights (standard deviation 0.02) are multiplied by this."""
    ema: float = 0.0
    """Decay of an average of the weights that is tested beside them (DeiT: 0.99996; the paper reports the plain weights)."""

    input_size: int | None = None
    """Pixels of a side (default: what the checkpoint was trained on). Position embeddings are resized, then trained."""
    positions: Literal["size", "scale"] | None = None
    """Resizing of a ViT's position embeddings: to the `size` of the grid, as the original (default), or by the `scale` factor of
    frozen use."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image that a training crop covers, least and most."""
    randaugment: str = ""
    """timm's name for the augmentation; without one, colour jitter 0.4."""
    erasing: float | None = None
    """Probability of erasing a rectangle (filled with noise)."""
    mixup: float = 0.0
    """Alpha of mixup; 0 for none."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 for none. With both, each batch takes either."""
    smoothing: float = 0.1
    """Label smoothing."""
    repeats: int = 1
    """Repeated augmentation: how often an image is drawn in a row of an epoch, as long as one without."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation of test images, resized to 8 / 7 of --input-size (not below 160 pixels); training is always bicubic."""
    whole_from: int | None = None
    """Input size from which test images are not cropped."""

    seed: int = 0
    """Seed of the head's weights, the order of images, the augmentation, and drawn subsets."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Number format of the forward passes, as in pretraining."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the blocks (torch.compile); auto on a GPU."""
    checkpoint_activations: bool = False
    """Compute blocks twice to keep less."""
    workers: int | None = None
    """Processes that prepare batches (default: as in pretraining)."""
    max_bad: int | None = None
    """Images that may turn out unusable before the run stops (default: 0.1 % of the data, at least 20)."""
    test_every: int = 1
    """Epochs between tests; the last epoch is always tested."""
    log_every: int = 20
    """Steps between log lines."""
    save_minutes: float = 10.0
    """Minutes between checkpoints; one more at every epoch's end."""
    folder: Path | None = None
    """The run's folder, resumed if it exists (default: finetune/NAME beside the checkpoint)."""
    allow_foreign_files: bool = False
    """Begin in a --folder that holds other files than a run's; without this it is refused."""
    out: Path | None = None
    """The record (default: results/finetune-NAME_... beside the checkpoint); per-class accuracy and confusion go beside it."""


OPEN: dict[str, Any] = {"lr": (), "epochs": 1, "warmup_epochs": 0, "layer_decay": 1.0, "drop_path": 0.0, "erasing": 0.0}
"""Options that may depend on the backbone or the data set, and what they are where neither recipe nor flag says it."""
FREE_TO_CHANGE = frozenset("ckpt workers max_bad test_every log_every save_minutes folder out allow_foreign_files".split())
"""Options that a continued run may change: the checkpoint is known by its digest, and test_every does not touch the weights."""
BEFORE: dict[str, Any] = {"decay_embeddings": False, "positions": "scale"}
"""Values of options for runs that are older than the option."""
SPELT = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "Flowers102": "flowers", "StanfordCars": "cars"}


def read_command_line(arguments: Sequence[str]) -> FinetuneOptions:
    """Flags -> options; what depends on the checkpoint is left open for `settled`. Raises UserError for an unknown recipe."""
    arguments = expanded(FinetuneOptions, arguments)
    given = [word.partition("=") for word in arguments]
    following = [*arguments, "", ""][1:]
    asked = [value or after for (name, _, value), after in zip(given, following, strict=False) if name == "--recipe"]
    recipe = asked[-1] if asked else "small"
    if recipe not in RECIPES:
        raise UserError(f"unknown --recipe {recipe}: choose from {', '.join(RECIPES)}")
    text = f"{FinetuneOptions.__doc__}\n\nRecipe {recipe}. {described(recipe)}"
    default = with_recipe(recipe)
    if "--names" in (name for name, _, _ in given):  # a list takes the place of the share that recipe semi has
        default = dataclasses.replace(default, percent=None)
    return parse(FinetuneOptions, arguments, default=default, prog="python -m probes.finetune", description=text)


def with_recipe(recipe: str, **changes: Any) -> FinetuneOptions:
    """A recipe's options, some of them changed."""
    return dataclasses.replace(FinetuneOptions(recipe=recipe, **RECIPES[recipe].values), **changes)  # type: ignore[arg-type]


def settled(options: FinetuneOptions, width: int, image_size: int, kind: str = "vit") -> FinetuneOptions:
    """Fill in what was left open, for a backbone of this kind and width, pretrained on images of this size.

    `positions` is None afterwards where nothing is resized: at the pretrained size, and for other kinds than `vit`.

    Raises UserError for values without meaning, and for recipe transfer without a data set.
    """
    data_set: Any = options.data_set
    if options.recipe == "transfer" and data_set is None:
        data_set = SPELT.get(options.data.removeprefix("torchvision:").partition("@")[0])
        if data_set is None:
            raise UserError(f"recipe transfer has values by data set: give --data-set {'|'.join(DATA_SETS)}")
    found = OPEN | values(options.recipe, width, data_set)
    changes = {name: found[name] for name in OPEN if getattr(options, name) in (None, ())}
    size = options.input_size or image_size
    changes["positions"] = (options.positions or "size") if kind == "vit" and size != image_size else None
    done = dataclasses.replace(options, data_set=data_set, input_size=size, **changes)
    check(done)
    return done


def check(options: FinetuneOptions) -> None:
    """Raise UserError for settings that no data could make sense of."""
    at_least(1, options, "batch_size", "accumulate", "epochs", "repeats", "test_every", "log_every", "input_size", "limit")
    if not options.lr or min(options.lr) <= 0:
        raise UserError("--lr must be greater than 0")
    if len(set(options.lr)) < len(options.lr):
        raise UserError("--lr names a learning rate twice")
    for name in ("smoothing", "ema", "drop_path", "erasing"):
        if not 0 <= getattr(options, name) < 1:
            raise UserError(f"{flat.flag(name)} must be 0 or more and less than 1")
    if options.layer_decay is None or not 0 < options.layer_decay <= 1:
        raise UserError(f"--layer-decay {options.layer_decay} must be greater than 0 and at most 1")
    least, most = options.crop_scale
    if not 0 < least <= most <= 1:
        raise UserError(f"--crop-scale {least:g} {most:g}: give two shares of the image, 0 < least <= most <= 1")
    at_least(0, options, "mixup", "cutmix", "warmup_epochs", "min_lr", "warmup_lr")
    if (options.warmup_epochs or 0) >= (options.epochs or 0):
        raise UserError(f"--warmup-epochs {options.warmup_epochs} must be fewer than --epochs {options.epochs}")


def differences(now: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Sentences on options that differ from a run's stored ones. An option newer than the run has the value of BEFORE."""
    before = BEFORE | {"positions": now.get("positions") and BEFORE["positions"]}  # None where nothing is resized
    return list(engine_options.differences(now, stored, before, FREE_TO_CHANGE).values())
