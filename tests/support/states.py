"""Training states and weights side by side."""

from collections.abc import Callable
from typing import Any

import torch


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def named(name: str) -> Callable[[str], str]:
    """For `assert_close`: its message begins with what was compared."""
    return lambda text: f"{name}: {text}"
