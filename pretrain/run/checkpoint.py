"""A pretraining run's checkpoints: saving and resuming. The folder itself is `pretrain/engine/run_folder.py`.

On a GPU and of a sharded run the main process copies everything into its own memory, and a thread writes it while the training
goes on (`pretrain/run/writing.py`). A CPU's cores are the step's, so there the loop writes.
"""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from checkpoints import checked, places, store
from checkpoints.architecture import Architecture
from checkpoints.cli import UserError, WorkError
from checkpoints.resolve import backbone_part, refuse_misfits
from pretrain.engine import distributed
from pretrain.engine.optim import restore_
from pretrain.engine.options import as_values
from pretrain.engine.run_folder import RunFolder, random_states, set_random_states, set_scaler_state
from pretrain.images import identity
from pretrain.method.ibot import Student, Teacher
from pretrain.options.stored import NEVER_TO_CHANGE, differences
from pretrain.run.writing import Writer
from pretrain.setup.plan import Plan


class Run(RunFolder):
    """One training in one folder. Only the main process writes."""

    def __init__(self, plan: Plan, steps_per_epoch: int, tokenizer: str = "", images: Mapping[str, str] | None = None) -> None:
        """`tokenizer`: digest of the file of --tokenizer; `images`: identity of the data (`pretrain.images.identity`)."""
        run = plan.options.run
        super().__init__(plan.folder, as_values(plan.options), steps_per_epoch, run.save_minutes, run.track)
        self.plan, self.tokenizer, self.images = plan, tokenizer, images or {}
        self.writer = Writer()

    def resume(
        self, student: Student, teacher: Teacher, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> list[str]:
        """Restore everything from the newest intact checkpoint, if there is one; returns notes for the user.

        Raises UserError if the run was started with other options that may not change.
        """
        loaded = store.load_run(self.folder)
        if loaded is None:
            return []
        state = loaded.state
        if state.get("format") != store.FORMAT:
            raise UserError(f"{loaded.path} is not a checkpoint of this project: give another --out")
        checked.run(state, str(loaded.path), store.VERSION)
        notes = [f"{loaded.passed_over}: {loaded.path} is used"] if loaded.passed_over else []
        notes += self._other_options(state)
        _load(student, state["student"], loaded.path, ": the student")
        centres = {f"centres.{name}": centre for name, centre in state["centres"].items()}
        _load(teacher, {**state["teacher"], **centres}, loaded.path, ": the teacher")
        optimizer_name = self.plan.options.optimisation.optimizer
        other = state["config"].get("optimizer", optimizer_name) != optimizer_name
        restore_(optimizer, state["optimizer"], f"{loaded.path}: optimizer", other=other)
        set_scaler_state(scaler, state.get("scaler", {}))
        self.step = round(state["step"] * self.steps_per_epoch / state["steps_per_epoch"])
        if len(state["random"]) == distributed.world_size():
            set_random_states(state["random"][distributed.rank()], loaded.path)
        return notes + self._derive(state, student.backbone.shape, loaded.path)

    def _derive(self, state: Mapping[str, Any], shape: Architecture, source: Path) -> list[str]:
        """Rewrite the teacher's backbone unless it is this checkpoint's: a kill can come between the two files."""
        path, weights = self.folder / store.BACKBONE, backbone_part(state["teacher"])
        if not distributed.is_main() or _holds(path, weights, state["step"]):
            return []
        _save_backbone(path, weights, backbone_about(shape, state["step"], state["steps_per_epoch"]))
        return [f"{path} was not of {source.name}, after step {state['step']}: written anew"]

    def _other_options(self, state: Mapping[str, Any]) -> list[str]:
        """Notes on how this run's options differ from the stored ones. Raises UserError for differences that are not allowed."""
        chosen = self.plan.options
        differing, allowed = differences(self.values, state["config"]), chosen.run.allow_config_change
        changed = list(differing.values())
        fixed = [words for name, words in differing.items() if name in NEVER_TO_CHANGE]
        if fixed and allowed:
            raise UserError(
                f"{self.folder} holds a run with other weights ({'; '.join(fixed)}): these options cannot change; give them as "
                f"they were, or another --out, where --init-from {self.folder} begins with what fits"
            )
        if state.get("tokenizer", "") != self.tokenizer and not changed:
            changed = [f"what --tokenizer {chosen.loss.tokenizer} names is another file now"]
        known = identity.remembered(state.get("data", {}), f"{self.folder}: data")
        images = [] if "data" in differing else identity.differences(self.images, known)
        if (changed or images) and not allowed:
            what = "options" if changed else "images"
            words = "; ".join([*changed, *(f"--data {chosen.images.data} has {difference}" for difference in images)])
            raise UserError(
                f"{self.folder} holds a run with other {what} ({words}): give the same, another --out to begin a new run, or "
                "--allow-config-change true to go on with what there is now"
            )
        notes = [f"options have changed: {'; '.join(changed)}"] if changed else []
        notes += [f"the images have changed: {'; '.join(images)}"] if images else []
        if self.images and not known:
            notes.append("the checkpoint is of a version that did not look at the images: whether they have changed is not known")
        now, before = distributed.world_size(), state["processes"]
        if now != before:
            notes.append(
                f"there were {before} processes, now {now}: weights, optimizer and centres go on exactly, but the images of a "
                "step, their crops and the dropped paths are drawn anew; steps are counted by epochs"
            )
        elif state["steps_per_epoch"] != self.steps_per_epoch and not allowed:
            raise UserError(
                f"{self.folder} was run with {state['steps_per_epoch']} steps an epoch, now there are {self.steps_per_epoch}: "
                "the data has changed; give another --out to begin a new run, or --allow-config-change true to go on"
            )
        return notes

    def time_to_save(self, step: int) -> bool:
        """As of any training. Raises what the thread that writes the last checkpoint has met, if it has ended."""
        self.writer.look()
        return super().time_to_save(step)

    def save(
        self, step: int, student: Student, teacher: Teacher, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Write the checkpoint and the teacher's backbone; all processes call it together. Raises WorkError if it cannot.

        Where `in_background`, they are written when `writer.wait` has returned, and what that meets is raised there or by the
        next save.
        """
        self.writer.wait()  # so that no more than one copy is held
        self._saved_at = time.monotonic()
        states = distributed.gathered([random_states()])
        behind = in_background(student)
        gather = distributed.copied if behind else distributed.full_tensor
        student_weights, teacher_weights, moments = (gather(part.state_dict()) for part in (student, teacher, optimizer))
        if not distributed.is_main():
            return
        mark = "centres."
        state = {
            "student": student_weights,
            "teacher": {name: weight for name, weight in teacher_weights.items() if not name.startswith(mark)},
            "centres": {name[len(mark) :]: centre for name, centre in teacher_weights.items() if name.startswith(mark)},
            "optimizer": moments,
            "scaler": scaler.state_dict(),
            "step": step,
            "steps_per_epoch": self.steps_per_epoch,
            "processes": distributed.world_size(),
            "random": states,
            "config": dict(self.values),
            "tokenizer": self.tokenizer,
            "data": dict(self.images),
            "shape": student.backbone.shape._asdict(),
        }
        write = partial(self._write, state, backbone_about(student.backbone.shape, step, self.steps_per_epoch))
        if behind:
            self.writer.begin(write)
        else:
            write()

    def _write(self, state: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """The files of a checkpoint. Raises WorkError."""
        folder = self.here()
        store.save_run(folder, state)
        epoch, rest = divmod(state["step"], self.steps_per_epoch)
        keep_every = self.plan.options.run.keep_every
        if keep_every and epoch and not rest and epoch % keep_every == 0:
            store.keep(folder, epoch)
        _save_backbone(folder / store.BACKBONE, backbone_part(state["teacher"]), about)


def in_background(student: Student) -> bool:
    """Whether a thread writes checkpoints: on a GPU, and where they are gathered from shards."""
    return distributed.is_sharded(student) or next(student.parameters()).is_cuda


def _save_backbone(path: Path, weights: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a backbone file. Raises WorkError if it cannot be written."""
    try:
        places.refuse_link(path)
        store.save_backbone(path, weights, about)
    except OSError as error:
        raise WorkError(store.cannot_write(path, error)) from error


def _holds(path: Path, weights: Mapping[str, Any], step: int) -> bool:
    """Whether a backbone file is intact and holds these weights of this step."""
    try:
        stored, metadata = store.read_safetensors(path)
    except UserError:
        return False
    about = metadata.get("about", {})
    same = isinstance(about, dict) and about.get("step") == step and stored.keys() == weights.keys()
    return same and all(torch.equal(stored[name], weights[name].cpu()) for name in stored)


def backbone_about(shape: Architecture, step: int, steps_per_epoch: int) -> dict[str, Any]:
    """Metadata of a backbone file."""
    return {"method": "iBOT", "key": "teacher", "shape": shape._asdict(), "epoch": step // steps_per_epoch, "step": step}


def _load(module: nn.Module, weights: Mapping[str, Any], path: Path, what: str) -> None:
    """Load full weights into a module that may be sharded. Raises UserError naming those that do not fit."""
    refuse_misfits(module, weights, path, what)
    have = module.state_dict()
    module.load_state_dict({name: distributed.shard(weight, have.get(name, weight)) for name, weight in weights.items()})
