"""The crops of a batch on a GPU that is not there: what a worker hands over, and the call that makes a batch of it."""

import importlib.util
from collections.abc import Callable

import numpy as np
import torch

from checkpoints.architecture import MEAN, STD
from checkpoints.cli import UserError
from pretrain.batches.dataset import Batch, Change, Cut, StepDataset, make_batch
from pretrain.images.source import InMemory
from pretrain.setup.plan import Plan
from probes.bench.pretended_gpu import GPU, PretendedGpu

PHOTOGRAPH = (375, 500, 3)
"""Rows, columns and channels of the images; no count depends on them, as workers cut the crops out."""
META = torch.device("meta")


def cut_of(plan: Plan, batch_size: int, images: int = 8) -> Cut:
    """A batch as a worker hands it over: crops cut out of so many black images, which are repeated, and real draws."""
    blank = [np.zeros(PHOTOGRAPH, np.uint8)] * images
    source = InMemory("blank", [blank[number % images] for number in range(batch_size)])
    cut = StepDataset(source, plan.views, plan.masks, plan.grid, batch_size, 0, make_crops=False)[0]
    assert isinstance(cut, Cut)
    return cut


def need_triton() -> None:
    """Raise UserError where Triton is missing: a torch for CPUs comes without it."""
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            "this project's kernels for GPUs are written in Triton, which is not installed here: pip install triton (Linux)"
        )


def kernels() -> Change:
    """What changes colours on a GPU. Raises UserError where Triton is missing."""
    need_triton()
    from pretrain.batches import color_kernels  # noqa: PLC0415

    return color_kernels.change


def crops_on(gpu: PretendedGpu, plan: Plan, batch_size: int) -> Callable[[], Batch]:
    """Uploading a batch from pinned memory and making its crops, as the loader does; calling it does it once."""
    cut, change = cut_of(plan, batch_size), kernels()
    for tensor in cut.tensors():
        gpu.pin(tensor)  # as the loader's own thread does

    def make() -> Batch:
        gpu.phase = "crops"
        return make_batch(cut.to(GPU), MEAN, STD, change)

    return make


def crops_without_device(plan: Plan, batch_size: int) -> Callable[[], Batch]:
    """The same calls on tensors of no device, which nothing computes: what is left is the host's own work."""
    cut, change = cut_of(plan, batch_size), kernels()
    return lambda: make_batch(cut.to(META), MEAN, STD, change)
