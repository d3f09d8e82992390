"""Stops a dense training whose losses or weights are not finite. Importing this file registers `WatchHook` with MMEngine.

MMEngine trains on with NaN to the end, tests what is left, and ends with exit code 0.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from checkpoints import places, store
from checkpoints.cli import WorkError

STEP = "not_finite.json"
"""In the run's folder: the step that stopped it."""


@HOOKS.register_module()
class WatchHook(Hook):
    """Raises WorkError at the first loss that is not finite, and for weights that are not, before any is saved or tested."""

    priority = "VERY_HIGH"

    def before_train(self, runner: Any) -> None:
        refuse_weights(runner.model, "nothing was trained: give another checkpoint, or another --out")

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        wrong = not_finite(outputs or {})
        if not wrong:
            return
        names, step = pictures(data_batch), runner.iter + 1
        path = places.below(Path(runner.work_dir), STEP)
        if runner.rank == 0:
            losses = {name: str(float(value)) for name, value in (outputs or {}).items() if _number(value)}
            store.write_bytes(path, json.dumps({"step": step, "losses": losses, "images": names}, indent=1).encode())
        rate = "give a lower --lr, or look at those images"
        raise WorkError(
            f"the loss of step {step} is not finite ({', '.join(wrong)[:200]}), its images are in {path}; training stopped, "
            f"nothing was recorded: {rate}"
        )

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        refuse_weights(runner.model, "training stopped, nothing was recorded: give a lower --lr")

    def after_train(self, runner: Any) -> None:
        self.before_save_checkpoint(runner, {})


def not_finite(losses: Mapping[str, Any]) -> list[str]:
    """Names and values of the losses that are not finite; accuracies are of no count."""
    values = {name: float(value) for name, value in losses.items() if "loss" in name and _number(value)}
    return [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)


def pictures(batch: Any) -> list[str]:
    """The images of a batch, as far as it says."""
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    return [str(getattr(sample, "img_path", "")) for sample in samples] if isinstance(samples, Sequence) else []


def refuse_weights(model: nn.Module, what: str) -> None:
    """Raise WorkError naming the first weight that is not finite."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise WorkError(f"the weight {name} of the model is not finite; {what}")
