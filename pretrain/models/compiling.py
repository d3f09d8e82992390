"""Blocks through torch.compile: one graph for all blocks of one shape, tried before the first step, eager where it fails.

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


class CompiledBlock:
    """A function that computes one block, compiled whole. Once `tried`, it is replaced by the plain one where it fails, aloud."""

    def __init__(self, plain: Callable[..., torch.Tensor]) -> None:
        self.tried = False
        self.plain = plain
        self._run: Callable[..., torch.Tensor] = torch.compile(plain, fullgraph=True, dynamic=False)

    def __call__(self, *arguments: Any) -> torch.Tensor:
        if self._run is self.plain:
            return self.plain(*arguments)
        try:
            return self._run(*arguments)
        except Exception as error:  # compilers fail in many ways, and none of them should stop a run
            if not self.tried:
                raise
            self._run = self.plain
            found = self.plain(*arguments)  # an error of the block itself is raised here
            terminal.say(f"note: the blocks are not compiled any more ({_why(error)})", error=True)
            return found


def graphs_made() -> int:
    """How many graphs were compiled in this process so far."""
    return counters["stats"]["unique_graphs"]


def compile_blocks(network: nn.Module, trial: Callable[[], torch.Tensor]) -> str:
    """Compile the blocks of `network.backbone` and run `trial` once, with its backward where the network learns.

    `trial` is a forward as training does it (shapes, autocast); torch's generators are left as they were, gradients at None.
    Gives a line that says what was compiled and how long it took, or why nothing was; then the blocks are as before.
    """
    backbone: Any = network.backbone
    learns = any(parameter.requires_grad for parameter in network.parameters())
    before, began = graphs_made(), time.perf_counter()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(places.cache_folder("IBOT_COMPILED", "compiled")))
    backbone.compile_blocks()
    devices = [parameter.device for parameter in network.parameters() if parameter.is_cuda][:1]
    try:
        with (
            torch.random.fork_rng([device.index or 0 for device in devices]),
            torch.set_grad_enabled(learns),
            _many_graphs(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # the compiler's remarks on itself
            tokens = trial()
            if learns:
                tokens.float().sum().backward()
        network.zero_grad(set_to_none=True)
    except Exception as error:
        backbone.leave_uncompiled()
        network.zero_grad(set_to_none=True)
        return f"the blocks are not compiled ({_why(error)})"
    if isinstance(backbone.compiled, CompiledBlock):
        backbone.compiled.tried = True
    made, seconds = graphs_made() - before, time.perf_counter() - began
    return f"{len(backbone.blocks)} blocks compiled as {made} graph{'s' if made != 1 else ''} in {seconds:.0f} s"


def _why(error: Exception) -> str:
    """In one line; of a compiler's error what it came from."""
    return first_line(getattr(error, "inner_exception", error))


@contextmanager
def _many_graphs() -> Iterator[None]:
    """Lift the limit of graphs per function while they are made: torch's own, 8, is for shapes that change without end."""
    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
        yield
