"""Several processes as one: everything above this file works the same with one process and with many."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


@contextmanager
def processes() -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did, and yield this process's device."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield device
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
        dist.barrier()  # leave together: a process that is still talking when its partner has gone is aborted
    finally:
        dist.destroy_process_group()


def parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with gradients averaged over processes during backward."""
    if world_size() == 1:
        return module
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, find_unused_parameters=True)


def averaged(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Around a forward and backward: average gradients over processes `now`, or leave them to a later one."""
    return contextlib.nullcontext() if now or not isinstance(module, DistributedDataParallel) else module.no_sync()


def unwrap(module: nn.Module) -> Any:
    """The module itself, whether or not `parallel` wrapped it."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def mean(tensor: Tensor) -> Tensor:
    """The mean over processes of a tensor that each of them has."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world_size()


def gathered(values: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other."""
    if world_size() == 1:
        return values
    lists: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, values)
    return [value for some in lists for value in some]


def any_true(*flags: bool) -> list[bool]:
    """For each flag whether it is set in any process. Goes past the devices: none is waited for."""
    if world_size() == 1:
        return list(flags)
    total = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return [bool(value) for value in total.tolist()]
