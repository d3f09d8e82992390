"""Options that do not go together: refused before any work; those without effect: said once the run begins."""

import math

from checkpoints.architecture import SIZES
from checkpoints.cli import UserError, at_least
from pretrain.engine import distributed
from pretrain.options.groups import Config, HeadOptions, ModelOptions


def check(config: Config) -> None:
    """Raise UserError for settings that no data could make sense of. Sizes are checked where the plan derives them."""
    crops, masks, head, loss, steps = config.crops, config.masks, config.head, config.loss, config.optimisation
    if crops.global_crops_number + crops.local_crops_number < 2:
        raise UserError("the [CLS] loss compares two views: ask for at least 2 crops in all")
    if crops.global_crops_number < 1:
        raise UserError("--global-crops-number must be 1 or more: the teacher sees global crops only")
    _check_targets(config)
    _check_together(config)
    if not loss.lambda_cls and not (loss.lambda_patch and masks.use_masked_im_modeling):
        raise UserError("both losses have the weight 0, so that nothing is learnt: give --lambda-cls or --lambda-patch")
    if head.shared_head_teacher and not head.shared_head and head.out_dim != head.patch_out_dim:
        raise UserError(
            f"a teacher with one set of prototypes needs --patch-out-dim {head.patch_out_dim} equal to --out-dim "
            f"{head.out_dim}; or give --shared-head true, or --shared-head-teacher false"
        )
    at_least(0, config.images, "max_bad")
    at_least(1, steps, "batch_size_per_gpu", "accumulate", "epochs", "steps")
    at_least(1, head, "out_dim")
    at_least(1, config.images, "channels")
    at_least(1, config.run, "log_every", "keep_every")
    _check_range(config.images.value_range)
    if not 0 <= head.separate_layers <= 3:
        raise UserError("--separate-layers must be from 0 to 3")
    if not 0 <= loss.patch_centre_momentum < 1:
        raise UserError("--patch-centre-momentum must be 0 or more and less than 1")
    _check_residual(config)
    if config.machine.shard:
        _check_shard(config)


def _check_residual(config: Config) -> None:
    machine, arch = config.machine, config.model.arch
    if machine.residual != "bf16":
        return
    if machine.precision not in ("auto", machine.residual):
        raise UserError(f"--residual bf16 goes with --precision bf16, not with {machine.precision}: leave one of them out")
    if arch not in SIZES and not arch.startswith("swin"):
        raise UserError(f"--residual bf16 is for this project's ViT and Swin: leave it out with --arch {arch}")


def _check_range(value_range: tuple[float, ...]) -> None:
    if value_range and (len(value_range) != 2 or not all(map(math.isfinite, value_range)) or value_range[0] >= value_range[1]):
        raise UserError(f"--value-range {' '.join(f'{value:g}' for value in value_range)}: give the least and the largest value")


def _check_targets(config: Config) -> None:
    """Raise UserError for targets without what they need."""
    head, loss = config.head, config.loss
    needs = loss.targets in ("codes", "frozen")
    if needs != (loss.tokenizer is not None):
        what = "dalle, dalle:FILE, kmeans:FILE or colour" if loss.targets == "codes" else "a full checkpoint"
        cure = f"give it: {what}" if needs else "give --targets codes or --targets frozen, or leave it out"
        raise UserError(f"--targets {loss.targets} {'needs' if needs else 'has no'} --tokenizer: {cure}")
    if needs and (head.shared_head or head.shared_head_teacher):
        raise UserError(
            f"--targets {loss.targets} has prototypes of its own: give --shared-head false --shared-head-teacher false"
        )
    if head.separate_layers and head.shared_head:
        raise UserError("--separate-layers is for heads that are not shared: give --shared-head false")
    if loss.targets.startswith("dense") and config.crops.global_crops_number < 2:
        raise UserError(f"--targets {loss.targets} compares two global crops: give --global-crops-number 2")


def _check_together(config: Config) -> None:
    """Raise UserError for two departures from iBOT of which a step can make only one."""
    loss, masks = config.loss, config.masks
    changed = [f"--targets {loss.targets}"] * (loss.targets != "online")
    changed += ["--masked-crops"] * (masks.masked_crops != "global")
    changed += ["--centre-patches false"] * (not loss.centre_patches and loss.targets != "hard")
    if len(changed) > 1:
        raise UserError(f"{' and '.join(changed)} do not go together: give one of them")
    if not masks.use_masked_im_modeling and changed:
        raise UserError(f"without masked image modelling {changed[0]} says nothing: leave one of them out")
    if masks.masked_crops == "all" and not config.crops.local_crops_number:
        raise UserError("--masked-crops all is about local crops: give --local-crops-number")


def _check_shard(config: Config) -> None:
    for name, value, wrong, cure in (
        ("precision", config.machine.precision, "fp16", "give --precision bf16 or fp32"),
        ("optimizer", config.optimisation.optimizer, "lars", "give --optimizer adamw or sgd"),
        ("compile", config.machine.compile, "on", "leave --compile out"),
    ):
        if value == wrong:
            raise UserError(f"--shard does not go with --{name} {wrong}: {cure}")


def without_effect(config: Config) -> list[str]:
    """A remark for each option that changes nothing in this run, and for what does not come about before its end."""
    model, head, masks, steps = config.model, config.head, config.masks, config.optimisation
    notes = []
    if config.machine.shard and distributed.world_size() == 1:
        notes.append("--shard spreads weights over processes, and there is one: it has no effect")
    if head.shared_head and head.patch_out_dim not in (head.out_dim, HeadOptions.patch_out_dim):
        notes.append(
            f"--shared-head has the --out-dim {head.out_dim} prototypes for patches too: "
            f"--patch-out-dim {head.patch_out_dim} has no effect"
        )
    if model.window != ModelOptions.window and not model.arch.startswith("swin"):
        notes.append(f"--window {model.window} is a Swin's: {model.arch} has none, it has no effect")
    if config.knn.knn_data is not None and not config.knn.knn_every:
        notes.append("--knn-data is for the k-NN curve, which --knn-every 0 leaves out: it has no effect")
    if not model.init_heads and model.init_from is None:
        notes.append("--init-heads false says what not to take from --init-from, which is not given: it has no effect")
    if steps.steps is not None:
        return notes
    if steps.warmup_epochs >= steps.epochs:
        notes.append(f"--warmup-epochs {steps.warmup_epochs} is not over before --epochs {steps.epochs}: --lr is not reached")
    if masks.use_masked_im_modeling and masks.pred_start_epoch >= steps.epochs:
        notes.append(f"--pred-start-epoch {masks.pred_start_epoch} is not reached in --epochs {steps.epochs}: no masks")
    return notes
