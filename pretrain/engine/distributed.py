"""Data parallelism: code above this file is the same for one process and for many."""

import contextlib
import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from checkpoints import hold
from checkpoints.cli import UserError, WorkError

Result = TypeVar("Result")

LOST = re.compile("gloo|NCCL|Connection (closed|reset)|Timed out waiting|Broken pipe|barrier", re.IGNORECASE)
"""Messages of torch for a process that has ended, or has not answered within torch's limit of 10 to 30 minutes."""


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
    if device.type == "cuda":  # known from the start, NCCL connects at once, and no barrier has to guess the device
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield device
        dist.barrier()  # leave together: a process that is still talking when its partner has gone is aborted
    except RuntimeError as error:
        if isinstance(error, WorkError) or not LOST.search(str(error)):
            raise
        raise WorkError(
            "another process of this run has ended or does not answer (what it has said, if anything, is above): "
            "the same command goes on from the last checkpoint"
        ) from error
    finally:
        _leave()


def _leave() -> None:
    """Close all groups, and collect what still holds one.

    Gloo joins a group's threads when its last holder goes. One in a cycle (a wrapper of `parallel`, a sharded network) would go
    at the interpreter's end or never, and a thread that is not joined then aborts the process.
    """
    dist.destroy_process_group()
    gc.collect()


def parallel(module: nn.Module, device: torch.device, *, some_unused: bool = False) -> nn.Module:
    """The module with gradients averaged over processes during backward; unchanged where `shard_` does that.

    `some_unused`: not every parameter takes part in every step.
    """
    if world_size() == 1 or isinstance(module, FSDPModule):
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=some_unused,
        gradient_as_bucket_view=True,
        broadcast_buffers=has_running_statistics(module),
    )


def has_running_statistics(module: nn.Module) -> bool:
    """Whether forward passes change buffers, as batch norm does; others (Swin's tables of positions) are the same everywhere."""
    return any(getattr(part, "track_running_stats", False) for part in module.modules())


def shard_(network: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Shard weights, gradients and optimizer states over the processes (FSDP2); weights are gathered block by block."""
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard_` was applied."""
    return isinstance(module, FSDPModule)


def averaged(module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Around a forward and backward: average gradients over processes `now`, or leave them to a later one."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
    return contextlib.nullcontext() if now or not isinstance(module, DistributedDataParallel) else module.no_sync()


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This process's part of sharded tensors; others unchanged."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of each tensor, of sharded ones over all processes: [tensors]."""
    local_norms = torch.stack(torch._foreach_norm(local(tensors)))
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return local_norms
    squares = local_norms.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def full_tensor(value: Any) -> Any:
    """Nested dicts and lists with sharded tensors gathered on the CPU; all processes must call it together."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: full_tensor(part) for key, part in value.items()}
    return [full_tensor(part) for part in value] if isinstance(value, list) else value


def copied(value: Any) -> Any:
    """As `full_tensor`, in the main process only, and every tensor a copy on the CPU that no later step changes.

    All processes must call it together; in the others tensors become None, one at a time, so that the copy is held once. Tensors
    that were one stay one.
    """
    found: dict[Any, Tensor] = {}

    def copy(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: copy(one) for key, one in part.items()}
        if isinstance(part, list):
            return [copy(one) for one in part]
        if not isinstance(part, Tensor):
            return part
        whole = part.full_tensor() if isinstance(part, DTensor) else part  # a shard may be empty: its address says nothing
        if not is_main():
            return None
        key = object() if isinstance(part, DTensor) else (whole.data_ptr(), whole.dtype, whole.shape, whole.stride())
        if key not in found:
            found[key] = whole.detach().to("cpu", copy=True)
        return found[key]

    return copy(value)


def shard(value: Any, like: Tensor) -> Any:
    """A full tensor sharded as `like`; anything else unchanged."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def unwrap(module: nn.Module) -> Any:
    """The module without the wrapper of `parallel`, if it has one."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def barrier() -> None:
    """Wait until all processes have called this."""
    if world_size() > 1:
        dist.barrier()


def mean(tensor: Tensor) -> Tensor:
    """The mean over processes of a tensor that each of them has."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / world_size()


def gathered(values: list[Any]) -> list[Any]:
    """The lists of all processes, concatenated in order of rank."""
    if world_size() == 1:
        return values
    lists: list[list[Any]] = [[] for _ in range(world_size())]
    dist.all_gather_object(lists, values)
    return [value for some in lists for value in some]


def main_first(work: Callable[[], Result]) -> Result:
    """What `work` gives: in the main process first, then in the others, which find what it has fetched.

    What it raises there, UserError or WorkError, all processes raise. They wait as long as for a lock (`hold.PATIENCE`), which is
    longer than the half hour after which torch gives a partner up.
    """
    if world_size() == 1:
        return work()
    patient: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=hold.PATIENCE))
    failed: list[UserError | WorkError | None] = [None]
    found: list[Result] = []
    try:
        if is_main():
            found.append(work())
    except (UserError, WorkError) as error:
        failed = [error]
    dist.broadcast_object_list(failed, src=0, group=patient)
    dist.destroy_process_group(patient)
    if failed[0] is not None:
        raise failed[0]
    return found[0] if found else work()


def all_true(flag: Tensor) -> Tensor:
    """Whether a flag [] is true in all processes, as a flag on its device."""
    if world_size() == 1:
        return flag
    everywhere = flag.to(torch.uint8)
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return everywhere.bool()


def any_true(*flags: bool) -> list[bool]:
    """For each flag whether it is true in any process. Reduced on the CPU, so that no device is waited for."""
    if world_size() == 1:
        return list(flags)
    total = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return [bool(value) for value in total.tolist()]
