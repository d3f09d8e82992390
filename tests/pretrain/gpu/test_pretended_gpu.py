"""The pretended GPU counts what it is asked, and notices what a real one would be slow at or refuse."""

import pytest
import torch
from torch import Tensor

from probes.bench.kernels import CARDS, seconds
from probes.bench.pretended_gpu import GPU, PretendedGpu, pretended


def test_tensors_of_two_devices_do_not_mix() -> None:
    with pretended() as gpu:
        there = gpu.tensor(4)
        assert (there + 1.0).device == GPU and torch.ones(4).sum().item() == 4  # those of the CPU stay real
        with pytest.raises(RuntimeError, match=r"different devices|device"):
            there + torch.ones(4)


def test_launches_bytes_and_operations_are_those_of_the_formula() -> None:
    with pretended() as gpu:
        a, b = gpu.tensor(8, 16), gpu.tensor(16, 4)
        gpu.start()
        (a @ b).add_(1.0)
        a.T.unsqueeze(0)[:, 1:3]
    product, added = gpu.kernels  # a view is none
    assert (product.flops, product.bytes, product.kind) == (2 * 8 * 16 * 4, 4 * (8 * 16 + 16 * 4 + 8 * 4), "product")
    assert (added.flops, added.bytes, added.launches) == (0, 4 * 2 * 8 * 4, 1)
    assert seconds(added, CARDS["H100"]) == 1.5e-6
    large = product._replace(flops=600 * 10**12, dtype=torch.bfloat16)
    assert seconds(large, CARDS["H100"]) == 1.0 and seconds(large._replace(dtype=torch.float32), CARDS["H100"]) == 2.0
    moved = added._replace(bytes=4 * 10**12)
    assert seconds(moved, CARDS["H200"]) == 1.0 < seconds(moved, CARDS["H100"])


def test_memory_is_counted_while_it_is_held() -> None:
    with pretended() as gpu:
        held = gpu.tensor(1024)
        gpu.start()
        before = gpu.live
        two = held + held
        assert gpu.live - before == 4096
        del two
        assert gpu.live == before and gpu.peak == before + 4096


def _reads(there: Tensor) -> object:
    return there.sum().item()


def _branches(there: Tensor) -> object:
    return bool((there > 0).any())


def _masks(there: Tensor) -> object:
    return there[there > 0]


def _to_host(there: Tensor) -> object:
    return there.cpu()


def _to_device(there: Tensor) -> object:
    return there + torch.ones(8).to(GPU)


def _own_event(there: Tensor) -> object:
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    return None


def _own_synchronize(there: Tensor) -> object:
    torch.cuda.synchronize()
    return None


@pytest.mark.parametrize("waits", [_reads, _branches, _masks, _to_host, _to_device, _own_event, _own_synchronize])
def test_what_waits_is_noted(waits: object) -> None:
    with pretended() as gpu:
        there = gpu.tensor(8)
        gpu.start()
        waits(there)  # type: ignore[operator]
    assert len(gpu.waits) == 1 and "test_pretended_gpu.py" in gpu.waits[0].place


def test_an_event_of_an_earlier_step_and_a_pinned_copy_are_no_waits() -> None:
    with pretended() as gpu:
        there, event = gpu.tensor(8), torch.cuda.Event()
        host = torch.empty(8, pin_memory=True)
        gpu.start()
        host.copy_(there, non_blocking=True)
        event.record()
        gpu.start()
        event.synchronize()
        assert not gpu.waits
        torch.empty(8).copy_(there, non_blocking=True)  # to pageable memory: it waits all the same
        assert len(gpu.waits) == 1


def test_large_uploads_from_pageable_memory_are_told_from_others() -> None:
    def uploaded(made: Tensor, *, pinned: bool) -> bool:
        with pretended() as gpu:
            gpu.start()
            (made.pin_memory() if pinned else made).to(GPU, non_blocking=True)
        (upload,) = gpu.uploads
        assert upload.bytes == made.numel() * 4 and not gpu.waits
        return upload.waits

    for pinned, values, late in ((False, 20_000, True), (True, 20_000, False), (False, 100, False)):
        assert uploaded(torch.ones(values), pinned=pinned) == late


def _foreach(gpu: PretendedGpu, factors: list[Tensor]) -> int:
    weights = [gpu.tensor(30, 30) for _ in range(50)]
    gpu.start()
    torch._foreach_mul_(weights, factors)
    return sum(kernel.launches for kernel in gpu.kernels)


def test_lists_of_tensors_with_factors_of_another_shape_are_multiplied_one_by_one() -> None:
    """The clipping of 46c01a2 did so: 160 launches for a ViT-S."""
    with pretended() as gpu:
        assert _foreach(gpu, list(gpu.tensor(50).unbind())) == 50
        assert _foreach(gpu, [gpu.tensor(30, 30) for _ in range(50)]) == 2
