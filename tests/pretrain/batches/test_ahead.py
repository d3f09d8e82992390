"""Batches from a thread of their own: the same ones, one ahead, errors and ends where the loop is."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.cli import WorkError
from pretrain.batches import ahead, augment, masking
from pretrain.batches.ahead import Ahead, SideStream
from pretrain.batches.dataset import Batch, StepDataset
from pretrain.batches.loader import Loader
from pretrain.images.source import InMemory

CPU = torch.device("cpu")
VIEW = augment.View(16, (0.3, 1.0), 0.5, 0.5)
VIEWS = augment.MultiCrop((VIEW, VIEW), augment.View(8, (0.1, 0.3), 0.5, 0.0), 3)


def steps(**more: Any) -> StepDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 20, 20, 3), dtype=np.uint8)
    masks = masking.MaskSettings((0.0, 0.3), (0.0, 0.2), "block")
    return StepDataset(InMemory("few", list(pixels)), VIEWS, masks, (4, 4), 4, 0, **more)


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one.tensors(), other.tensors(), strict=True))


def batch(number: int) -> Batch:
    masks = masking.as_masks(torch.zeros(1, 1, 2, 2, dtype=torch.bool))
    return Batch(torch.full((1, 1, 3, 4, 4), float(number)), masks, torch.zeros(0, 1, 3, 4, 4))


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "batches ahead"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_thread_gives_the_batches_that_the_loop_would_make(workers: int) -> None:
    """46c01a2 made a GPU's crops in the training thread."""
    loader = Loader(steps(make_crops=False), 0, 5, workers, CPU, in_thread=True)
    made = list(loader)
    assert len(made) == 5 and all(equal(one, two) for one, two in zip(made, Loader(steps(), 0, 5, 0, CPU), strict=True))
    assert loader.waited > 0 and threads() == []


def test_there_is_no_thread_on_a_cpu() -> None:
    batches = iter(Loader(steps(), 0, 3, 0, CPU))
    next(batches)
    assert threads() == []


def test_one_batch_is_made_ahead_and_no_more() -> None:
    made: list[int] = []

    def make() -> Iterator[Batch]:
        for number in range(9):
            made.append(number)
            yield batch(number)

    batches = iter(Ahead(make(), None))
    next(batches), next(batches)
    until(lambda: len(made) == 3)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    batches.close()  # type: ignore[attr-defined]
    assert threads() == [] and made == [0, 1, 2]


def until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("error", [WorkError("no batch comes"), KeyboardInterrupt(), MemoryError()])
def test_what_the_thread_meets_is_raised_in_the_loop(error: BaseException) -> None:
    def make() -> Iterator[Batch]:
        yield batch(0)
        yield batch(1)
        raise error

    batches, found = iter(Ahead(make(), None)), []
    with pytest.raises(type(error)) as raised:
        for one in batches:
            found.append(one)
    assert raised.value is error and len(found) == 2 and threads() == []


def test_closing_the_loader_in_the_middle_ends_the_thread() -> None:
    """As when Ctrl-C ends the loop, whose frame an exception may hold."""
    loader = Loader(steps(make_crops=False), 0, 8, 1, CPU, in_thread=True)
    batches = iter(loader)
    next(batches), next(batches)
    assert threads()
    loader.close()
    assert threads() == []


def test_a_thread_without_a_word_is_no_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LOOK", 0.01)
    monkeypatch.setattr(Ahead, "_work", lambda self: None)
    batches = iter(Ahead(iter([batch(0), batch(1)]), None))
    next(batches)
    with pytest.raises(WorkError, match="without a word"):
        next(batches)


class Noted:
    """CUDA's streams and events that only note who does what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.stream, own = threading.local(), self

        class Stream:
            def __init__(self, device: Any = None, name: str = "side") -> None:
                self.name = name

            def wait_event(self, event: Any) -> None:
                own.notes.append(("wait", self.name, event.number))

        class Event:
            count = 0

            def __init__(self) -> None:
                Event.count += 1
                self.number = Event.count

            def record(self, stream: Any) -> None:
                own.notes.append(("record", stream.name, self.number))

        main = Stream(name="main")
        for name, value in {
            "Stream": Stream,
            "Event": Event,
            "set_device": lambda device: own.notes.append(("device", threading.current_thread().name)),
            "set_stream": lambda stream: setattr(own.stream, "now", stream),
            "current_stream": lambda device=None: getattr(own.stream, "now", main),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda one, stream: own.notes.append(("kept", stream.name)))


def test_the_loops_stream_waits_for_each_batch_and_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event of the side stream after each batch, waited for by the main stream before any of its tensors is used."""
    noted, used = Noted(monkeypatch), []
    for one in Ahead((batch(number) for number in range(4)), SideStream(torch.device("cuda", 0))):
        used.append(int(one.crops[0, 0, 0, 0, 0]))
        noted.notes.append(("use", used[-1]))
    assert used == [0, 1, 2, 3] and ("device", "batches ahead") in noted.notes
    tensors = len(list(batch(0).tensors()))
    for number in (1, 2, 3):  # the first is the loop's own
        wait, use = noted.notes.index(("wait", "main", number)), noted.notes.index(("use", number))
        assert noted.notes.index(("record", "side", number)) < wait < use
        assert noted.notes[wait:use].count(("kept", "main")) == tensors
