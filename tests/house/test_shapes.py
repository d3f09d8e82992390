"""What is written in signatures holds in tests."""

from collections.abc import Callable, Sequence

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Int
from torch import Tensor

from checkpoints import store
from pretrain.method import dense
from tests.support.shapes import has_arrays


def test_a_wrong_shape_and_a_wrong_type_are_errors() -> None:
    """The second in a signature without arrays, which jaxtyping is spared."""
    with pytest.raises(jaxtyping.TypeCheckError):
        dense.most_similar(torch.zeros(2, 3, 4))
    with pytest.raises(BeartypeCallHintViolation):
        store.sha256("a text")  # type: ignore[arg-type]


def test_arrays_are_found_wherever_they_stand_in_an_annotation() -> None:
    array = Float[Tensor, "b n"]
    found: list[object] = [array, tuple[array, ...], array | None, dict[str, Sequence[array]], Callable[[array], int]]
    found += [Int[Tensor, ""] | int, "Backbone", list["Backbone"]]  # type: ignore[name-defined] # noqa: F821
    assert all(map(has_arrays, found))
    assert not any(map(has_arrays, [Tensor, int, None, tuple[int, ...], Callable[[Tensor], int], Sequence[str] | None]))
