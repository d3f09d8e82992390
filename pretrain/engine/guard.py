"""Refuses steps whose loss or gradients are not finite, and stops a run that has too many of them in a row."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from checkpoints.cli import WorkError
from pretrain.engine import distributed
from pretrain.engine.verdict import Verdict

MOST_BAD_STEPS = 20
"""In a row; then the run stops."""


class Attempt(NamedTuple):
    """All that is needed to repeat a step, weights apart."""

    step: int
    batches: Sequence[Any]
    now: Any
    """The schedule's values at this step."""
    random: Tensor
    """State of torch's generator before it."""
    random_cuda: Tensor | None = None
    """State of the GPU's generator, where there is one."""


def cuda_rng_state() -> Tensor | None:
    """Kept on the host by torch: reading it does not wait."""
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else None


@runtime_checkable
class Scored(Protocol):
    """Losses of any training."""

    @property
    def total(self) -> Tensor: ...


class Guard:
    """Refuses steps whose loss or gradients are not finite, so that nothing broken reaches weights, teacher or centres.

    `late`: the verdict stays on the device, so that no step waits for it; the host reads it while the next step is computed,
    and before that one changes anything.
    """

    def __init__(self, refused: Callable[[Attempt], object] = lambda attempt: None, *, late: bool = False) -> None:
        """`refused` is called with every step that was not taken, before weights change again."""
        self.bad_in_a_row = 0
        self.skipped = 0
        self._refused, self._late = refused, late
        self._attempt: Attempt | None = None
        self._pending: tuple[Verdict, Attempt | None] | None = None

    def begin(self, step: int, batches: Sequence[Any], now: Any) -> None:
        """Register the next step, so that it can be repeated if it is refused."""
        self._attempt = Attempt(step, batches, now, torch.get_rng_state(), cuda_rng_state())

    def accepts(self, losses: Scored, norms: Float[Tensor, " tensors"]) -> Verdict:
        """Accepts a step whose loss and gradient norms are finite in all processes; read already unless `late`.

        Raises WorkError after MOST_BAD_STEPS refusals in a row.
        """
        verdict = Verdict(distributed.all_true(torch.isfinite(losses.total) & torch.isfinite(norms).all()))
        self.resolve_pending()
        self._pending = verdict, self._attempt
        if not self._late:
            self.resolve_pending()
        return verdict

    def resolve_pending(self) -> bool:
        """Read the last step's verdict on the host, count and report a refusal; whether the step was taken."""
        if self._pending is None:
            return True
        (verdict, attempt), self._pending = self._pending, None
        accepted = verdict.resolve()
        self.bad_in_a_row = 0 if accepted else self.bad_in_a_row + 1
        self.skipped += not accepted
        if not accepted and attempt is not None:
            self._refused(attempt)
        self._check(attempt is not None)
        return accepted

    def _check(self, written: bool) -> None:
        """Raise WorkError after too many refusals. `written`: the steps were registered, so that `refused` has written them."""
        if self.bad_in_a_row >= MOST_BAD_STEPS:
            replay = "; `python -m pretrain.train --replay FILE` on a refused-*.pt of the run's folder shows where it begins"
            raise WorkError(
                f"loss or gradients were not finite in {MOST_BAD_STEPS} steps in a row: lower --lr, raise --warmup-epochs, or "
                f"give --precision fp32{replay if written else ''} (the last checkpoint is untouched)"
            )
