"""Three steps of a tiny network in every process that torchrun started; the weights and two numbers into a file.

torchrun ... -m tests.support.programs.train_in_processes OUT shard|whole
"""

import sys

import torch

from pretrain.batches import masking
from pretrain.batches.dataset import Batch
from pretrain.engine import distributed, optim
from pretrain.engine.guard import Guard
from pretrain.engine.precision import Precision
from pretrain.method.schedule import ScheduleValues
from pretrain.run.diagnostics import diagnostics_of
from pretrain.train import LossWeights, train_step
from tests.support.networks import student_and_teacher


def train(device: torch.device) -> None:
    student, teacher = student_and_teacher()
    if sys.argv[2] == "shard":
        for network in (student, teacher):
            distributed.shard_(network, network.backbone.blocks, device)
    optimizer, guard = optim.build_optimizer("sgd", student), Guard()
    parallel = distributed.parallel(student, device)
    rank, processes = distributed.rank(), distributed.world_size()
    for step in range(3):
        torch.manual_seed(step)
        crops, grid, local = torch.randn(2, 8, 3, 24, 24), torch.rand(2, 8, 3, 3) < 0.3, torch.randn(2, 8, 3, 16, 16)
        mine = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
        batch = Batch(crops[:, mine], masking.as_masks(grid[:, mine]), local[:, mine])
        now = ScheduleValues(0, 0.1, 0.1, 0.9, 0.04, 0.07, step == 0, True)
        outcome = train_step(parallel, teacher, optimizer, [batch], now, LossWeights(), guard, Precision("fp32", device))
    measured = diagnostics_of(student, teacher, outcome.losses, outcome.student, outcome.teacher, outcome.targets, 1.0)
    weights = distributed.full_tensor({"s": student.state_dict(), "t": teacher.state_dict()})
    if distributed.is_main():
        numbers = {"gradient": outcome.gradient, "apart": measured.teacher_distance}
        torch.save({f"{who}.{k}": v for who, state in weights.items() for k, v in state.items()} | numbers, sys.argv[1])


if __name__ == "__main__":
    with distributed.processes() as device:
        train(device)  # a function, so that nothing holds on to the processes' connection when it is closed
