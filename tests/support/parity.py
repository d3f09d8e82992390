"""Parity files as tests read them, and how near their numbers have to be."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.testing import assert_close

from pretrain.method.schedule import Schedule
from pretrain.options.stored import from_values
from pretrain.setup.plan import plan_of


class Fixture(NamedTuple):
    """One parity file: its description, and its tensors."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


Read = Callable[[str], Fixture]
"""Reads a fixture by name."""


def assert_near(ours: Tensor, theirs: Tensor, relative: float = 1e-5, size: Tensor | None = None) -> None:
    """Equal up to float32 sums in another order: errors are measured against the largest number of `size`.

    Sums cancel, so that an element near zero carries the rounding of the large terms that went into it: `size` is the original's
    tensor itself, or, for means that cancel as a whole, what they are means of. 5e-6 whatever the size, as it was before, failed
    for a deeper network on another processor (7e-6).
    """
    largest = (theirs if size is None else size).abs().max().item()
    assert_close(ours, theirs, rtol=relative, atol=relative * largest)


WHOLE = "epochs warmup_epochs freeze_last_layer pred_start_epoch warmup_teacher_temp_epochs".split()
REAL = (
    "lr min_lr weight_decay weight_decay_end momentum_teacher warmup_teacher_temp teacher_temp warmup_teacher_patch_temp "
    "teacher_patch_temp"
).split()
"""Options of the original that a schedule is made of; a fixture names those that it needs, and JSON may write 0 for 0.0."""


def schedule_of(about: dict[str, Any]) -> Schedule:
    """As training makes it of the same options. A fixture without `iters_per_epoch` has one step an epoch."""
    values: dict[str, Any] = {name: int(about[name]) for name in WHOLE if name in about}
    values |= {name: float(about[name]) for name in REAL if name in about}
    options = from_values(batch_size_per_gpu=256, **values)  # 256 images a step: lr as it is
    return plan_of(options).schedule(about.get("iters_per_epoch", 1), processes=1)
