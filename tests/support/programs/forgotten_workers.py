"""A process that ends while something holds on to a loader half used, as after an error whose traceback does.

python -m tests.support.programs.forgotten_workers
"""

import builtins

import torch

from pretrain.batches import augment, masking
from pretrain.batches.dataset import StepDataset
from pretrain.batches.loader import Loader
from pretrain.images.source import Sample

if __name__ == "__main__":
    view = augment.View(16, (0.5, 1.0), 0.0, 0.0)
    views, masks = augment.MultiCrop((view,), view, 1), masking.MaskSettings((0.0,), (0.0,), "rand")
    steps = StepDataset(Sample("val"), views, masks, (2, 2), 4, 0)
    batches = iter(Loader(steps, 0, 100, 2, torch.device("cpu")))
    vars(builtins)["kept"] = batches
    next(batches)
    print("ends")
