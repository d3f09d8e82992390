"""A tiny run whose checkpoints are written by the thread, without a GPU."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from pretrain.engine import optim
from pretrain.method.ibot import Student, Teacher
from pretrain.options.command_line import read_command_line
from pretrain.run import checkpoint
from pretrain.setup.plan import plan_of
from tests.support.networks import student_and_teacher


class Saving(NamedTuple):
    run: checkpoint.Run
    student: Student
    teacher: Teacher
    optimizer: torch.optim.Optimizer

    def at(self, step: int) -> None:
        """Save as after this step."""
        self.run.save(step, self.student, self.teacher, self.optimizer, torch.amp.GradScaler("cpu", enabled=False))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of them."""
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}


def saved_by_thread(folder: Path) -> Saving:
    """The run in this folder, one optimizer step done. The caller puts `checkpoint.in_background` back."""
    checkpoint.in_background = lambda student: True
    student, teacher = student_and_teacher()
    optimizer = optim.build_optimizer("adamw", student)
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    run = checkpoint.Run(plan_of(read_command_line(["--data", "sample", "--out", str(folder)])), steps_per_epoch=5)
    run.begin()
    return Saving(run, student, teacher, optimizer)
