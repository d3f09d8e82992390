"""The paper's pretraining settings by name, and four for small pictures: what each costs and what to expect of it.

`python -m pretrain.config` lists them. A step of the paper's has 1024 images: processes x --batch-size-per-gpu x --accumulate.
Published numbers are k-NN and linear top-1 % on ImageNet-1K.
"""

from typing import Any

from checkpoints import flat
from pretrain.recipes import ablation_recipes
from pretrain.recipes.ablation_recipes import ABLATIONS
from pretrain.recipes.presets import (
    CIFAR10,
    CIFAR10_GPU,
    RANDOM_MASKS,
    SAMPLE,
    SAMPLE_DENSE,
    SHORT_WARM_UP,
    SWIN,
    TWO_CROPS,
    VITB,
    VITL,
    VITS,
    Recipe,
)

NAMED: dict[str, Recipe] = {
    "ibot_vits16_800": Recipe(
        "ViT-S/16, 800 epochs",
        VITS | {"epochs": 800},
        "k-NN 75.2, linear 77.9 (Table 1)",
        "193.4 h on 16 V100, 19.5 GB each (Table 19)",
        "--batch-size-per-gpu 128",
    ),
    "ibot_vits16_300": Recipe(
        "ViT-S/16, 300 epochs",
        VITS | {"epochs": 300},
        "linear 77.4 (Table 19)",
        "73.3 h on 16 V100 (Table 19)",
        "--batch-size-per-gpu 128",
    ),
    "ibot_vits16_2crops_800": Recipe(
        "ViT-S/16 without local crops, 800 epochs",
        VITS | TWO_CROPS | {"epochs": 800},
        "k-NN 72.4, linear 76.2 (Table 10)",
        "126.4 h on 16 V100, 13.1 GB each (Table 19)",
        "--batch-size-per-gpu 128",
    ),
    "ibot_vits16_2crops_300": Recipe(
        "ViT-S/16 without local crops, 300 epochs",
        VITS | TWO_CROPS | {"epochs": 300},
        "k-NN 70.3, linear 74.8 (Tables 19, 20; Table 9 has 69.1 and 74.2)",
        "47.0 h on 16 V100, 13.1 GB each (Table 19)",
        "--batch-size-per-gpu 128",
    ),
    "ibot_vits16_out1000_800": Recipe(
        "ViT-S/16 with 1000 prototypes, to be used as clusters, 800 epochs",
        VITS | {"out_dim": 1000, "patch_out_dim": 1000, "epochs": 800},
        "ACC 43.4, ARI 32.8, NMI 78.6, FMI 35.6 (Table 5: python -m probes.cluster)",
        machine="--batch-size-per-gpu 128",
    ),
    "ibot_vitb16_400": Recipe(
        "ViT-B/16, block masks, 400 epochs",
        VITB | {"epochs": 400},
        "k-NN 77.1, linear 79.5 (Table 1; Table 10 has 76.8 and 79.4)",
    ),
    "ibot_vitb16_rand_400": Recipe(
        "ViT-B/16, random masks, 400 epochs", VITB | RANDOM_MASKS | {"epochs": 400}, "k-NN 77.3, linear 79.8 (model zoo)"
    ),
    "ibot_vitb16_2crops_400": Recipe(
        "ViT-B/16 without local crops, 400 epochs", VITB | TWO_CROPS | {"epochs": 400}, "k-NN 71.2, linear 76.0 (Table 10)"
    ),
    "ibot_vitl16_250": Recipe(
        "ViT-L/16, block masks, 250 epochs (section 3.2; Table 15 has 300)",
        VITL | {"epochs": 250},
        "k-NN 78.0, linear 81.0 (Table 1)",
        machine="--accumulate 8",
    ),
    "ibot_vitl16_rand_250": Recipe(
        "ViT-L/16, random masks, 250 epochs",
        VITL | RANDOM_MASKS | {"epochs": 250},
        "k-NN 77.7, linear 81.3 (model zoo)",
        machine="--accumulate 8",
    ),
    "ibot_swint7_300": Recipe("Swin-T, window 7, 300 epochs", SWIN | {"window": 7}, "k-NN 75.3, linear 78.6 (Table 1)"),
    "ibot_swint14_300": Recipe(
        "Swin-T, window 14, 300 epochs, 40 GPUs of 26 images",
        SWIN | {"window": 14, "batch_size_per_gpu": 26},
        "k-NN 76.2, linear 79.3 (Table 1)",
        machine="--accumulate 5",
    ),
    "ibot_vits16_in22k_160": Recipe(
        "ViT-S/16 on ImageNet-22K, 160 epochs",
        VITS | {"epochs": 160},
        "k-NN 69.3, linear 76.5 (Table 15), of the student (--key student)",
        machine="--batch-size-per-gpu 128",
        data="IMAGENET22K",
    ),
    "ibot_vitb16_in22k_80": Recipe(
        "ViT-B/16 on ImageNet-22K, 80 epochs",
        VITB | SHORT_WARM_UP | {"epochs": 80},
        "k-NN 71.1, linear 79.0 (Table 15), of the student (--key student)",
        data="IMAGENET22K",
    ),
    "ibot_vitl16_in22k_50": Recipe(
        "ViT-L/16 on ImageNet-22K, 50 epochs",
        VITL | SHORT_WARM_UP | {"epochs": 50},
        "k-NN 72.9, linear 82.3 (Table 15), of the student (--key student)",
        machine="--accumulate 8",
        data="IMAGENET22K",
    ),
    "sample": Recipe(
        "the embedded sample, 7 epochs",
        SAMPLE,
        "k-NN 69 to 72, untrained 28 to 30 (docs/results.md)",
        "5 minutes on two cores",
        "",
        "sample",
    ),
    "sample_dense": Recipe(
        "the embedded sample half as large again, for dense tasks (docs/dense-transfer.md), 28 epochs",
        SAMPLE_DENSE,
        "k-NN on a part of the data 83.0 from 29.3",
        "21 minutes on two cores that did other work",
        "",
        "sample:72",
    ),
    "cifar10": Recipe(
        "CIFAR-10, 13 epochs",
        CIFAR10,
        "k-NN 50.7, untrained 34.3, raw pixels 45.8 (docs/results.md)",
        "58 minutes on two cores",
        "",
        "CIFAR10",
    ),
    "cifar10_gpu": Recipe(
        "CIFAR-10 on one GPU, 70 epochs",
        CIFAR10_GPU,
        "not measured (aimed at k-NN 80)",
        "not measured (aimed at eight minutes on one H100)",
        "",
        "CIFAR10",
    ),
}
"""All recipes by name; names of the paper's end in the number of epochs."""

SHORT = {
    "ibot_vits16": "ibot_vits16_800",
    "ibot_vitb16": "ibot_vitb16_400",
    "ibot_vitb16_rand": "ibot_vitb16_rand_400",
    "ibot_vitl16": "ibot_vitl16_250",
    "ibot_vitl16_rand": "ibot_vitl16_rand_250",
    "ibot_swint7": "ibot_swint7_300",
    "ibot_swint14": "ibot_swint14_300",
}
"""Other names of the models that were published, as `checkpoints/zoo.json` calls them."""

RECIPES: dict[str, dict[str, Any]] = {
    **{name: recipe.settings for name, recipe in NAMED.items()},
    **{short: NAMED[name].settings for short, name in SHORT.items()},
    **{name: recipe.settings for name, recipe in ABLATIONS.items()},
    **{short: ABLATIONS[name].settings for short, name in ablation_recipes.SHORT.items()},
}

CHOICE = f"{', '.join([*NAMED, *SHORT, *ablation_recipes.SHORT])}, or an ablation that python -m pretrain.config lists"
"""For a message."""


def as_flag(name: str, value: Any) -> str:
    """A value as it is typed."""
    values = value if isinstance(value, tuple) else (value,)
    words = (str(one).lower() if isinstance(one, bool) else str(one) for one in values)
    return f"{flat.flag(name)} {' '.join(words)}"


def described(name: str) -> str:
    """A recipe in a few lines: what, command, cost, what to expect."""
    shorts = SHORT | ablation_recipes.SHORT
    full = shorts.get(name, name)
    recipe, also = (NAMED | ABLATIONS)[full], [short for short, long in shorts.items() if long == full]
    command = " ".join(word for word in ("tools/pretrain.sh --data", recipe.data, "--recipe", full, recipe.machine) if word)
    where = " (eight GPUs)" if recipe.machine else ""
    return (
        f"{full}{f' (also {also[0]})' if also else ''}: {recipe.what}\n"
        f"  command   {command}{where}\n  cost      {recipe.cost}\n  expected  {recipe.expected}\n"
    )
