"""Heads and losses through torch.compile: one graph each, for the shapes of a trial before the first step.

Masked patches are padded to a bound (`Masks.padded`), so that steps have the same shapes; temperatures come as tensors. A step
with other shapes (no masks yet, more masked patches than the bound) is computed without the graphs.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pretrain.method import ibot
from pretrain.method.ibot import Student, Teacher
from pretrain.method.objective import Objective
from pretrain.models.compiling import Compiled, graphs_made, try_once, why_failed

WHAT = "heads and losses"


class CompiledPart(Compiled):
    """A function compiled for the kinds of arguments that it has until `tried`; others go the plain way."""

    WHAT = WHAT

    def __init__(self, plain: Callable[..., Any]) -> None:
        super().__init__(plain)
        self._known = set[object]()

    def __call__(self, *arguments: Any) -> Any:
        kind = _kind(arguments)
        if not self.tried:
            self._known.add(kind)
        return super().__call__(*arguments) if kind in self._known else self.plain(*arguments)


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
    try:
        try_once(student, trial)
    except Exception as error:
        student.logits, teacher.logits = ibot.student_logits, ibot.teacher_logits
        objective.judge = objective.padded_to = None
        return f"{WHAT} are not compiled ({why_failed(error)})"
    for part in parts:
        part.tried = True
    made, what = graphs_made() - before, WHAT if objective.is_plain else "heads"
    return f"{what} compiled as {made} graph{'s' if made != 1 else ''} in {time.perf_counter() - began:.0f} s"
