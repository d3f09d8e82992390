"""Parameter groups as the original forms them, clipping tensor by tensor, and the optimizers by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from checkpoints.cli import UserError
from pretrain.engine import distributed


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Two groups: with weight decay, and without (biases and every one-dimensional tensor)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed, "decayed": True}, {"params": plain, "decayed": False, "weight_decay": 0.0}]


def build_optimizer(name: str, module: nn.Module) -> torch.optim.Optimizer:
    """`adamw`, `sgd` (momentum 0.9) or `lars`; learning rate and decay come with every step, see `set_values_`."""
    groups = parameter_groups(module)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    if name == "lars":
        return LARS(groups)
    raise UserError(f"unknown --optimizer {name}: choose adamw, sgd or lars")


STATES: dict[str, tuple[str, ...]] = {
    "AdamW": ("step", "exp_avg", "exp_avg_sq"),
    "SGD": ("momentum_buffer",),
    "LARS": ("momentum_buffer",),
}
"""What each of them keeps of a parameter."""


def restore_(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], where: str, *, other: bool = False) -> None:
    """Give the optimizer what a checkpoint has kept of its parameters; settings of its groups stay its own.

    `other`: the checkpoint is of another kind of optimizer, and what is of no use is left. Raises UserError, `where` first, for
    parts that are missing or not those of this network.
    """
    own, parameters = optimizer.state_dict(), [one for group in optimizer.param_groups for one in group["params"]]
    sizes = [group["params"] for group in own["param_groups"]]
    if [list(group["params"]) for group in state.get("param_groups", [])] != sizes:
        raise UserError(f"{where}: it has other groups of parameters than {' and '.join(str(len(one)) for one in sizes)}")
    kept = {}
    for number, values in state.get("state", {}).items():
        if number >= len(parameters):
            raise UserError(f"{where}: it knows a parameter {number} of {len(parameters)}")
        found = _kept_of(parameters[number], values, STATES[type(optimizer).__name__], f"{where}: parameter {number}", other)
        if found:
            kept[number] = found
    optimizer.load_state_dict({**own, "state": kept})


def _kept_of(parameter: Tensor, values: Mapping[str, Any], names: Sequence[str], where: str, other: bool) -> dict[str, Any]:
    missing = [name for name in names if name not in values]
    if missing and other:
        return {}
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}")
    for name in names:
        shape = tuple(getattr(values[name], "shape", ()))
        if shape != (() if name == "step" else tuple(parameter.shape)) and values[name] is not None:
            raise UserError(f"{where}: {name} is {list(shape)}, not {list(parameter.shape)}")
        if values[name] is None and name != "momentum_buffer":
            raise UserError(f"{where}: {name} is None")
        if name in ("step", "exp_avg_sq") and float(torch.as_tensor(values[name]).min()) < 0:
            raise UserError(f"{where}: {name} is below zero")
    return {name: distributed.shard(values[name], parameter) for name in names}


def set_values_(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Give every group this step's learning rate, and the decayed one its weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decayed"]:
            group["weight_decay"] = weight_decay


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients that there are."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def norms_of(gradients: list[Tensor]) -> Float[Tensor, " tensors"]:
    """The length of each gradient tensor."""
    return distributed.lengths(gradients)


def clip_each_(gradients: list[Tensor], lengths: Float[Tensor, " tensors"], limit: float) -> None:
    """Scale each gradient on its own to at most length `limit`, the original's rule (0: none)."""
    if limit > 0:
        torch._foreach_mul_(distributed.local(gradients), list((limit / (lengths + 1e-6)).clamp(max=1.0).unbind()))


def step_(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, accepted: bool | Bool[Tensor, ""]) -> None:
    """Move the weights if the step was accepted. A verdict that is still on the device is left to it (fused AdamW)."""
    if isinstance(accepted, bool):
        if accepted:
            scaler.step(optimizer)
    elif scaler.is_enabled():  # which has its own verdict there
        scaler.step(optimizer)
    else:
        optimizer.found_inf = (~accepted).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]


def drop_last_layer_gradients_(head: nn.Module) -> None:
    """Freeze the prototypes for this step: without a gradient the optimizer leaves them, and their decay, alone."""
    for name, parameter in head.named_parameters():
        if name.startswith("last_layer"):
            parameter.grad = None


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017): SGD whose step is scaled by |weight| / |gradient|.

    Biases and one-dimensional tensors are neither scaled nor decayed.
    """

    def __init__(self, params: list[dict[str, object]], lr: float = 0.0, momentum: float = 0.9, trust: float = 0.001) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    def _step_one(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        update = parameter.grad
        assert update is not None
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            weight_norm, update_norm = parameter.norm(), update.norm()
            scale = torch.where((weight_norm > 0) & (update_norm > 0), group["trust"] * weight_norm / update_norm, 1.0)
            update = update * scale
        state = self.state[parameter]
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffer.mul_(group["momentum"]).add_(update)
        parameter.add_(buffer, alpha=-group["lr"])
