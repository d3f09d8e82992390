"""What MMEngine is asked to do besides training. Importing this file registers it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from pretrain.backbone import make
from transfer.pictures import BACKEND


@HOOKS.register_module()
class WeightsHook(Hook):
    """Before the first step: the checkpoint's weights must still be there, or give way to random ones if `random`."""

    priority = "VERY_HIGH"

    def __init__(self, random: bool = False) -> None:
        self.random = random

    def before_train(self, runner: Any) -> None:
        model: nn.Module = getattr(runner.model, "module", runner.model)
        backbone: Any = model.backbone
        if runner.iter > 0:  # taken up again: training has moved them
            return
        backbone.verify()
        if self.random:
            fresh = make(backbone.shape, maskable=False).state_dict()
            mine = backbone.net.state_dict()
            with torch.no_grad():
                for name, weight in mine.items():
                    weight.copy_(fresh[name])
        runner.logger.info("backbone: %s", "random weights" if self.random else "the checkpoint's weights, verified")


@HOOKS.register_module()
class ShowHook(Hook):
    """Draws what was found in the first few test images, beside what is there, to `predictions/` in the run's folder."""

    def __init__(self, count: int = 4) -> None:
        self.count, self.shown = count, 0

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None) -> None:
        if runner.rank != 0:
            return
        for sample in list(outputs or ())[: self.count - self.shown]:
            image = mmcv.imread(sample.img_path, channel_order="rgb", backend_args={"backend": BACKEND})
            name = Path(sample.img_path).stem
            path = Path(runner.work_dir) / "predictions" / f"{name}.png"
            runner.visualizer.add_datasample(name, image, data_sample=sample, draw_gt=True, show=False, out_file=str(path))
            self.shown += 1
