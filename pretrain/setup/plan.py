"""The plan of a run: what its options mean, derived once. What comes after reads values here and derives nothing again.

What the images decide is added to it in `pretrain/setup/data.py`: the steps of an epoch, and the mean and standard deviation of
images that have not three channels.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from checkpoints.architecture import Architecture, shape_of
from checkpoints.cli import UserError
from pretrain.batches import augment, masking
from pretrain.batches.feeding import default_workers
from pretrain.method.objective import LossWeights
from pretrain.method.schedule import Ramp, Schedule
from pretrain.options.groups import Config, CropOptions, ModelOptions
from pretrain.setup import validate


class HeadPlan(NamedTuple):
    """Student and teacher have different ones where the head is semi-shared (paper App. E)."""

    out_dim: int
    patch_out_dim: int
    hidden_dim: int
    bottleneck_dim: int
    shared: bool
    """[CLS] and patches have the same prototypes."""
    norm_last_layer: bool
    init: str
    separate_layers: int
    """Layers before the prototypes that [CLS] and patches have apart."""
    codes: bool
    """Patches are classified by one linear layer (BEiT)."""


class Plan(NamedTuple):
    """A run as its options describe it. `options` has what needs no derivation."""

    options: Config
    folder: Path
    architecture: Architecture
    views: augment.MultiCrop
    masks: masking.MaskSettings
    grid: tuple[int, int]
    """Tokens of a global crop: rows, columns."""
    local_grid: tuple[int, int] | None
    """Tokens of a local crop, where these are masked too."""
    student_head: HeadPlan
    teacher_head: HeadPlan
    loss_weights: LossWeights
    batch_size: int
    """Images per process and step: of all micro-batches together."""
    some_unused: bool
    """Whether there are steps in which some parameters have no gradient: the mask token, or the layers of patches."""
    workers: int
    """Processes that prepare batches."""

    def schedule(self, steps_per_epoch: int, processes: int) -> Schedule:
        """Everything that moves, for images that make so many steps an epoch."""
        steps, teacher = self.options.optimisation, self.options.teacher
        total = steps.steps if steps.steps is not None else steps.epochs * steps_per_epoch
        warm = teacher.warmup_teacher_temp_epochs
        return Schedule(
            total_steps=total,
            steps_per_epoch=steps_per_epoch,
            lr=steps.lr * self.batch_size * processes / 256,  # linear scaling rule, as the original's
            min_lr=steps.min_lr,
            warmup_steps=min(steps.warmup_epochs * steps_per_epoch, total),
            weight_decay=steps.weight_decay,
            weight_decay_end=steps.weight_decay_end,
            momentum=teacher.momentum_teacher,
            cls_temperature=Ramp(teacher.warmup_teacher_temp, teacher.teacher_temp, warm),
            patch_temperature=Ramp(teacher.warmup_teacher_patch_temp, teacher.teacher_patch_temp, warm),
            freeze_last_layer=steps.freeze_last_layer,
            masking_from=self.options.masks.pred_start_epoch,
        )

    def compiles(self, device: torch.device) -> bool:
        """Whether blocks are compiled there."""
        machine = self.options.machine
        return machine.compile == "on" or (machine.compile == "auto" and device.type != "cpu" and not machine.shard)

    def residual(self, precision: str, device: torch.device) -> torch.dtype | None:
        """The type of the blocks' sums under this precision; None: as the embedding gives them."""
        wanted, ours = self.options.machine.residual, self.architecture.kind != "timm"
        low = wanted == "bf16" or (wanted == "auto" and device.type == "cuda" and ours)
        return torch.bfloat16 if low and precision == "bf16" else None

    def refuses_late(self, device: torch.device) -> bool:
        """Whether the device itself can refuse a step, so that none waits for its verdict (on a CPU nothing is late)."""
        return device.type == "cuda" and self.options.optimisation.optimizer == "adamw" and not self.options.machine.shard


def plan_of(options: Config) -> Plan:
    """The plan of these options. Raises UserError for what no data could make sense of, before anything is made."""
    validate.check(options)
    loss, steps = options.loss, options.optimisation
    architecture = architecture_of(options.model, options.crops, options.images.channels, options.images.value_range)
    grid = _grid(options.crops.global_crops_size, architecture)
    masks, local_grid = _masks(options, architecture, grid)
    return Plan(
        options=options,
        folder=options.run.out or Path("runs") / (options.run.recipe or options.model.arch),
        architecture=architecture,
        views=_views(options.crops),
        masks=masks,
        grid=grid,
        local_grid=local_grid,
        student_head=_head(options, shared=options.head.shared_head),
        teacher_head=_head(options, shared=options.head.shared_head or options.head.shared_head_teacher),
        loss_weights=LossWeights(loss.lambda_cls, loss.lambda_patch, steps.clip_grad),
        batch_size=steps.batch_size_per_gpu * steps.accumulate,
        some_unused=_some_unused(options),
        workers=default_workers() if options.machine.workers is None else options.machine.workers,
    )


def architecture_of(
    model: ModelOptions, crops: CropOptions, channels: int = 3, value_range: tuple[float, ...] = ()
) -> Architecture:
    """The backbone that these options ask for. Raises UserError for impossible sizes."""
    architecture = shape_of(
        model.arch,
        model.patch_size,
        crops.global_crops_size,
        channels=channels,
        depth=model.depth,
        width=model.width,
        init=model.init,
        window=model.window,
    )
    if crops.local_crops_number and crops.local_crops_size % architecture.patch_size:
        raise UserError(f"--local-crops-size {crops.local_crops_size} is not divisible by --patch-size {architecture.patch_size}")
    return architecture._replace(value_range=value_range)


def _grid(size: int, architecture: Architecture) -> tuple[int, int]:
    side = size // architecture.stride
    return side, side


def _masks(
    options: Config, architecture: Architecture, grid: tuple[int, int]
) -> tuple[masking.MaskSettings, tuple[int, int] | None]:
    """Which masks to draw, and the grid of local crops where these have some. Raises UserError where a grid has no room."""
    chosen = options.masks
    if not chosen.use_masked_im_modeling:
        return masking.MaskSettings((0.0,), (0.0,), "rand"), None
    settings = masking.MaskSettings(chosen.pred_ratio, chosen.pred_ratio_var, chosen.pred_shape)
    masking.check(settings, *grid)
    if chosen.masked_crops != "all":
        return settings, None
    local_grid = _grid(options.crops.local_crops_size, architecture)
    masking.check(settings, *local_grid)
    return settings, local_grid


def _views(crops: CropOptions) -> augment.MultiCrop:
    """The crops of an image. Raises UserError for shares of it that are none."""
    for flag, (least, most) in (
        ("--global-crops-scale", crops.global_crops_scale),
        ("--local-crops-scale", crops.local_crops_scale),
    ):
        if not 0 < least <= most <= 1:
            raise UserError(f"{flag} {least} {most}: give two shares of the image, 0 < least <= most <= 1")
    kinds = [0] + [1] * (crops.global_crops_number - 1)  # the first global crop has a blur and a solarisation of its own
    globals_ = tuple(
        augment.View(crops.global_crops_size, crops.global_crops_scale, crops.blur[kind], crops.solarize[kind]) for kind in kinds
    )
    local = augment.View(crops.local_crops_size, crops.local_crops_scale, crops.blur[2], crops.solarize[2])
    return augment.MultiCrop(globals_, local, crops.local_crops_number)


def _head(options: Config, *, shared: bool) -> HeadPlan:
    head = options.head
    return HeadPlan(
        out_dim=head.out_dim,
        patch_out_dim=head.patch_out_dim,
        hidden_dim=head.head_hidden_dim,
        bottleneck_dim=head.head_bottleneck_dim,
        shared=shared,
        norm_last_layer=head.norm_last_layer,
        init=options.model.init,
        separate_layers=0 if shared else head.separate_layers,
        codes=options.loss.targets == "codes",
    )


def _some_unused(options: Config) -> bool:
    """Without masks the mask token has no gradient; dense targets leave layers of patches out."""
    masks = options.masks
    return masks.pred_start_epoch > 0 or not masks.use_masked_im_modeling or options.loss.targets.startswith("dense")
