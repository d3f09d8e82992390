"""Heads and losses through torch.compile: one graph each, for the shapes of a trial before the first step.

Masked patches are padded to a bound (`Masks.padded`), so that steps have the same shapes; temperatures come as tensors. A step
with other shapes (no masks yet, more masked patches than the bound) is computed without the graphs.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from checkpoints import terminal
from checkpoints.store import first_line
from pretrain.method import ibot
from pretrain.method.ibot import Student, Teacher
from pretrain.method.objective import Objective
from pretrain.models.compiling import graphs_made

WHAT = "heads and losses"


class CompiledPart:
    """A function compiled whole for the kinds of arguments that it has until `tried`; others, and failures, go the plain way."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.tried = False
        self._plain, self._known = plain, set[object]()
        self._run: Callable[..., Any] = torch.compile(plain, fullgraph=True, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        kind = _kind(arguments)
        if not self.tried:
            self._known.add(kind)
            return self._run(*arguments)
        if self._run is self._plain or kind not in self._known:
            return self._plain(*arguments)
        try:
            return self._run(*arguments)
        except Exception as error:  # compilers fail in many ways, and none of them should stop a run
            self._run = self._plain
            found = self._plain(*arguments)  # an error of the function itself is raised here
            terminal.say(f"note: {WHAT} are not compiled any more ({_why(error)})", error=True)
            return found


def _kind(arguments: Any) -> object:
    """What a graph depends on: shapes and types, and whether gradients are kept."""
    leaves = tree_leaves(arguments)
    return torch.is_grad_enabled(), tuple((leaf.shape, leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor))


def compile_method(student: Student, teacher: Teacher, objective: Objective, bound: int, trial: Callable[[], Tensor]) -> str:
    """Compile both heads and, where they are iBOT's, the losses; pad masked patches to `bound`; run `trial` with its backward.

    `trial` gives the loss of a step as training has it; random numbers, gradients and centres are left as they were. Gives a line
    that says what was compiled and how long it took, or why nothing was; then all is as before.
    """
    if not objective.fixed_shapes:
        return f"{WHAT} are not compiled (with masked local crops each step has other shapes)"
    before, began = graphs_made(), time.perf_counter()
    parts = [CompiledPart(ibot.student_logits), CompiledPart(ibot.teacher_logits)]
    student.logits, teacher.logits = parts
    objective.padded_to = bound
    if objective.is_plain:
        parts.append(CompiledPart(ibot.targets_and_losses))
        objective.judge = parts[-1]
    devices = [parameter.device for parameter in student.parameters() if parameter.is_cuda][:1]
    try:
        with torch.random.fork_rng([device.index or 0 for device in devices]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on itself
            trial().backward()
    except Exception as error:
        student.logits, teacher.logits = ibot.student_logits, ibot.teacher_logits
        objective.judge = objective.padded_to = None
        return f"{WHAT} are not compiled ({_why(error)})"
    finally:
        student.zero_grad(set_to_none=True)
    for part in parts:
        part.tried = True
    made, what = graphs_made() - before, WHAT if objective.is_plain else "heads"
    return f"{what} compiled as {made} graph{'s' if made != 1 else ''} in {time.perf_counter() - began:.0f} s"


def _why(error: Exception) -> str:
    """In one line; of a compiler's error what it came from."""
    return first_line(getattr(error, "inner_exception", error))
