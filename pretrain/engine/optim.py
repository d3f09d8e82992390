"""Parameter groups and clipping as in the original, and the optimizers by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from checkpoints.cli import UserError
from pretrain.engine import distributed


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Two groups: with weight decay, and without (biases and every one-dimensional tensor)."""
    found = {group["weight_decay"] > 0: group["params"] for group in param_groups_weight_decay(module, weight_decay=1.0)}
    return [
        {"params": found.get(True, []), "decayed": True},
        {"params": found.get(False, []), "decayed": False, "weight_decay": 0.0},
    ]


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
"""Names of each optimizer's state of a parameter."""


def restore_(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], where: str, *, other: bool = False) -> None:
    """Load the state of every parameter from a checkpoint; hyperparameters of the groups are not changed.

    `other`: the checkpoint is of another kind of optimizer, and state of other names is ignored. Raises UserError, beginning with
    `where`, for state that is missing or does not fit this network.
    """
    current, parameters = optimizer.state_dict(), [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = [group["params"] for group in current["param_groups"]]
    if [list(group["params"]) for group in state.get("param_groups", [])] != groups:
        raise UserError(f"{where}: it has other groups of parameters than {' and '.join(str(len(group)) for group in groups)}")
    states = {}
    for number, values in state.get("state", {}).items():
        if number >= len(parameters):
            raise UserError(f"{where}: it knows a parameter {number} of {len(parameters)}")
        parameter_state = _state_of(
            parameters[number], values, STATES[type(optimizer).__name__], f"{where}: parameter {number}", other
        )
        if parameter_state:
            states[number] = parameter_state
    optimizer.load_state_dict({**current, "state": states})


def _state_of(parameter: Tensor, values: Mapping[str, Any], names: Sequence[str], where: str, other: bool) -> dict[str, Any]:
    """The validated state of one parameter, sharded as it is; empty where `other` and some of it is missing. Raises UserError."""
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
    """Gradients of the parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def norms_of(gradients: list[Tensor]) -> Float[Tensor, " tensors"]:
    """Norm of each gradient tensor."""
    return distributed.norms(gradients)


def clip_each_(gradients: list[Tensor], norms: Float[Tensor, " tensors"], limit: float) -> None:
    """Scale each gradient tensor on its own to a norm of at most `limit` (0: no clipping), as the original does."""
    if limit > 0:
        parts = distributed.local(gradients)
        factors = (limit / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(parts, spread_like(parts, factors) if norms.is_cuda else list(factors.unbind()))


def spread_like(tensors: Sequence[Tensor], factors: Float[Tensor, " tensors"]) -> list[Tensor]:
    """Each factor in the shape of its tensor: a GPU multiplies lists of equal shapes in few kernels, others one by one."""
    sizes = [tensor.numel() for tensor in tensors]
    flat = torch.cat([factor.expand(size) for factor, size in zip(factors.unbind(), sizes, strict=True)])
    return [part.view(tensor.shape) for part, tensor in zip(flat.split(sizes), tensors, strict=True)]


def drop_last_layer_gradients_(head: nn.Module) -> None:
    """Freeze the prototypes for this step: without a gradient the optimizer neither moves nor decays them."""
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
