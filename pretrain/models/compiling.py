"""Blocks as a GPU computes them fastest, tried before the first step.

A ViT's by kernels of this project where it trains in 16 bits (`fused_blocks`); others through torch.compile, one graph for all
blocks of one shape; as they are where both fail.

Only training is compiled: in evaluation mode backbones run as they are, so that no other batch size makes another graph.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from checkpoints import places, terminal
from checkpoints.store import first_line

MOST_GRAPHS = 64
"""Of one function: a Swin has two kinds of blocks in four stages, for two sizes of crops, with and without gradients."""


class Compiled:
    """A function compiled whole. Once `tried`, it is replaced by the plain one where it fails, aloud."""

    WHAT = ""
    """Of which the note says that they are not compiled any more."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.tried = False
        self.plain = plain
        self._run: Callable[..., Any] = torch.compile(plain, fullgraph=True, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        if self._run is self.plain:
            return self.plain(*arguments)
        try:
            return self._run(*arguments)
        except Exception as error:  # compilers fail in many ways, and none of them should stop a run
            if not self.tried:
                raise
            self._run = self.plain
            found = self.plain(*arguments)  # an error of the function itself is raised here
            terminal.say(f"note: {self.WHAT} are not compiled any more ({why_failed(error)})", error=True)
            return found


class CompiledBlock(Compiled):
    """A function that computes one block."""

    WHAT = "the blocks"


def graphs_made() -> int:
    """How many graphs were compiled in this process so far."""
    return counters["stats"]["unique_graphs"]


def compile_blocks(network: nn.Module, trial: Callable[[], torch.Tensor], kind: torch.dtype | None = None) -> str:
    """Make the blocks of `network.backbone` fast and run `trial` once, with its backward where the network learns.

    `trial` is a forward as training does it (shapes, autocast); torch's generators are left as they were, gradients at None.
    `kind`: the 16-bit type of products on a GPU. Gives a line that says what was done and how long it took, or why nothing was;
    then the blocks are as before.
    """
    backbone: Any = network.backbone
    note = ""
    if kind is not None and hasattr(backbone, "kernels"):
        began = time.perf_counter()
        why = _with_kernels(network, backbone, trial, kind)
        if not why:
            return f"{len(backbone.blocks)} blocks by this project's kernels, tried in {time.perf_counter() - began:.0f} s"
        note = f"; not by this project's kernels ({why})"
    before, began = graphs_made(), time.perf_counter()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(places.cache_folder("IBOT_COMPILED", "compiled")))
    backbone.compile_blocks()
    try:
        with _many_graphs():
            try_once(network, trial)
    except Exception as error:
        backbone.leave_uncompiled()
        return f"the blocks are not compiled ({why_failed(error)}){note}"
    if isinstance(backbone.compiled, CompiledBlock):
        backbone.compiled.tried = True
    made, seconds = graphs_made() - before, time.perf_counter() - began
    return f"{len(backbone.blocks)} blocks compiled as {made} graph{'s' if made != 1 else ''} in {seconds:.0f} s{note}"


def _with_kernels(network: nn.Module, backbone: Any, trial: Callable[[], torch.Tensor], kind: torch.dtype) -> str:
    """Let this project's kernels compute a ViT's blocks; why they do not, or nothing."""
    try:
        from pretrain.models import fused_blocks  # noqa: PLC0415  # only there does it need Triton

        if not all(map(fused_blocks.fits, backbone.blocks)):
            return "they are for plain blocks on one device"
        with torch.random.fork_rng(_devices(network)), torch.enable_grad():
            fused_blocks.compare(backbone.blocks[0], kind)
        backbone.kernels = fused_blocks
        try_once(network, trial)
    except Exception as error:
        backbone.kernels = None
        return why_failed(error)
    return ""


def try_once(network: nn.Module, trial: Callable[[], torch.Tensor]) -> None:
    """Run it, and its backward where the network learns; generators and gradients are left as they were."""
    learns = any(parameter.requires_grad for parameter in network.parameters())
    try:
        with torch.random.fork_rng(_devices(network)), torch.set_grad_enabled(learns), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on itself
            tokens = trial()
            if learns:
                tokens.float().sum().backward()
    finally:
        network.zero_grad(set_to_none=True)


def _devices(network: nn.Module) -> list[int]:
    """Numbers of the GPUs whose generators a trial may move."""
    return [parameter.device.index or 0 for parameter in network.parameters() if parameter.is_cuda][:1]


def why_failed(error: Exception) -> str:
    """In one line; of a compiler's error what it came from."""
    return first_line(getattr(error, "inner_exception", error))


@contextmanager
def _many_graphs() -> Iterator[None]:
    """Lift the limit of graphs per function while they are made: torch's own, 8, is for shapes that change without end."""
    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
        yield
