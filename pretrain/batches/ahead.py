"""Batches made by a thread of their own while the loop works on the one before, on a GPU with a stream of their own.

One batch is made ahead, no more. What the thread meets is raised in the loop; `close` ends the thread and waits for its end.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch

from checkpoints.cli import WorkError
from pretrain.batches.dataset import Batch

LOOK = 1.0
"""Seconds between two looks at a thread that is waited for."""


class SideStream:
    """Of a GPU: the loop's stream waits for an event of this one; no memory is used again before both have done with it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._side = device, torch.cuda.Stream(device)

    def enter(self) -> None:
        """In the thread, first."""
        torch.cuda.set_device(self._device)  # each thread has its own current device and stream
        torch.cuda.set_stream(self._side)

    def made(self) -> Any:
        """In the thread, when a batch's work has been given to the device: an event that `taken` waits for."""
        event = torch.cuda.Event()
        event.record(self._side)
        return event

    def taken(self, batch: Batch, made: Any) -> None:
        """In the loop, before the batch is used."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(made)
        for tensor in batch.tensors():
            tensor.record_stream(current)


class Ahead:
    """An iterator over what another one makes, which runs in a thread from its second batch on.

    The first is made where it is asked for: worker processes are children of the thread that starts them, and end with it.
    """

    def __init__(self, batches: Iterator[Batch], streams: SideStream | None) -> None:
        """`streams` is None where the device is a CPU."""
        self._batches, self._streams = batches, streams
        self._made: queue.Queue[tuple[Batch | None, Any, BaseException | None]] = queue.Queue()
        self._room = threading.Semaphore(1)
        self.ended = threading.Event()
        """Set when no further batch is wanted."""
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Batch]:
        try:
            first = next(self._batches, None)
            if first is None:
                return
            self._thread = threading.Thread(target=self._work, name="batches ahead", daemon=True)
            self._thread.start()
            yield first
            del first
            while (batch := self._next()) is not None:
                yield batch
        finally:
            self.close()

    def close(self) -> None:
        """End the thread, if there is one, and wait until it has."""
        self.ended.set()
        self._room.release()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        """In the thread. Whatever happens, something is put into the queue at its end."""
        last: tuple[Batch | None, Any, BaseException | None] = (None, None, None)
        try:
            if self._streams is not None:
                self._streams.enter()
            while self._room.acquire() and not self.ended.is_set():
                batch = next(self._batches, None)
                if batch is None:
                    break
                self._made.put((batch, self._streams.made() if self._streams is not None else None, None))
                del batch  # the loop's alone from now on
        except BaseException as error:  # raised in the loop
            last = (None, None, error)
        self._made.put(last)

    def _next(self) -> Batch | None:
        while True:
            try:
                batch, made, error = self._made.get(timeout=LOOK)
                break
            except queue.Empty:
                if self._thread is None or (not self._thread.is_alive() and self._made.empty()):
                    raise WorkError("the thread that makes batches has ended without a word") from None
        if error is not None:
            raise error
        self._room.release()
        if batch is not None and self._streams is not None:
            self._streams.taken(batch, made)
        return batch
