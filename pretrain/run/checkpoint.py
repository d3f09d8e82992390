"""A pretraining run: its checkpoints, and how it is taken up again. The folder itself is `pretrain/engine/run_folder.py`."""

import time
from collections.abc import Mapping
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
from pretrain.setup.plan import Plan


class Run(RunFolder):
    """One training in one folder. Only the main process writes."""

    def __init__(self, plan: Plan, steps_per_epoch: int, tokenizer: str = "", images: Mapping[str, str] | None = None) -> None:
        """`tokenizer`: a digest of what --tokenizer names; `images`: what is remembered of the data."""
        run = plan.options.run
        super().__init__(plan.folder, as_values(plan.options), steps_per_epoch, run.save_minutes, run.track)
        self.plan, self.tokenizer, self.images = plan, tokenizer, images or {}

    def resume(
        self, student: Student, teacher: Teacher, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> list[str]:
        """Put everything back as the newest whole checkpoint has it, if there is one; what the user should know of it.

        Raises UserError when the run was started with other options and these may not change.
        """
        found = store.load_run(self.folder)
        if found is None:
            return []
        state = found.state
        if state.get("format") != store.FORMAT:
            raise UserError(f"{found.path} is not a checkpoint of this project: give another --out")
        checked.run(state, str(found.path), store.VERSION)
        remarks = [f"{found.passed_over}: {found.path} is used"] if found.passed_over else []
        remarks += self._other_options(state)
        _load(student, state["student"], found.path, ": the student")
        centres = {f"centres.{name}": centre for name, centre in state["centres"].items()}
        _load(teacher, {**state["teacher"], **centres}, found.path, ": the teacher")
        optimizer_name = self.plan.options.optimisation.optimizer
        other = state["config"].get("optimizer", optimizer_name) != optimizer_name
        restore_(optimizer, state["optimizer"], f"{found.path}: optimizer", other=other)
        set_scaler_state(scaler, state.get("scaler", {}))
        self.step = round(state["step"] * self.steps_per_epoch / state["steps_per_epoch"])
        if len(state["random"]) == distributed.world_size():
            set_random_states(state["random"][distributed.rank()], found.path)
        return remarks + self._derive(state, student.backbone.shape, found.path)

    def _derive(self, state: Mapping[str, Any], shape: Architecture, source: Path) -> list[str]:
        """Write the teacher's backbone anew unless it is this checkpoint's: a kill can come between the two files."""
        path, weights = self.folder / store.BACKBONE, backbone_part(state["teacher"])
        if not distributed.is_main() or _holds(path, weights, state["step"]):
            return []
        _save_backbone(path, weights, backbone_about(shape, state["step"], state["steps_per_epoch"]))
        return [f"{path} was not of {source.name}, after step {state['step']}: written anew"]

    def _other_options(self, state: Mapping[str, Any]) -> list[str]:
        """In what this run differs from the stored one, as remarks. Raises UserError for what nobody allowed."""
        chosen = self.plan.options
        found, allowed = differences(self.values, state["config"]), chosen.run.allow_config_change
        changed = list(found.values())
        fixed = [words for name, words in found.items() if name in NEVER_TO_CHANGE]
        if fixed and allowed:
            raise UserError(
                f"{self.folder} holds a run with other weights ({'; '.join(fixed)}): these options cannot change; give them as "
                f"they were, or another --out, where --init-from {self.folder} begins with what fits"
            )
        if state.get("tokenizer", "") != self.tokenizer and not changed:
            changed = [f"what --tokenizer {chosen.loss.tokenizer} names is another file now"]
        known = identity.remembered(state.get("data", {}), f"{self.folder}: data")
        images = [] if "data" in found else identity.differences(self.images, known)
        if (changed or images) and not allowed:
            what = "options" if changed else "images"
            words = "; ".join([*changed, *(f"--data {chosen.images.data} has {one}" for one in images)])
            raise UserError(
                f"{self.folder} holds a run with other {what} ({words}): give the same, another --out to begin a new run, or "
                "--allow-config-change true to go on with what there is now"
            )
        remarks = [f"options have changed: {'; '.join(changed)}"] if changed else []
        remarks += [f"the images have changed: {'; '.join(images)}"] if images else []
        if self.images and not known:
            remarks.append(
                "the checkpoint is of a version that did not look at the images: whether they have changed is not known"
            )
        now, before = distributed.world_size(), state["processes"]
        if now != before:
            remarks.append(
                f"there were {before} processes, now {now}: weights, optimizer and centres go on exactly, but the images of a "
                "step, their crops and the dropped paths are drawn anew; steps are counted by epochs"
            )
        elif state["steps_per_epoch"] != self.steps_per_epoch and not allowed:
            raise UserError(
                f"{self.folder} was run with {state['steps_per_epoch']} steps an epoch, now there are {self.steps_per_epoch}: "
                "the data has changed; give another --out to begin a new run, or --allow-config-change true to go on"
            )
        return remarks

    def save(
        self, step: int, student: Student, teacher: Teacher, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Write the checkpoint and the teacher's backbone; all processes call it together. Raises WorkError if it cannot."""
        self._saved_at = time.monotonic()
        states = distributed.gathered([random_states()])
        mine, weights, moments = (distributed.full_tensor(part.state_dict()) for part in (student, teacher, optimizer))
        if not distributed.is_main():
            return
        centres = teacher.centres.state_dict()
        shape = student.backbone.shape
        state = {
            "student": mine,
            "teacher": {name: weight for name, weight in weights.items() if not name.startswith("centres.")},
            "centres": centres,
            "optimizer": moments,
            "scaler": scaler.state_dict(),
            "step": step,
            "steps_per_epoch": self.steps_per_epoch,
            "processes": distributed.world_size(),
            "random": states,
            "config": dict(self.values),
            "tokenizer": self.tokenizer,
            "data": dict(self.images),
            "shape": shape._asdict(),
        }
        folder = self.here()
        store.save_run(folder, state)
        epoch, rest = divmod(step, self.steps_per_epoch)
        keep_every = self.plan.options.run.keep_every
        if keep_every and epoch and not rest and epoch % keep_every == 0:
            store.keep(folder, epoch)
        _save_backbone(folder / store.BACKBONE, backbone_part(weights), backbone_about(shape, step, self.steps_per_epoch))


def _save_backbone(path: Path, weights: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Raises WorkError where it cannot be written."""
    try:
        places.refuse_link(path)
        store.save_backbone(path, weights, about)
    except OSError as error:
        raise WorkError(store.cannot_write(path, error)) from error


def _holds(path: Path, weights: Mapping[str, Any], step: int) -> bool:
    """Whether a backbone file is whole, of this step and of these weights."""
    try:
        found, metadata = store.read_safetensors(path)
    except UserError:
        return False
    about = metadata.get("about", {})
    same = isinstance(about, dict) and about.get("step") == step and found.keys() == weights.keys()
    return same and all(torch.equal(found[name], weights[name].cpu()) for name in found)


def backbone_about(shape: Architecture, step: int, steps_per_epoch: int) -> dict[str, Any]:
    """What a backbone file says of itself."""
    return {"method": "iBOT", "key": "teacher", "shape": shape._asdict(), "epoch": step // steps_per_epoch, "step": step}


def _load(module: nn.Module, weights: Mapping[str, Any], path: Path, what: str) -> None:
    """Whole weights into a module that may be spread over processes. Raises UserError naming those that do not fit."""
    refuse_misfits(module, weights, path, what)
    have = module.state_dict()
    module.load_state_dict({name: distributed.shard(weight, have.get(name, weight)) for name, weight in weights.items()})
