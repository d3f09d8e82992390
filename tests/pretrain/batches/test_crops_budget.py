"""The crops of a batch on a GPU, counted on a CPU: 128 photographs of 500 x 375 pixels, 2 x 224 + 10 x 96 crops.

46c01a2 launched 3,471 kernels, moved 117 GB and uploaded indices from pageable memory for each of them.
"""

import numpy as np
import pytest

from checkpoints.architecture import MEAN, STD
from pretrain.batches import augment, masking
from pretrain.batches.dataset import Cut, StepDataset, make_batch
from pretrain.images.source import InMemory

pretended_gpu = pytest.importorskip("probes.bench.pretended_gpu")
pytest.importorskip("triton")

LAUNCHES, GIGABYTES, UPLOADS = 20, 2.0, 12
"""The issue allows 300 launches and 20 GB."""


def test_crops_of_a_batch_keep_their_budget() -> None:
    from pretrain.batches import color_kernels  # noqa: PLC0415

    first, second = augment.View(224, (0.25, 1.0), 1.0, 0.0), augment.View(224, (0.25, 1.0), 0.1, 0.2)
    views = augment.MultiCrop((first, second), augment.View(96, (0.05, 0.25), 0.5, 0.0), 10)
    images = InMemory("blank", [np.zeros((375, 500, 3), np.uint8)] * 128)
    steps = StepDataset(images, views, masking.MaskSettings((0.0, 0.3), (0.0, 0.2), "block"), (14, 14), 128, 0, make_crops=False)
    cut = steps[0]
    assert isinstance(cut, Cut)
    with pretended_gpu.pretended() as gpu:
        for tensor in cut.tensors():
            gpu.pin(tensor)  # as the loader's thread does
        batch = make_batch(cut.to(pretended_gpu.GPU), MEAN, STD, color_kernels.change)
        launches, moved = sum(one.launches for one in gpu.kernels), sum(one.bytes for one in gpu.kernels)
        waits, uploads = gpu.waits, gpu.uploads
    sizes = f"{sum(one.bytes for one in uploads) / 1e6:.0f} MB in {len(uploads)} uploads"
    print(f"crops of 128 images: {launches} launches, {moved / 1e9:.2f} GB, {sizes}, {len(waits)} waits")
    assert batch.crops.shape == (2, 128, 3, 224, 224) and batch.local_crops.shape == (10, 128, 3, 96, 96)
    assert batch.crops.device == batch.local_crops.device == pretended_gpu.GPU
    assert not waits and launches <= LAUNCHES and moved <= GIGABYTES * 1e9
    assert len(uploads) <= UPLOADS and all(one.pinned for one in uploads)
