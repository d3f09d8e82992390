"""Images that could not be used: which, why, and how many there may be."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from checkpoints import escape
from checkpoints.cli import WorkError
from pretrain.engine import distributed


class Bad(NamedTuple):
    """An image that could not be used."""

    number: int
    name: str
    reason: str


def too_many(bad: Sequence[Bad], most: int) -> str:
    """The error message for a source with too many unusable images."""
    count = f"{len(bad)} image{'s' * (len(bad) > 1)}"
    listed = "".join(f"\n  {escape.terminal(name)}: {escape.terminal(reason)}" for _, name, reason in bad[:10])
    return (
        f"{count} could not be used, more than --max-bad {most}: repair or remove them, or allow more. The first of them:{listed}"
    )


class BadImages:
    """The unusable images of a run, each counted once over all processes."""

    def __init__(self, most: int, known: Iterable[Bad]) -> None:
        self.most = most
        self.all = {bad.name: bad for bad in known}
        self._new: list[Bad] = []

    def add(self, bad: Iterable[Bad]) -> None:
        """Register images that this process could not use."""
        self._new += bad

    def take_new(self) -> list[Bad]:
        """Images registered in any process since the last call; all processes must call it together."""
        new = {bad.name: bad for bad in distributed.gathered(self._new) if bad.name not in self.all}
        self.all |= new
        self._new = []
        return list(new.values())

    def check(self) -> None:
        """Raise WorkError if there are more than `most`."""
        if len(self.all) > self.most:
            raise WorkError(too_many(list(self.all.values()), self.most))


def most_bad(given: int | None, images: int) -> int:
    """The largest allowed number of unusable images: `given`, or by default 0.1 % and at least 20."""
    return max(20, images // 1000) if given is None else given
