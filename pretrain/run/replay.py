"""A step whose loss or gradients were not finite: written to a file, and repeated to see which part is first to be wrong.

`python -m pretrain.train --replay runs/NAME/refused-000123.pt`; of a run with --tokenizer, give that too: a path in the file is
followed only to a file beside it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoints import checked, store, terminal
from checkpoints.architecture import stored_architecture
from checkpoints.cli import DONE, UserError, WorkError
from checkpoints.resolve import refuse_misfits
from checkpoints.store import first_line
from pretrain.batches import masking
from pretrain.batches.dataset import Batch, Placed
from pretrain.engine import distributed, guard
from pretrain.engine.precision import Precision
from pretrain.method import ibot
from pretrain.method.objective import Objective, forward_and_losses
from pretrain.method.schedule import ScheduleValues
from pretrain.options.stored import from_values
from pretrain.run.checkpoint import Run
from pretrain.setup.networks import build
from pretrain.setup.objective import objective_of
from pretrain.setup.plan import plan_of
from pretrain.tokenizers import open as tokenizer_open

FORMAT = "ibot-refused-step"
PARTS = ("step", "now", "precision", "random", "batches", "student", "teacher", "shape", "fused", "config")
MOST = 3
"""Files in a run's folder: each holds both networks and a batch."""
SHOWN = 5


class Capture:
    """Writes a refused step of one run, with all that is needed to repeat this process's share of it."""

    def __init__(self, run: Run, precision: str, student: ibot.Student, teacher: ibot.Teacher) -> None:
        self._run, self._precision, self._student, self._teacher = run, precision, student, teacher

    def __call__(self, attempt: guard.Attempt) -> Path | None:
        """The file; None where the folder has MOST of them, and under fp16, which finds its loss scale by refused steps."""
        if self._precision == "fp16":
            return None
        self._run.writer.wait()  # both hold whole networks; and a run that ends here has its last checkpoint
        step, folder = attempt.step, self._run.folder
        student, teacher = (distributed.full_tensor(network.state_dict()) for network in (self._student, self._teacher))
        if len(list(folder.glob("refused-*.pt"))) >= MOST:
            return None
        path = folder / f"refused-{step:06d}-{distributed.rank()}.pt"
        content = {
            "format": FORMAT,
            "step": step,
            "now": attempt.now._asdict(),
            "precision": self._precision,
            "random": attempt.random,
            **({} if attempt.random_cuda is None else {"random_cuda": attempt.random_cuda}),
            "batches": [_as_values(batch) for batch in attempt.batches],
            "student": student,
            "teacher": teacher,
            "shape": self._student.backbone.shape._asdict(),
            "fused": self._student.backbone.fused,
            "config": dict(self._run.values),
        }
        store.save_file(path, content)
        self._run.note(step, {"refused_step": step, "replay": str(path)})
        return path


def _as_values(batch: Batch) -> dict[str, Tensor]:
    """The tensors that the losses depend on, by name: a file of weights holds no nested tuples."""
    values = {"crops": batch.crops, "local_crops": batch.local_crops, "grid": batch.masks.grid}
    if batch.placed is not None:
        values |= batch.placed._asdict()
    return values | ({"local_grid": batch.local_masks.grid} if batch.local_masks is not None else {})


def _as_batch(values: Mapping[str, Tensor]) -> Batch:
    placed = Placed(values["box"], values["flip"]) if "box" in values else None
    local = masking.as_masks(values["local_grid"]) if "local_grid" in values else None
    return Batch(values["crops"], masking.as_masks(values["grid"]), values["local_crops"], (), placed, local)


def show(path: Path, tokenizer: str | None = None) -> int:
    """Repeat the step and print what is not finite, in order of computation; returns an exit code.

    On a GPU if the step was computed on one and this machine has one, else on the CPU.
    `tokenizer` is --tokenizer of this command line. Raises UserError for a file that is not a refused step.
    """
    state = store.read_torch(path)
    if state.get("format") != FORMAT:
        raise UserError(f"{path} is not a refused step: give a refused-*.pt of a run's folder")
    try:
        return _shown(checked.mapping(state, str(path), PARTS), path, tokenizer)
    except (UserError, WorkError):
        raise
    except Exception as error:  # whatever parts that do not go together lead to
        raise UserError(f"{path} cannot be repeated: its parts do not go together ({first_line(error)})") from error


def _shown(state: Mapping[str, Any], path: Path, tokenizer: str | None) -> int:
    student, teacher, objective = _networks(state, path, tokenizer)
    console = terminal.Console(soft_wrap=True)
    console.print(f"step {state['step']} of {path}, learning rate {state['now']['lr']:.3g}, {state['precision']}")
    if "random_cuda" in state and _device(state).type == "cpu":
        console.print("it was computed on a GPU, and there is none here: repeated on the CPU")
    findings: list[str] = []
    for number, values in enumerate(state["batches"], start=1):
        for name in ("crops", "local_crops"):
            _look(f"{name} of batch {number}, as they came from the loader", values[name], findings)
    for name, network in (("student", student), ("teacher", teacher)):
        for key, weight in network.state_dict().items():
            _look(f"{name} weight {key}", weight, findings)
        _watch(name, network, findings)
    losses = _losses(state, student, teacher, objective)
    for name, loss in losses._asdict().items():
        _look(f"loss {name}", loss, findings)
    for key, parameter in student.named_parameters():
        if parameter.grad is not None:
            _look(f"gradient of {key}", parameter.grad, findings)
    console.print(f"losses: [CLS] {losses.cls.item():.4f}, patch {losses.patch.item():.4f}")
    if not findings:
        console.print("everything is finite here: the step went wrong by this machine's or precision's own rounding")
    else:
        console.print(f"not finite, first things first ({len(findings)} in all):")
        for finding in findings[:SHOWN]:
            console.print(f"  {finding}")
    return DONE


def _device(state: Mapping[str, Any]) -> torch.device:
    """A step of a GPU is repeated on one, where there is one, with the same random numbers."""
    return torch.device("cuda" if "random_cuda" in state and torch.cuda.is_available() else "cpu")


def _networks(state: Mapping[str, Any], path: Path, given: str | None) -> tuple[ibot.Student, ibot.Teacher, Objective]:
    recorded = checked.mapping(state["config"], f"{path}: config")
    values: dict[str, Any] = {**recorded, "init_from": None, "out": None, "replay": None}
    stored = values.get("tokenizer")
    values["tokenizer"] = given if given or stored is None else tokenizer_open.from_file(stored, file=path)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    plan = plan_of(from_values(**values))
    shape = stored_architecture(state["shape"], str(path))
    objective = objective_of(plan, shape, _device(state))
    build_ = partial(build, plan, shape, fused=bool(state["fused"]), patch_prototypes=objective.patch_prototypes)
    with torch.device("meta"):
        outlines = build_()
    for name, outline in zip(("student", "teacher"), outlines, strict=True):
        refuse_misfits(outline, checked.mapping(state[name], f"{path}: {name}"), path, f": the {name}")
    student, teacher = build_()
    student.load_state_dict(state["student"])
    teacher.load_state_dict(state["teacher"])
    return student.to(_device(state)).train(), teacher.to(_device(state)).train(), objective


def _losses(state: Mapping[str, Any], student: ibot.Student, teacher: ibot.Teacher, objective: Objective) -> ibot.Losses:
    """The step's losses by the loop's own acts, from the same random state; gradients are left in the student."""
    now, config, batches = ScheduleValues(**state["now"]), state["config"], state["batches"]
    name = "fp32" if state["precision"] == "tf32" else state["precision"]  # a GPU's alone
    device = _device(state)
    precision = Precision(state["precision"] if device.type == "cuda" else name, device)
    torch.set_rng_state(state["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["random_cuda"])
    parts = []
    for values in batches:
        batch = _as_batch(values).to(device)
        output = forward_and_losses(
            student, teacher, batch, now, precision, objective, config["lambda_cls"], config["lambda_patch"]
        )
        (output.losses.total / len(batches)).backward()
        parts.append((output.losses, output.targets))
    return ibot.merge_micro_batches(parts)[0]


def _look(name: str, values: Tensor, findings: list[str]) -> None:
    """Add a line to the findings if some values are not finite."""
    if values.is_floating_point() and not bool(values.isfinite().all()):
        share = 100 * (1 - values.isfinite().double().mean().item())
        findings.append(f"{name} {list(values.shape)}: {share:.3g} % is not finite")


def _watch(name: str, network: nn.Module, findings: list[str]) -> None:
    """Check the output of every leaf module in the following forwards."""

    def hook(part: str) -> Callable[..., None]:
        def check_output(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                _look(f"{name}: output of {part} ({type(module).__name__})", output, findings)

        return check_output

    for part, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(hook(part))
