"""The paper's ways to fine-tune, as values: what is common, what each size of backbone has, what each data set has.

Learning rates are what the optimizer is given. Where the original's script scales its flag by (images a step) / 512, the
product at the original's batch stands here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from checkpoints import flat

DATA_SETS = ("cifar10", "cifar100", "inat18", "inat19", "flowers", "cars")


class Recipe(NamedTuple):
    """Values of `probes.finetune.options.FinetuneOptions` by name."""

    about: str
    """Purpose of the recipe, and published results."""
    source: str
    """The paper's tables whose protocol it is."""
    table: str
    """The name of the first of them in a result's record."""
    values: Mapping[str, Any]
    of_size: Mapping[str, Mapping[str, Any]] = {}
    of_data: Mapping[str, Mapping[str, Mapping[str, Any]]] = {}
    """By data set, then by size; `all` is every size."""


STRONG: dict[str, Any] = {
    "input_size": 224,
    "randaugment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "weight_decay": 0.05,
}
"""Augmentation and decay that all of the paper's fine-tuning has (App. C)."""

DEIT: dict[str, Any] = STRONG | {
    "min_lr": 1e-5,
    "warmup_lr": 1e-6,
    "warmup_epochs": 5,
    "lr_moves": "deit",
    "decay_embeddings": True,
    "layer_decay": 1.0,
    "drop_path": 0.1,
    "repeats": 3,
    "head_scale": 1.0,
    "interpolation": "bicubic",
}
"""DeiT's recipe as the original runs it. Its least learning rate is 1e-5: where the rate itself is that, it is flat."""

EASY = {"all": {"epochs": 1000, "lr": (1.125e-5,), "erasing": 0.25}}

RECIPES: dict[str, Recipe] = {
    "small": Recipe(
        "Small pictures on two cores, our own values (docs/finetuning.md): the embedded sample, CIFAR-10 at 24 to 32 pixels.",
        "none: found by experiment",
        "none",
        {
            "lr": (1e-3,),
            "batch_size": 64,
            "epochs": 20,
            "warmup_epochs": 2,
            "layer_decay": 1.0,
            "drop_path": 0.0,
            "crop_scale": (0.4, 1.0),
            "smoothing": 0.1,
            "weight_decay": 0.05,
        },
    ),
    "imagenet": Recipe(
        "ImageNet-1K with layer-wise decay, as BEiT: 82.3 (ViT-S/16), 84.0 (ViT-B/16), 84.8 (ViT-L/16); after ImageNet-22K 84.4 "
        "(ViT-B/16), 86.6 (ViT-L/16), 87.8 (at 512 pixels; for 384 and 512 no values were published).",
        "Tables 2, 3 and 11 (recipes 4 and 9), App. C",
        "T2_finetune_in1k",
        STRONG
        | {
            "lr": (8e-4, 9e-4, 1e-3, 2e-3),
            "min_lr": 1e-6,
            "batch_size": 1024,
            "head_scale": 0.001,
            "interpolation": "bilinear",
            "whole_from": 384,
        },
        of_size={
            "small": {"epochs": 200, "layer_decay": 0.75, "drop_path": 0.1, "warmup_epochs": 20},
            "base": {"epochs": 100, "layer_decay": 0.65, "drop_path": 0.2, "warmup_epochs": 20},
            "large": {"epochs": 50, "layer_decay": 0.75, "drop_path": 0.4, "warmup_epochs": 5},
        },
    ),
    "semi": Recipe(
        "1 % or 10 % of ImageNet's labels, end to end. ViT-S/16, 1 % and 10 %: 61.9 and 75.1 with the first layer of the "
        "projection head kept, 55.0 and 74.0 without. The rate is 5e-6 x 1024 / 512, which is the least: flat after warm-up.",
        "Tables 4 and 12, App. C",
        "T4_semi_supervised",
        DEIT | {"lr": (1e-5,), "batch_size": 1024, "epochs": 1000, "percent": 1.0, "keep_head_layer": True},
    ),
    "transfer": Recipe(
        "Smaller data sets by DeiT's recipe; rates are the original's flag x 768 / 512. ViT-S/16 and ViT-B/16: CIFAR-10 99.1 and "
        "99.2, CIFAR-100 90.7 and 92.2, iNaturalist 2018 73.7 and 74.6, 2019 78.5 and 79.6, Flowers 98.6 and 98.9, Cars 94.0 "
        "and 94.3.",
        "Table 7",
        "T7a_transfer_vits",
        {name: value for name, value in DEIT.items() if name != "erasing"} | {"batch_size": 768},
        of_data={
            "cifar10": EASY,
            "cifar100": EASY,
            "flowers": EASY,
            "cars": {"all": {"epochs": 1000, "lr": (1.125e-4,), "erasing": 0.25}},
            "inat18": {
                "all": {"epochs": 360, "erasing": 0.1, "lr": (1.125e-5,)},
                "small": {"lr": (7.5e-5,)},
            },
            "inat19": {
                "all": {"epochs": 360, "erasing": 0.1, "lr": (1.125e-5,)},
                "small": {"lr": (3.75e-5,)},
            },
        },
    ),
}


def size_of(width: int) -> str:
    """The paper's model size for a backbone of this width: ViT-S/16 has 384, ViT-B/16 768, ViT-L/16 1024."""
    return "small" if width < 768 else "base" if width < 1024 else "large"


def values(recipe: str, width: int, data_set: str | None = None) -> dict[str, Any]:
    """Everything that a recipe has for a backbone of this width, and for this data set."""
    found, size = RECIPES[recipe], size_of(width)
    of_data = found.of_data.get(data_set or "", {})
    return {**found.values, **found.of_size.get(size, {}), **of_data.get("all", {}), **of_data.get(size, {})}


def table_of(recipe: str, width: int) -> str:
    """The paper's table that a result of this recipe stands beside."""
    return "T7b_transfer_vitb" if recipe == "transfer" and size_of(width) != "small" else RECIPES[recipe].table


def described(recipe: str) -> str:
    """A recipe for --help: what it is, its source, and what depends on size or data set."""
    found = RECIPES[recipe]
    lines = [found.about, f"Source of the values below: {found.source}."]
    lines += [f"{size}: {_flags(given)}" for size, given in found.of_size.items()]
    for data_set, sizes in found.of_data.items():
        lines += [f"{data_set}{'' if size == 'all' else ', ' + size}: {_flags(given)}" for size, given in sizes.items()]
    if found.of_size or found.of_data:
        lines.append("(small: width 384 as ViT-S/16, and less; base: 768; large: 1024)")
    return "\n\n".join(lines)


def _flags(given: Mapping[str, Any]) -> str:
    """Values as the flags that would give them."""
    shown = {
        name: " ".join(f"{one:g}" for one in value) if isinstance(value, tuple) else f"{value:g}" for name, value in given.items()
    }
    return " ".join(f"{flat.flag(name)} {value}" for name, value in shown.items())
