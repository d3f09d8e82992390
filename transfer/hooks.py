"""Hooks for MMEngine. Importing this file registers them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from checkpoints.cli import UserError
from transfer.pictures import BACKEND, drawn_names

POSITION = "backbone.net.pos_embed"


@HOOKS.register_module()
class WeightsHook(Hook):
    """Before the first step: the checkpoint's weights must still be there, or give way to random ones if `random`.

    What a run is continued from must fit the model and its optimizer: MMEngine leaves out what does not, and goes on.
    """

    priority = "VERY_HIGH"

    def __init__(self, random: bool = False) -> None:
        self.random = random

    def before_train(self, runner: Any) -> None:
        model: nn.Module = getattr(runner.model, "module", runner.model)
        backbone: Any = model.backbone
        backbone.statistics = self.random  # of batch norms, which random weights need their own of
        backbone.train(backbone.training)
        if runner.iter > 0:  # taken up again: training has moved them
            return
        backbone.verify()
        if self.random:
            fresh = backbone.drawn().state_dict()
            mine = backbone.net.state_dict()
            with torch.no_grad():
                for name, weight in mine.items():
                    weight.copy_(fresh[name])
        runner.logger.info("backbone: %s", "random weights" if self.random else "the checkpoint's weights, verified")

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        model: nn.Module = getattr(runner.model, "module", runner.model)
        refuse_another(model.state_dict(), checkpoint.get("state_dict", {}), runner.work_dir)
        optimizer: Any = getattr(runner.optim_wrapper, "optimizer", None)
        if "optimizer" in checkpoint and isinstance(optimizer, torch.optim.Optimizer):  # elsewhere a config's entry
            refuse_other_groups(optimizer.state_dict(), checkpoint["optimizer"], runner.work_dir)


ANEW = "give the config and --cfg-options that it began with, or another --out"


def refuse_another(mine: Mapping[str, Any], theirs: Any, folder: str) -> None:
    """Raise UserError where a run's weights are not those of the model: names, or sizes."""
    theirs = theirs if isinstance(theirs, Mapping) else {}
    before, now = ((*_size(weights, POSITION, ()), 0, 0)[1] for weights in (theirs, mine))
    if before != now and min(before, now) > 0:
        cure = "--cfg-options model.backbone.grid=None goes on with the checkpoint's own grid, as in older versions"
        raise UserError(f"{folder} was trained with {before} position embeddings, the config has {now}: {cure}; or {ANEW}")
    other = sorted(name for name in mine.keys() | theirs.keys() if _size(mine, name) != _size(theirs, name))
    if other:
        raise UserError(f"{folder} holds another model than the config's, first in {other[0]}: {ANEW}")


def refuse_other_groups(mine: Any, theirs: Any, folder: str) -> None:
    """Raise UserError where two states of optimizers have other groups of parameters: weight decay or rates are others."""
    if _groups(mine) != _groups(theirs):
        raise UserError(f"{folder} was trained with other groups of parameters in its optimizer: {ANEW}")


def _groups(optimizer: Any) -> list[int] | None:
    """Parameters in each group of an optimizer's state, None where it is not one."""
    groups = optimizer.get("param_groups") if isinstance(optimizer, Mapping) else None
    fine = isinstance(groups, list) and all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups
    )
    return [len(group["params"]) for group in groups] if fine else None  # type: ignore[union-attr]


def _size(weights: Mapping[str, Any], name: str, otherwise: Any = None) -> Any:
    return getattr(weights.get(name), "shape", otherwise)


@HOOKS.register_module()
class ShowHook(Hook):
    """Draws what was found in the first few test images, beside what is there, to `predictions/` in the run's folder."""

    def __init__(self, count: int = 4, task: str = "coco") -> None:
        self.count, self.task = count, task
        self.drawn: list[tuple[str, Path]] = []
        """Names of the images, and the pictures of them."""

    def before_test(self, runner: Any) -> None:
        meta = runner.visualizer.dataset_meta or {}
        if meta.get("classes"):
            runner.visualizer.dataset_meta = {**meta, "classes": drawn_names(meta["classes"], self.task)}

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None) -> None:
        if runner.rank != 0:
            return
        for sample in list(outputs or ())[: self.count - len(self.drawn)]:
            image = mmcv.imread(sample.img_path, channel_order="rgb", backend_args={"backend": BACKEND})
            if image.shape[:2] == (1, 1):  # MMSegmentation takes the mask of one pixel for an index
                continue
            name, folder = Path(sample.img_path).stem, Path(runner.work_dir) / "predictions"
            taken = any(path.stem == name for _, path in self.drawn)  # of another folder, or with another suffix
            path = folder / f"{name}{f'-{len(self.drawn) + 1}' if taken else ''}.png"
            runner.visualizer.add_datasample(name, image, data_sample=sample, draw_gt=True, show=False, out_file=str(path))
            self.drawn.append((Path(sample.img_path).name, path))
