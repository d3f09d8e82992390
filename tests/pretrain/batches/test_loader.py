"""Batches: who sees which image, and that a step is the same however it is reached."""

import subprocess
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.batches import augment, feeding, masking
from pretrain.batches.dataset import Batch, Cut, StepDataset
from pretrain.batches.loader import Loader
from pretrain.images.source import Content, Images, Sample
from pretrain.sample import classification, scene
from tests.support.commands import program

VIEW = augment.View(16, (0.3, 1.0), 0.5, 0.5)
VIEWS = augment.MultiCrop((VIEW, VIEW), augment.View(8, (0.1, 0.3), 0.5, 0.0), 3)
MASKS = masking.MaskSettings((0.0, 0.3), (0.0, 0.2), "block")
CPU = torch.device("cpu")


def few(count: int) -> Sample:
    drawn = Sample.__new__(Sample)
    drawn.name, drawn.labels, drawn.classes = "few", np.arange(count) % 10, scene.CLASSES
    drawn._images = classification.classification("train", 40).images[:count]
    return drawn


def steps(count: int = 37, batch_size: int = 4, seed: int = 0, **more: Any) -> StepDataset:
    return StepDataset(few(count), VIEWS, MASKS, (4, 4), batch_size, seed, **more)


class Numbered(Images):
    """Images whose every pixel says which one they are."""

    name = "numbered"

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def content(self, index: int) -> Content:
        return np.full((9 + index % 3, 9, 3), index, dtype=np.uint8)

    def where(self, index: int) -> str:
        return str(index)


def equal(batch: Batch, other: Batch | Cut) -> bool:
    assert isinstance(other, Batch)
    pairs = [(batch.crops, other.crops), (batch.local_crops, other.local_crops), *zip(batch.masks, other.masks, strict=True)]
    return all(torch.equal(one, two) for one, two in pairs)


def test_a_step_has_the_same_batch_however_it_is_reached() -> None:
    data = steps()
    batches = list(Loader(data, 0, 20, 0, CPU))
    assert len(batches) == 20 and batches[0].crops.shape == (2, 4, 3, 16, 16)
    assert batches[0].local_crops.shape == (3, 4, 3, 8, 8) and batches[0].masks.grid.shape == (2, 4, 4, 4)
    again = list(Loader(steps(), 13, 20, 2, CPU))
    assert all(equal(one, two) for one, two in zip(batches[13:], again, strict=True))
    assert not equal(batches[0], batches[1]) and not equal(batches[0], steps(seed=1)[0])


def test_crops_made_on_the_device_are_those_that_workers_make() -> None:
    made, cut = steps()[3], steps(make_crops=False)
    assert isinstance(made, Batch) and isinstance(cut[3], Cut) and cut[3].crops.dtype == torch.uint8
    late = next(iter(Loader(cut, 3, 4, 1, CPU)))
    assert torch.equal(late.masks.grid, made.masks.grid)
    for one, other in ((late.crops, made.crops), (late.local_crops, made.local_crops)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_with_workers_see_every_image_once_in_an_epoch(workers: int) -> None:
    epochs = []
    for epoch in range(2):
        seen = []
        for rank in range(2):
            data = StepDataset(Numbered(64), VIEWS, MASKS, (4, 4), 8, 0, make_crops=False)
            data.rank, data.world_size, data.steps_per_epoch = rank, 2, 4
            loader = Loader(data, epoch * 4, epoch * 4 + 4, workers, CPU)
            for batch in loader.made():
                assert isinstance(batch, Cut)
                seen += batch.crops[0, :, 0, 0, 0].tolist()
        assert sorted(seen) == list(range(64))
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_no_local_crops_is_an_empty_batch_of_them() -> None:
    for make_crops in (True, False):
        data = steps(make_crops=make_crops)
        data.views = augment.MultiCrop((VIEW, VIEW), VIEW, 0)
        assert next(iter(Loader(data, 0, 1, 0, CPU))).local_crops.shape == (0, 4, 3, 16, 16)


def test_the_wait_for_images_is_counted() -> None:
    loader = Loader(steps(), 0, 2, 0, CPU)
    assert loader.waited == 0 and len(list(loader)) == 2 and loader.waited > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_crops_made_on_a_gpu_beside_the_step_are_those_of_the_cpu() -> None:
    device = torch.device("cuda")
    there = list(Loader(steps(make_crops=False), 0, 8, 2, device))
    here = list(Loader(steps(), 0, 8, 0, CPU))
    for one, other in zip(there, here, strict=True):
        assert one.crops.device.type == "cuda" and torch.equal(one.masks.grid.cpu(), other.masks.grid)
        assert (one.crops.cpu() - other.crops).abs().mean() < 0.01
        assert (one.local_crops.cpu() - other.local_crops).abs().mean() < 0.01


class Deep(Numbered):
    """Every third image of float32."""

    def content(self, index: int) -> Content:
        pixels = np.full((9, 9, 3), index, dtype=np.uint8)
        return pixels if index % 3 else pixels.astype(np.float32) / 255


def test_deeper_images_beside_8_bit_ones_keep_their_brightness() -> None:
    """In whichever order they come; a batch of 8-bit images alone stays one of 8 bit."""
    data = StepDataset(Deep(12), VIEWS, MASKS, (4, 4), 4, 0, make_crops=False)
    for step in range(3):
        batch = data[step]
        assert isinstance(batch, Cut) and batch.crops.dtype == batch.local_crops.dtype == torch.float32
        wanted = torch.tensor(data.chosen(step)) / 255
        for crops in (batch.crops, batch.local_crops):
            assert torch.allclose(crops, wanted[:, None, None, None].expand_as(crops), atol=1e-6)


class Huge(Numbered):
    """Photographs of four megapixels."""

    def content(self, index: int) -> Content:
        return np.full((1600, 2500, 3), index, dtype=np.uint8)


def test_a_waiting_batch_is_as_large_as_its_crops_however_large_the_images() -> None:
    """46c01a2 kept whole pictures: a batch of 128 photographs of 12 megapixels had 625 MB."""
    small, large = (StepDataset(images, VIEWS, MASKS, (4, 4), 2, 0, make_crops=False)[0] for images in (Numbered(2), Huge(2)))
    assert feeding.bytes_of(small) == feeding.bytes_of(large) < 20 * 4096


def test_a_process_ends_although_it_has_forgotten_its_workers() -> None:
    """As after an error whose traceback holds on to a loader half used."""
    done = subprocess.run(**program("forgotten_workers"), check=False, timeout=60)
    assert done.returncode == 0 and done.stdout == "ends\n", done.stderr
