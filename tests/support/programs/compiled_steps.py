"""Training steps with compiled blocks, and what of them was compiled: one JSON line.

    python -m tests.support.programs.compiled_steps BACKEND STEPS FLAGS...      BACKEND: inductor, aot_eager, broken or late

`broken` is a compiler that fails at once, `late` one that fails in the first step. It runs in a process of its own: the checks of
shapes that tests install would be compiled too.
"""

import functools
import json
import sys
import warnings
from types import CodeType, FrameType
from typing import Any

import numpy as np
import timm.models.eva
import timm.models.vision_transformer
import torch
from torch._dynamo.backends.debugging import aot_eager

from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.engine import optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.method import ibot
from pretrain.method.objective import LossWeights
from pretrain.models import compiling, packed_blocks, swin
from pretrain.options.command_line import read_command_line
from pretrain.setup.networks import build, compile_networks
from pretrain.setup.objective import objective_of
from pretrain.setup.plan import Plan, plan_of
from pretrain.train import train_step

BLOCKS: set[CodeType] = {
    ibot.student_logits.__code__,
    ibot.teacher_logits.__code__,
    ibot.targets_and_losses.__code__,
    packed_blocks.run.__code__,
    swin.run.__code__,
    timm.models.vision_transformer.Block.forward.__code__,
    timm.models.eva.EvaBlock.forward.__code__,
}


TRIED = 5
"""Graphs of the trial of a ViT: blocks and head of each network, losses."""


class Calls:
    """Counts the blocks, heads and losses whose Python code runs while it is open: compiled ones have none."""

    def __init__(self) -> None:
        self.count = 0

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        self.count += event == "call" and frame.f_code in BLOCKS

    def __enter__(self) -> "Calls":
        sys.setprofile(self._look)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)


class Failing:
    """A compiler that fails: for the first graphs or only for later ones."""

    def __init__(self, good: int) -> None:
        self.good = good

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.good -= 1
        if self.good < 0:
            raise RuntimeError("no compiler here")
        return aot_eager(graph, inputs)


def random_batch(plan: Plan, seed: int, images: int) -> Batch:
    crops, generator = plan.options.crops, torch.Generator().manual_seed(seed)
    sizes = ((crops.global_crops_number, crops.global_crops_size), (crops.local_crops_number, crops.local_crops_size))
    seen, local = (torch.randn(number, images, 3, size, size, generator=generator) for number, size in sizes)
    return Batch(
        seen, masking.draw(np.random.default_rng(seed), plan.masks, crops.global_crops_number, images, *plan.grid), local
    )


def main() -> None:
    warnings.simplefilter("ignore")
    backend, steps, *flags = sys.argv[1:]
    chosen: Any = {"broken": Failing(0), "late": Failing(TRIED)}.get(backend, backend)
    torch.compile = functools.partial(torch.compile, backend=chosen)
    device, plan = torch.device("cpu"), plan_of(read_command_line(["--data", "x", *flags]))
    precision = Precision(plan.options.machine.precision, device)
    student, teacher = build(
        plan, plan.architecture, fused=precision.fused_attention, residual=plan.residual(precision.name, device)
    )
    student.train()
    teacher.train()
    optimizer, guard, schedule = optim.build_optimizer("adamw", student), Guard(), plan.schedule(1000, 1)
    objective = objective_of(plan, plan.architecture, device)
    torch.manual_seed(0)
    notes = compile_networks(plan, device, precision, student, teacher, objective)
    made, losses, eager = [compiling.graphs_made()], [], []
    images = plan.options.optimisation.batch_size_per_gpu
    for step in range(int(steps)):
        count = images - 1 if backend == "late" else images  # another number of images is another graph
        with Calls() as calls:
            batch = random_batch(plan, step, count)
            now = schedule.at(60_000)._replace(cls_temperature=0.04 + 0.001 * step, patch_temperature=0.07 - 0.001 * step)
            output = train_step(student, teacher, optimizer, [batch], now, LossWeights(), guard, precision, objective)
        eager.append(calls.count)
        losses.append(output.losses.total.item())
    made.append(compiling.graphs_made())
    for network in (student, teacher):
        network.backbone.eval()
        for count in (images, images + 1):
            with torch.inference_mode():
                network.backbone(torch.zeros(count, 3, *[plan.options.crops.global_crops_size] * 2))
    made.append(compiling.graphs_made())
    print(json.dumps({"notes": notes, "graphs": made, "losses": losses, "eager": eager}))


if __name__ == "__main__":
    main()
