"""Stops a fine-tuning whose losses or scores are not finite, without a record, naming the step or epoch."""

from jaxtyping import Float
from torch import Tensor, isfinite, stack

from checkpoints.cli import WorkError
from pretrain.engine import distributed, guard
from pretrain.engine.verdict import Verdict

CURE = "lower --lr, raise --warmup-epochs, or give --precision fp32"


class Diverged(WorkError):
    """A learning rate that has no result."""


class Watch(guard.Guard):
    """Refuses steps as in pretraining. A loss that is not finite is an error; gradients that are not, as those of a scaled loss
    in fp16 now and then, are counted and named in the record.
    """

    def __init__(self, step: int, steps_per_epoch: int, *, skipped: int, late: bool) -> None:
        """`step` and `skipped`: how many were done before, and how many of them not taken."""
        super().__init__(late=late)
        self.skipped = skipped
        self._step, self._steps_per_epoch = step, steps_per_epoch
        self._losses: list[Tensor] = []

    def accepts(self, losses: guard.Scored, norms: Float[Tensor, " tensors"]) -> Verdict:
        self._losses.append(losses.total.detach())
        return super().accepts(losses, norms)

    def check(self) -> None:
        """Read what came since the last call, in all processes together. Raises Diverged for a loss that is not finite."""
        self.resolve_pending()
        self._check_losses()

    def _check_losses(self) -> None:
        bad = (~isfinite(stack(self._losses))).nonzero().flatten().tolist() if self._losses else []
        first = min(distributed.gathered([self._step + number for number in bad]), default=None)
        self._step += len(self._losses)
        self._losses = []
        if first is not None:
            where = f"step {first + 1}, in epoch {first // self._steps_per_epoch + 1}"
            raise Diverged(f"the loss of {where}, is not finite: {CURE} (the last checkpoint is untouched)")

    def _check(self, written: bool) -> None:
        if self.bad_in_a_row >= guard.MOST_BAD_STEPS:
            self._check_losses()
            raise Diverged(
                f"the gradients of {guard.MOST_BAD_STEPS} steps in a row, up to step {self._step}, are not finite: {CURE} "
                "(the last checkpoint is untouched)"
            )
