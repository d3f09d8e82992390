"""A parity file as tests read it."""

from typing import Any, NamedTuple

from torch import Tensor


class Fixture(NamedTuple):
    """One parity file: what it says of itself, and its tensors."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}
