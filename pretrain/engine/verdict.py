"""Whether a step may be taken, and what that means for all that a step moves: weights, moving averages, centres.

The one place that knows two cases. On a CPU the verdict is read at once. On a GPU it stays on the device while the step is
computed, so that the host does not wait: a refused step is then computed as one that moves nothing.
"""

import torch
from jaxtyping import Bool
from torch import Tensor


class Verdict:
    """True where loss and gradients were finite. `bool(verdict)` is the host's question, and waits for the device."""

    def __init__(self, accepted: bool | Bool[Tensor, ""]) -> None:
        """A flag on the device starts on its way to the host; until `resolve` it decides where it is."""
        self._known = accepted if isinstance(accepted, bool) else None
        self._on_device = torch.as_tensor(accepted).detach()
        self._on_host, self._arrived = self._on_device, None
        if self._on_device.is_cuda:
            self._on_host = torch.empty((), dtype=torch.bool, pin_memory=True)  # a copy to pageable memory would wait
            self._on_host.copy_(self._on_device, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def resolve(self) -> bool:
        """Read it on the host. Waits for the backward that it judges, not for what was queued since."""
        if self._known is None:
            if self._arrived:
                self._arrived.synchronize()
            self._known = bool(self._on_host)
        return self._known

    def __bool__(self) -> bool:
        return self.resolve()

    def step_(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """The optimizer's step; none if refused. On the device only fused AdamW can decide, or a scaler for itself."""
        if self._known is not None:
            if self._known:
                scaler.step(optimizer)
        elif scaler.is_enabled():
            scaler.step(optimizer)
        else:
            optimizer.found_inf = (~self._on_device).float()  # type: ignore[attr-defined]  # fused kernels skip a step where 1
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]

    def lerp_(self, tensors: list[Tensor], ends: list[Tensor], share: float) -> None:
        """`tensor += share * (end - tensor)` for each pair; nothing if refused. The ends are finite."""
        if self._known is None:
            steps = torch._foreach_sub(ends, tensors)
            torch._foreach_mul_(steps, self._on_device * share)
            torch._foreach_add_(tensors, steps)
        elif self._known:
            torch._foreach_lerp_(tensors, ends, share)

    def select(self, new: Tensor, old: Tensor) -> Tensor:
        """`new` if accepted, else `old`: for what may be NaN where a step is refused, which a share of zero would keep."""
        if self._known is None:
            return torch.where(self._on_device, new, old)
        return new if self._known else old


ACCEPTED = Verdict(True)
