"""What is set up for a GPU and its processes, told from the calls: there is no GPU here."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from checkpoints.cli import UserError
from pretrain.engine import distributed
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.method.ibot import Losses

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "tf32"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_products_are_rounded_to_tf32_only_where_it_is_asked_for(name: str, tf32: bool) -> None:
    """In 46c01a2 `--precision fp32` was TF32 on a GPU."""
    precision = Precision(name, GPU)
    assert (torch.get_float32_matmul_precision() == "high") == torch.backends.cudnn.allow_tf32 == tf32
    assert precision.name == name and not precision.scaler.is_enabled()


def test_tf32_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="give --precision fp32"):
        Precision("tf32", CPU)


def test_nccl_is_told_its_device_and_gloo_alone_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: told.append((args, kwargs)))
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "1", "LOCAL_RANK": "1"})
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with distributed.processes():
            pass
    second = torch.device("cuda", 1)
    assert told == [(("cpu:gloo,cuda:nccl",), {"device_id": second}), (("gloo",), {})]


@pytest.mark.parametrize(("part", "moves"), [(nn.BatchNorm1d(2), True), (nn.LayerNorm(2), False)])
def test_buffers_are_broadcast_only_where_forward_passes_change_them(
    part: nn.Module, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """46c01a2 sent the tables of a Swin, which never change, with every step."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda module, **kwargs: told.update(kwargs) or module)
    distributed.parallel(nn.Sequential(nn.Linear(2, 2), part), CPU)
    assert told["broadcast_buffers"] == moves


def test_the_state_of_the_gpus_generator_is_kept_with_a_refused_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """46c01a2 kept that of the CPU's alone."""
    kept: list[Any] = []
    state = torch.arange(16, dtype=torch.uint8)
    for there in (True, False):
        monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda there=there: there, get_rng_state=lambda: state))
        guard = Guard(kept.append)
        guard.begin(0, [], None)
        nan = torch.tensor(float("nan"))
        guard.accepts(Losses(nan, nan, nan), torch.ones(1))
    assert kept[0].random_cuda is state and kept[1].random_cuda is None
