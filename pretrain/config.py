"""The options of a run and their defaults (the original script's). `python -m pretrain.config` lists the recipes."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from checkpoints import architecture as shapes
from checkpoints import terminal
from checkpoints.cli import FALSE_WORDS, TRUE_WORDS, UserError, at_least, parse, run_command
from pretrain.batches import augment, masking
from pretrain.engine import options as engine_options
from pretrain.method.schedule import Ramp, Schedule
from pretrain.recipes import ablation_recipes, registry
from pretrain.recipes.registry import RECIPES


@dataclass(frozen=True)
class Config:
    """Pretrain a ViT or a Swin by iBOT.

    Nothing given: the embedded sample with recipe `sample`. Only --data given: recipe `ibot_vits16`. With --arch and no
    recipe, what is not given has the original script's default, so that its published command lines mean what they meant.
    A run that exists in --out is continued.
    """

    data: str = "sample"
    """Images: a folder (class sub-folders or flat), a text file of paths, .tar shards, .parquet files, hf:NAME,
    torchvision:NAME, `sample`, or `sample:PIXELS` (the same pictures drawn at another size). A part named train is used if
    there is one. [original: data_path]"""
    channels: int = 3
    """Channels of an image; other than 3 they are read from .tif or .npy, and normalised by the data's own mean and spread."""
    value_range: tuple[float, ...] = ()
    """LOW HIGH: the values that become 0 and 1 in images of more than 8 bit (default: whole numbers 0 to 65535, others 0 to 1,
    refused where the values lie outside). Kept in the checkpoint, so that probes use the same."""
    max_bad: int | None = None
    """Images that may turn out unusable before the run stops (default: 0.1 % of the data, at least 20)."""
    out: Path | None = None
    """The run's folder (default: runs/RECIPE). [original: output_dir]"""
    replay: Path | None = None
    """Do nothing but repeat a step that was refused (a run's refused-*.pt) and show where it goes wrong. What the run's
    --tokenizer named must be named again: a file may not open another."""
    allow_config_change: bool = False
    """Continue a run although options have changed (they are listed); without this it is refused."""
    allow_foreign_files: bool = False
    """Begin a run in an --out that holds other files than a run's; without this it is refused. None of them is touched, unless
    a file of a run has the same name."""
    recipe: str | None = None
    """Named settings that the other flags then change: `python -m pretrain.config` lists them."""
    seed: int = 0
    """Of weights, order, crops and masks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16 and fp16 are autocast of the two forwards, fp16 with a scaled loss; auto takes bf16 where the device is fast at it,
    fp16 on GPUs without bf16. [original: use_fp16]"""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where JPEGs are decoded; workers decode whatever the GPU cannot."""
    workers: int | None = None
    """Processes that prepare batches (default: one a core up to 10, one on two cores). [original: num_workers]"""

    arch: str = "vit_small"
    """vit_tiny, vit_small, vit_base or vit_large; swin_tiny, swin_small, swin_base or swin_large; or a ViT of timm with a class
    token by its name there (vit_base_patch14_reg4_dinov2)."""
    patch_size: int = 16
    """Pixels of a patch's side (Swin: 4; timm's names carry their own)."""
    window: int = 7
    """Swin: patches of a window's side (7 or 14). [original: window_size]"""
    width: int | None = None
    """Embedding width in place of the architecture's, a multiple of 64."""
    depth: int | None = None
    """Number of blocks in place of the architecture's."""
    init: Literal["original", "fan_in", "whiten"] = "original"
    """How weights begin: linear layers with standard deviation 0.02, or one over the root of their inputs (for narrow
    networks), or that with patches that are whitened (for short trainings on small pictures)."""
    init_from: Path | None = None
    """Begin with this checkpoint: anything that --ckpt of the probes takes. A full one brings backbones, heads, centres and the
    optimizer's moments, a backbone alone begins with fresh heads."""
    init_heads: bool = True
    """With --init-from: false leaves heads, centres and moments of a full checkpoint out."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the blocks (torch.compile); auto on a GPU. Where that fails the run says so and goes on without."""
    checkpoint_activations: bool = False
    """Compute blocks twice to keep less: for large networks on small GPUs."""
    shard: bool = False
    """Spread weights, gradients and optimizer states over the processes (FSDP2): for networks that do not fit into one GPU."""
    drop_path: float = 0.1
    """Stochastic depth of the student's last block, rising from 0 at the first."""

    out_dim: int = 8192
    """Prototypes for [CLS]."""
    patch_out_dim: int = 8192
    """Prototypes for patches; with a shared head --out-dim counts."""
    shared_head: bool = False
    """Student: the same prototypes for [CLS] and patches. The paper's setting is true."""
    shared_head_teacher: bool = True
    """Teacher: likewise. Student false and teacher true is the paper's semi-shared head (App. E)."""
    head_hidden_dim: int = 2048
    """Width of the head's two hidden layers."""
    head_bottleneck_dim: int = 256
    """Width of the head before its prototypes."""
    norm_last_layer: bool = True
    """Keep every prototype's length at one."""

    global_crops_number: int = 2
    """Crops seen by student and teacher."""
    global_crops_size: int = 224
    """Pixels of a global crop's side."""
    global_crops_scale: tuple[float, float] = (0.14, 1.0)
    """Share of the image that a global crop covers, least and most."""
    local_crops_number: int = 0
    """Crops seen by the student only."""
    local_crops_size: int = 96
    """Pixels of a local crop's side."""
    local_crops_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the image that a local crop covers, least and most."""
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur: first global, other globals, locals."""
    solarize: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Probability of solarisation: first global, other globals, locals."""

    use_masked_im_modeling: bool = True
    """False: no masks and no patch loss (DINO)."""
    pred_ratio: tuple[float, ...] = (0.3,)
    """Shares of patches to mask; each crop draws one of them."""
    pred_ratio_var: tuple[float, ...] = (0.0,)
    """How far each share moves up or down."""
    pred_shape: Literal["block", "rand"] = "block"
    """Masks as rectangles or anywhere."""
    pred_start_epoch: int = 0
    """First epoch with masks."""
    masked_crops: Literal["global", "one", "all"] = "global"
    """Which crops are masked: the global ones, the first of them, or the local ones as well (App. B, Fig. 8)."""
    targets: Literal["online", "hard", "codes", "frozen", "dense_position", "dense_feature"] = "online"
    """What patches learn: the teacher's soft answer (iBOT), its first choice, an offline tokenizer's codes (BEiT), a fixed
    network's answer, or, unmasked, what the teacher says of the matching patch of the other crop (docs/ablations.md)."""
    tokenizer: str | None = None
    """With --targets codes: dalle, dalle:FILE, kmeans:FILE or colour (docs/tokenizers.md); frozen: a full checkpoint."""
    centre_patches: bool = True
    """False: targets of patches are sharpened but not centred (Table 18)."""
    patch_centre_momentum: float = 0.9
    """Of the patches' centre (App. E)."""
    separate_layers: int = 0
    """Heads that are not shared: how many of the three layers before the prototypes [CLS] and patches have apart (Table 17)."""
    lambda_cls: float = 1.0
    """Weight of the [CLS] loss. [original: lambda1]"""
    lambda_patch: float = 1.0
    """Weight of the patch loss. [original: lambda2]"""

    momentum_teacher: float = 0.996
    """Teacher momentum at the start; it ends at 1 (cosine)."""
    warmup_teacher_temp: float = 0.04
    """Teacher temperature for [CLS] at the start."""
    teacher_temp: float = 0.04
    """Teacher temperature for [CLS] after its warm-up."""
    warmup_teacher_patch_temp: float = 0.04
    """Teacher temperature for patches at the start."""
    teacher_patch_temp: float = 0.07
    """Teacher temperature for patches after its warm-up."""
    warmup_teacher_temp_epochs: int = 30
    """Epochs over which both temperatures rise."""

    epochs: int = 100
    """Passes over the data."""
    steps: int | None = None
    """Optimisation steps of the whole run, in place of --epochs; schedules end there."""
    batch_size_per_gpu: int = 128
    """Images per process and step."""
    accumulate: int = 1
    """Batches of each process that make one step: as one batch so many times as large, in the memory of one."""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """How weights move."""
    lr: float = 5e-4
    """Peak learning rate for 256 images a step; it is scaled by (images a step) / 256."""
    min_lr: float = 1e-6
    """Learning rate at the end."""
    warmup_epochs: int = 10
    """Epochs over which the learning rate rises from 0."""
    weight_decay: float = 0.04
    """At the start."""
    weight_decay_end: float = 0.4
    """At the end (cosine)."""
    clip_grad: float = 3.0
    """Largest length of each tensor's gradient; 0 for no limit."""
    freeze_last_layer: int = 1
    """Epochs during which the prototypes stay as they are."""

    knn_data: str | None = None
    """Labelled images for the k-NN curve (default: the run's own where they have labels), like --data."""
    track: Literal["none", "wandb", "mlflow"] = "none"
    """Send the log also there; the package must be installed and set up."""
    report: bool = True
    """Write a page about the run into its folder at the end (report.html)."""
    serve: int | None = None
    """Show the page of the run while it trains, on this machine's own address only, at this port (0 for any free one; without a
    number 8000)."""
    knn_every: int = 10
    """Epochs between k-NN measurements on labelled data; 0 for none."""
    save_minutes: float = 10.0
    """Minutes between checkpoints; one more at every epoch's end and at the run's end."""
    keep_every: int | None = None
    """Epochs between checkpoints that stay (epoch-0040.pt, for --ckpt and --init-from); none is ever removed or replaced.
    [original: saveckp_freq]"""
    log_every: int = 20
    """Steps between log lines."""


PORT = 8000
"""Of a bare --serve."""

ALIASES = {
    "--data-path": "--data",
    "--output-dir": "--out",
    "--num-workers": "--workers",
    "--lambda1": "--lambda-cls",
    "--lambda2": "--lambda-patch",
    "--window-size": "--window",
}
"""The original's names for flags of ours; its other flags are in `checkpoints/original.py`."""
DEIT = ("deit_tiny", "deit_small", "deit_base")
"""What the original calls ViTs, too."""


def read_command_line(arguments: Sequence[str]) -> Config:
    """Flags -> options: first the recipe's values, then what was given. Raises UserError for an unknown recipe."""
    words = _with_port(_as_ours(list(arguments)))
    recipe = _recipe(words)
    if recipe is not None and recipe not in RECIPES:
        raise UserError(f"unknown --recipe {recipe}: choose from {registry.CHOICE}")
    default = Config(recipe=recipe, **RECIPES[recipe]) if recipe else Config()
    return parse(Config, words, default=default, aliases=ALIASES, prog="python -m pretrain.train")


def _recipe(words: Sequence[str]) -> str | None:
    """The recipe that was asked for, or the one that goes without saying."""
    given: dict[str, str] = {}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        name = ALIASES.get(name.replace("_", "-"), name)
        given[name] = value if equals else following
    if "--recipe" in given:
        return given["--recipe"]
    if "--arch" in given:
        return None
    return "sample" if given.get("--data", "sample").partition(":")[0] == "sample" else "ibot_vits16"


def _as_ours(words: list[str]) -> list[str]:
    """The original's --use_fp16 as --precision (false: fp32, true: whatever is fast and safe here), and DeiT's names as ViT's."""
    with_value = ("--use_fp16=", "--use-fp16=")
    split = [part for word in words for part in (word.split("=", 1) if word.startswith(with_value) else [word])]
    found: list[str] = []
    for before, word, after in zip(["", *split], split, [*split[1:], "--"], strict=False):
        if word in ("--use_fp16", "--use-fp16"):
            found += ["--precision", "fp32" if after.lower() in FALSE_WORDS else "auto"]
        elif before in ("--use_fp16", "--use-fp16") and word.lower() in TRUE_WORDS | FALSE_WORDS:
            continue
        else:
            named = word.removeprefix("--arch=")
            deit = named in DEIT and (before == "--arch" or named != word)
            found.append(word.replace("deit", "vit") if deit else word)
    return found


def _with_port(words: list[str]) -> list[str]:
    """A bare --serve with its usual port."""
    if "--serve" in words:
        at = words.index("--serve") + 1
        if at == len(words) or words[at].startswith("--"):
            words.insert(at, str(PORT))
    return words


def shape(config: Config) -> shapes.Architecture:
    """The backbone that these options ask for. Raises UserError for impossible sizes."""
    shape = shapes.shape_of(
        config.arch,
        config.patch_size,
        config.global_crops_size,
        channels=config.channels,
        depth=config.depth,
        width=config.width,
        init=config.init,
        window=config.window,
    )
    if config.local_crops_number and config.local_crops_size % shape.patch_size:
        raise UserError(f"--local-crops-size {config.local_crops_size} is not divisible by --patch-size {shape.patch_size}")
    return shape._replace(value_range=config.value_range)


def masks(config: Config) -> masking.MaskSettings:
    """Which masks to draw. Raises UserError where the grid has no room for them."""
    if not config.use_masked_im_modeling:
        return masking.MaskSettings((0.0,), (0.0,), "rand")
    settings = masks_drawn(config)
    side = config.global_crops_size // shape(config).stride
    masking.check(settings, side, side)
    return settings


def local_grid(config: Config) -> tuple[int, int] | None:
    """Patches of a local crop, where these are masked. Raises UserError where they have no room for masks."""
    if config.masked_crops != "all" or not config.use_masked_im_modeling:
        return None
    side = config.local_crops_size // shape(config).stride
    masking.check(masks_drawn(config), side, side)
    return side, side


def masks_drawn(config: Config) -> masking.MaskSettings:
    """How much of a crop is masked."""
    return masking.MaskSettings(config.pred_ratio, config.pred_ratio_var, config.pred_shape)


def views(config: Config) -> augment.MultiCrop:
    """The crops of an image."""
    for name in ("global_crops_scale", "local_crops_scale"):
        least, most = getattr(config, name)
        if not 0 < least <= most <= 1:
            raise UserError(f"--{name.replace('_', '-')} {least} {most}: give two shares of the image, 0 < least <= most <= 1")
    kinds = [0] + [1] * (config.global_crops_number - 1)
    globals_ = tuple(
        augment.View(config.global_crops_size, config.global_crops_scale, config.blur[kind], config.solarize[kind])
        for kind in kinds
    )
    local = augment.View(config.local_crops_size, config.local_crops_scale, config.blur[2], config.solarize[2])
    return augment.MultiCrop(globals_, local, config.local_crops_number)


def check(config: Config) -> None:
    """Raise UserError for settings that no data could make sense of."""
    if config.global_crops_number + config.local_crops_number < 2:
        raise UserError("the [CLS] loss compares two views: ask for at least 2 crops in all")
    if config.global_crops_number < 1:
        raise UserError("--global-crops-number must be 1 or more: the teacher sees global crops only")
    _check_targets(config)
    if not config.lambda_cls and not (config.lambda_patch and config.use_masked_im_modeling):
        raise UserError("both losses have the weight 0, so that nothing is learnt: give --lambda-cls or --lambda-patch")
    if config.shared_head_teacher and not config.shared_head and config.out_dim != config.patch_out_dim:
        raise UserError(
            f"a teacher with one set of prototypes needs --patch-out-dim {config.patch_out_dim} equal to --out-dim "
            f"{config.out_dim}; or give --shared-head true, or --shared-head-teacher false"
        )
    at_least(0, config, "max_bad")
    at_least(1, config, "batch_size_per_gpu", "accumulate", "epochs", "out_dim", "log_every", "channels", "steps", "keep_every")
    _check_range(config.value_range)
    if not 0 <= config.separate_layers <= 3:
        raise UserError("--separate-layers must be from 0 to 3")
    if not 0 <= config.patch_centre_momentum < 1:
        raise UserError("--patch-centre-momentum must be 0 or more and less than 1")
    if config.shard:
        _check_shard(config)
    shape(config)
    masks(config)
    local_grid(config)
    views(config)


def _check_range(value_range: tuple[float, ...]) -> None:
    if value_range and (len(value_range) != 2 or not all(map(math.isfinite, value_range)) or value_range[0] >= value_range[1]):
        raise UserError(f"--value-range {' '.join(f'{one:g}' for one in value_range)}: give the least and the largest value")


def _check_targets(config: Config) -> None:
    """Raise UserError for targets that do not go together with the rest."""
    needs = config.targets in ("codes", "frozen")
    if needs != (config.tokenizer is not None):
        what = "dalle, dalle:FILE, kmeans:FILE or colour" if config.targets == "codes" else "a full checkpoint"
        cure = f"give it: {what}" if needs else "give --targets codes or --targets frozen, or leave it out"
        raise UserError(f"--targets {config.targets} {'needs' if needs else 'has no'} --tokenizer: {cure}")
    if needs and (config.shared_head or config.shared_head_teacher):
        raise UserError(
            f"--targets {config.targets} has prototypes of its own: give --shared-head false --shared-head-teacher false"
        )
    if config.separate_layers and config.shared_head:
        raise UserError("--separate-layers is for heads that are not shared: give --shared-head false")
    if config.targets.startswith("dense") and config.global_crops_number < 2:
        raise UserError(f"--targets {config.targets} compares two global crops: give --global-crops-number 2")
    changed = [f"--targets {config.targets}"] * (config.targets != "online")
    changed += ["--masked-crops"] * (config.masked_crops != "global")
    changed += ["--centre-patches false"] * (not config.centre_patches and config.targets != "hard")
    if len(changed) > 1:
        raise UserError(f"{' and '.join(changed)} do not go together: give one of them")
    if not config.use_masked_im_modeling and changed:
        raise UserError(f"without masked image modelling {changed[0]} says nothing: leave one of them out")
    if config.masked_crops == "all" and not config.local_crops_number:
        raise UserError("--masked-crops all is about local crops: give --local-crops-number")


def _check_shard(config: Config) -> None:
    for name, wrong, cure in (
        ("precision", "fp16", "give --precision bf16 or fp32"),
        ("optimizer", "lars", "give --optimizer adamw or sgd"),
        ("compile", "on", "leave --compile out"),
    ):
        if getattr(config, name) == wrong:
            raise UserError(f"--shard does not go with --{name} {wrong}: {cure}")


def schedule(config: Config, steps_per_epoch: int, world_size: int) -> Schedule:
    """What moves during a run of this size."""
    total = config.steps if config.steps is not None else config.epochs * steps_per_epoch
    warm = config.warmup_teacher_temp_epochs
    return Schedule(
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
        lr=config.lr * config.batch_size_per_gpu * config.accumulate * world_size / 256,
        min_lr=config.min_lr,
        warmup_steps=min(config.warmup_epochs * steps_per_epoch, total),
        weight_decay=config.weight_decay,
        weight_decay_end=config.weight_decay_end,
        momentum=config.momentum_teacher,
        cls_temperature=Ramp(config.warmup_teacher_temp, config.teacher_temp, warm),
        patch_temperature=Ramp(config.warmup_teacher_patch_temp, config.teacher_patch_temp, warm),
        freeze_last_layer=config.freeze_last_layer,
        masking_from=config.pred_start_epoch,
    )


FREE_TO_CHANGE = frozenset(
    "out replay recipe workers decode max_bad knn_data knn_every track report serve save_minutes keep_every log_every "
    "allow_config_change allow_foreign_files".split()
)
"""Options that a continued run may change: none of them touches its numbers."""
NEVER_TO_CHANGE = frozenset(
    "arch patch_size window width depth channels global_crops_size out_dim patch_out_dim shared_head shared_head_teacher "
    "head_hidden_dim head_bottleneck_dim norm_last_layer targets separate_layers".split()
)
"""Options that a continued run cannot change even with --allow-config-change: they decide which weights there are."""


def differences(config: Config, stored: Mapping[str, Any]) -> dict[str, str]:
    """What a run's stored options have otherwise: option -> words. An option that is newer than the run was at its default."""
    return engine_options.differences(
        engine_options.as_values(config), stored, engine_options.as_values(Config()), FREE_TO_CHANGE
    )


@dataclass(frozen=True)
class Wanted:
    """List the recipes: command, published cost, numbers to expect."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Only these, with all their values."""


def main(arguments: Sequence[str]) -> None:
    names = parse(Wanted, arguments, prog="python -m pretrain.config").names
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise UserError(f"there is no recipe {unknown[0]}: choose from {registry.CHOICE}")
    for name in names or registry.NAMED:
        terminal.page(registry.described(name))
        if names:
            terminal.page("".join(f"  {registry.as_flag(key, value)}\n" for key, value in RECIPES[name].items()))
    if not names:
        terminal.page(ablation_recipes.listed())


if __name__ == "__main__":
    sys.exit(run_command(main))
