"""A fine-tuning's folder and screen: checkpoints, resuming, the log.

n test images, a predictions.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from timm.utils import ModelEmaV3
from torch import Tensor

from checkpoints import checked, places, store
from checkpoints.cli import UserError, WorkError
from checkpoints.resolve import load_strictly
from pretrain.engine import distributed
from pretrain.engine.console import Screen, clock
from pretrain.engine.optim import restore_
from pretrain.engine.options import as_values
from pretrain.engine.run_folder import RunFolder, random_states, set_random_states, set_scaler_state
from pretrain.images import identity
from pretrain.run.progress import memory
from probes.finetune.model import Classifier, about
from probes.finetune.options import FinetuneOptions, differences

FORMAT = "ibot-finetune"
BEST = "best.safetensors"


class Tested(NamedTuple):
    """Accuracy on the test images after an epoch, in percent."""

    epoch: int
    top1: float
    top5: float
    ema_top1: float | None = None


class Network(NamedTuple):
    """Everything that moves."""

    model: Classifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None


class Run(RunFolder):
    """One fine-tuning with one learning rate. `tests` are all so far, `answers` the predictions of the best and the last epoch,
    `skipped` the number of refused steps."""

    flag = "--folder"

    def __init__(
        self,
        folder: Path,
        options: FinetuneOptions,
        checkpoint: str,
        steps_per_epoch: int,
        images: Mapping[str, str] | None = None,
    ) -> None:
        """`checkpoint`: digest of the file that the weights come from, or the name of what is no file; `images`: the `identity`
        of what it learns from."""
        super().__init__(folder, as_values(options) | {"checkpoint": checkpoint}, steps_per_epoch, options.save_minutes)
        self.options, self.images = options, images or {}
        self.tests: list[Tested] = []
        self.skipped = 0
        self.answers: dict[str, Int[Tensor, "n a"]] = {}

    def time_to_save(self, step: int) -> bool:
        """By the clock alone: with few labels an epoch is a dozen steps."""
        return (time.monotonic() - self._saved_at) / 60 >= self.save_minutes

    def resume(self, network: Network) -> list[str]:
        """Put everything back as the newest whole checkpoint has it, if there is one; what the user should know of it.

        Raises UserError when the folder holds something else, or a run with other options.
        """
        loaded = store.load_run(self.folder)
        if loaded is None:
            return []
        state = loaded.state
        if state.get("format") != FORMAT:
            raise UserError(f"{loaded.path} is not a fine-tuning: give another --folder")
        where = str(loaded.path)
        checked.training(checked.mapping(state, where, ("model", "ema", "tests", "answers")), where, store.VERSION)
        for name in ("model", "ema") if network.ema else ("model",):
            checked.network(state[name], f"{loaded.path}: {name}")
        now = {**self.values, "steps_per_epoch": self.steps_per_epoch}
        changed = differences(now, state["config"] | {"steps_per_epoch": state["steps_per_epoch"]})
        if not changed:
            known = identity.remembered(state.get("data", {}), f"{self.folder}: data")
            changed = [f"--data {self.options.data} has {difference}" for difference in identity.differences(self.images, known)]
        if changed:
            raise UserError(f"{self.folder} holds another run ({'; '.join(changed)}): give the same, or another --folder")
        notes = [f"{loaded.passed_over}: {loaded.path} is used"] if loaded.passed_over else []
        load_strictly(network.model, state["model"], loaded.path)
        restore_(network.optimizer, state["optimizer"], f"{loaded.path}: optimizer")
        if network.ema:
            load_strictly(network.ema.module, state["ema"], loaded.path)
        set_scaler_state(network.scaler, state.get("scaler", {}))
        self.step, self.answers = state["step"], answers_of(state["answers"], network.model.head.out_features, loaded.path)
        self.skipped = checked.count(state.get("skipped", 0), f"{loaded.path}: skipped")
        self.tests = tests_of(state["tests"], loaded.path)
        if len(self.answers) != 2 * bool(self.tests):
            number = f"{len(self.tests)} tests and {len(self.answers)} sets of answers"
            raise UserError(f"{loaded.path} holds {number}: {checked.CURE}")
        if len(state["random"]) == distributed.world_size():
            set_random_states(state["random"][distributed.rank()], loaded.path)
        else:
            notes.append("another number of processes: weights and optimizer go on exactly, what is drawn is drawn anew")
        return notes + self._derive(network, state)

    def _derive(self, network: Network, state: Mapping[str, Any]) -> list[str]:
        """Write the best weights anew where they are missing or another epoch's, and the checkpoint has them."""
        path, shape = self.folder / BEST, network.model.backbone.shape
        if not distributed.is_main() or not self.tests or _epoch_of(path) == self.best().epoch:
            return []
        if self.step != self.best().epoch * self.steps_per_epoch:
            return [f"{path} does not hold the best epoch, {self.best().epoch}, whose weights are gone: the next best one will"]
        classes = [str(name) for name in state.get("classes", ())]
        try:
            places.refuse_link(path)
            store.save_backbone(path, network.model.state_dict(), about(shape, classes, self.options, self.best().epoch))
        except OSError as error:
            raise WorkError(store.cannot_write(path, error)) from error
        return [f"{path} was not of epoch {self.best().epoch}: written anew"]

    def has_best(self) -> bool:
        """Whether there is a file of the best weights; as of all processes, of the main one."""
        return distributed.any_true(distributed.is_main() and (self.here() / BEST).exists())[0]

    def tested(self, test: Tested, answers: Int[Tensor, "n a"]) -> bool:
        """Take down a test; whether it is the best so far."""
        best = all(test.top1 > other.top1 for other in self.tests)
        self.tests.append(test)
        self.answers["last"] = answers
        if best:
            self.answers["best"] = answers
        return best

    def best(self) -> Tested:
        """The test with the highest top-1, the first of equals."""
        return max(self.tests, key=lambda test: test.top1)

    def save(self, step: int, network: Network, classes: list[str], *, best: bool) -> None:
        """Write the checkpoint, and the weights by themselves if they are the best so far; all processes call it together.

        Raises WorkError where that cannot be done.
        """
        self._saved_at = time.monotonic()
        states = distributed.gathered([random_states()])
        if not distributed.is_main():
            return
        shape = network.model.backbone.shape
        state = {
            "format": FORMAT,
            "model": network.model.state_dict(),
            "ema": network.ema.module.state_dict() if network.ema else {},
            "optimizer": network.optimizer.state_dict(),
            "scaler": network.scaler.state_dict(),
            "step": step,
            "steps_per_epoch": self.steps_per_epoch,
            "processes": distributed.world_size(),
            "random": states,
            "tests": [list(test) for test in self.tests],
            "answers": self.answers,
            "skipped": self.skipped,
            "classes": classes,
            "data": dict(self.images),
            "config": self.values,
            "shape": shape._asdict(),
        }
        folder = self.here()
        if best:  # first: a kill before the next file leaves a checkpoint from which this one comes about again
            path = folder / BEST
            try:
                places.refuse_link(path)
                store.save_backbone(path, network.model.state_dict(), about(shape, classes, self.options, self.tests[-1].epoch))
            except OSError as error:
                raise WorkError(store.cannot_write(path, error)) from error
        store.save_run(folder, state)


def _epoch_of(path: Path) -> int | None:
    """Epoch of a file of best weights; None if it is missing or damaged."""
    try:
        about_it = store.read_safetensors(path)[1].get("about", {})
    except UserError:
        return None
    epoch = about_it.get("epoch") if isinstance(about_it, dict) else None
    return epoch if isinstance(epoch, int) else None


def tests_of(value: Any, path: Path) -> list[Tested]:
    """The tests that a checkpoint holds. Raises UserError where they cannot be."""
    where, tests = f"{path}: tests", []
    for test in checked.listed(value, where):
        epoch, *shares = checked.listed(test, where)[:4] or [None]
        ema = shares.pop() if len(shares) == 3 else None
        if len(shares) != 2:
            checked.refuse(where, checked.shown(test), "an epoch and two or three shares")
        top1, top5 = (checked.number(one, where, 0.0, 100.0) for one in shares)
        ema_top1 = None if ema is None else checked.number(ema, where, 0.0, 100.0)
        tests.append(Tested(checked.count(epoch, where), top1, top5, ema_top1))
    return tests


def answers_of(value: Any, classes: int, path: Path) -> dict[str, Int[Tensor, "n a"]]:
    """Predictions of the best and the last test. Raises UserError if they are not indices of these classes."""
    answers = checked.mapping(value, f"{path}: answers")
    for name, table in answers.items():
        checked.one_of(name, f"{path}: answers", ("best", "last"))
        valid = isinstance(table, Tensor) and table.layout == torch.strided and table.dtype == torch.int64 and table.ndim == 2
        if not valid or not table.numel():
            checked.refuse(f"{path}: answers", checked.shown(table), "a table of classes")
        checked.count(int(table.min()), f"{path}: an answer", 0, classes - 1)
        checked.count(int(table.max()), f"{path}: an answer", 0, classes - 1)
    return answers


class Lines(Screen):
    """Screen and log of a fine-tuning."""

    def __init__(self, run: Run, total_steps: int, heading: str, notes: list[str]) -> None:
        super().__init__(run, total_steps)
        self._run, self._total_steps = run, total_steps
        self._console.print(heading)
        for note in notes:
            self.say(note)
        if run.step:
            self._console.print(f"continuing after step {run.step}")
        self._since, self._since_step, self._waited, self._test = time.perf_counter(), run.step, 0.0, ""

    def log(self, done: int, values: Mapping[str, float], waited: float) -> None:
        """One log line and the progress line."""
        seconds, batch = time.perf_counter() - self._since, self._run.options.batch_size
        speed = (done - self._since_step) * batch / max(seconds, 1e-9)
        epoch = done / self._run.steps_per_epoch
        more = {"images_per_second": speed, "data_seconds": waited - self._waited, "memory_mb": memory()}
        self._run.log(done, {"epoch": epoch, **values, **more})
        left = clock((self._total_steps - done) * batch / max(speed, 1e-9))
        self.show(
            done, f"epoch {epoch:.2f}  loss {values['loss']:.3f}  {self._test}{speed:.0f} images/s  {left} and the tests left"
        )
        self._since, self._since_step, self._waited = time.perf_counter(), done, waited

    def tested(self, done: int, test: Tested, seconds: float) -> None:
        """Log a test; its time does not count as training's."""
        values = {"top1": test.top1, "top5": test.top5}
        values |= {"ema_top1": test.ema_top1} if test.ema_top1 is not None else {}
        self._run.log(done, {"epoch": float(test.epoch), **values, "test_seconds": seconds})
        self._test = f"top-1 {test.top1:.1f} %  "
        self._since += seconds
