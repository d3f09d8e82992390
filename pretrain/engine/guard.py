"""Whether a run is well: steps that may not be taken, and how good the features are by now."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from checkpoints.cli import WorkError
from pretrain.engine import distributed

MOST_BAD_STEPS = 20
"""In a row; then the run stops."""


class Attempt(NamedTuple):
    """A step that may turn out refused: all that is needed to repeat it, weights apart."""

    step: int
    batches: Sequence[Any]
    now: Any
    """What the schedule said."""
    random: Tensor
    """State of torch's generator."""


@runtime_checkable
class Scored(Protocol):
    """Losses of any training."""

    @property
    def total(self) -> Tensor: ...


class Guard:
    """Refuses steps whose loss or gradients are not finite, so that nothing broken reaches weights, teacher or centres.

    `late`: the verdict stays on the device, so that no step waits for it; the host reads it while the next step is on its way,
    and before that one changes anything.
    """

    def __init__(self, refused: Callable[[Attempt], object] = lambda attempt: None, *, late: bool = False) -> None:
        """`refused` is called for every step that was not taken, before weights change again."""
        self.bad_in_a_row = 0
        self.skipped = 0
        self._refused, self._late = refused, late
        self._attempt: Attempt | None = None
        self._pending: Verdict | None = None

    def begin(self, step: int, batches: Sequence[Any], now: Any) -> None:
        """The next step to be judged."""
        self._attempt = Attempt(step, batches, now, torch.get_rng_state())

    def accepts(self, losses: Scored, lengths: Float[Tensor, " tensors"]) -> bool | Bool[Tensor, ""]:
        """Whether the step may be taken, given the lengths of its gradients, in any process; on the device where `late`.

        Raises WorkError after MOST_BAD_STEPS refusals in a row.
        """
        accepted = distributed.all_true(torch.isfinite(losses.total) & torch.isfinite(lengths).all())
        self.resolve_pending()
        self._pending = Verdict(accepted, self._attempt)
        return accepted if self._late else self.resolve_pending()

    def resolve_pending(self) -> bool:
        """Read the verdict on the last step if that was not done yet, and act on it; whether it was taken."""
        if self._pending is None:
            return True
        verdict, self._pending = self._pending, None
        accepted = verdict.read()
        self.bad_in_a_row = 0 if accepted else self.bad_in_a_row + 1
        self.skipped += not accepted
        if not accepted and verdict.attempt is not None:
            self._refused(verdict.attempt)
        self._check(verdict.attempt is not None)
        return accepted

    def _check(self, written: bool) -> None:
        """`written`: the steps were given to `begin`, and so `refused` has them."""
        if self.bad_in_a_row >= MOST_BAD_STEPS:
            replay = "; `python -m pretrain.train --replay FILE` on a refused-*.pt of the run's folder shows where it begins"
            raise WorkError(
                f"loss or gradients were not finite in {MOST_BAD_STEPS} steps in a row: lower --lr, raise --warmup-epochs, or "
                f"give --precision fp32{replay if written else ''} (the last checkpoint is untouched)"
            )


class Verdict:
    """A yes or no that is on its way from the device to the host."""

    def __init__(self, accepted: Bool[Tensor, ""], attempt: Attempt | None) -> None:
        self.attempt = attempt
        self._answer, self._arrived = accepted.detach(), None
        if accepted.is_cuda:
            self._answer = torch.empty((), dtype=torch.bool, pin_memory=True)  # a copy to other memory would wait
            self._answer.copy_(accepted, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> bool:
        """Waits for that step's backward, not for what was begun since."""
        if self._arrived:
            self._arrived.synchronize()
        return bool(self._answer)
