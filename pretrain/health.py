"""Whether a run is well: steps that may not be taken, and how good the features are by now."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from checkpoints.command import UserError, WorkError
from pretrain import augment, distributed, neighbours
from pretrain.backbone import Backbone
from pretrain.images import has_part, open_images
from pretrain.schedule import Now
from pretrain.sources import Images, Subset, aligned, subset, usable
from pretrain.steps import Bad, Batch, too_many

MOST_BAD_STEPS = 20
"""In a row; then the run stops."""
BANK, QUERIES = 2000, 1000


class Attempt(NamedTuple):
    """A step that may turn out refused: all that is needed to repeat it, weights apart."""

    step: int
    batches: Sequence[Batch]
    now: Now
    random: Tensor
    """State of torch's generator."""


@runtime_checkable
class Scored(Protocol):
    """Losses of any training."""

    @property
    def total(self) -> Tensor: ...


class Guard:
    """Refuses steps whose loss or gradients are not finite, so that nothing broken reaches weights, teacher or centres.

    `late`: the verdict stays on the device, so that no step waits for it; the host reads it while the next step is on its way,
    and before that one changes anything.
    """

    def __init__(self, refused: Callable[[Attempt], object] = lambda attempt: None, *, late: bool = False) -> None:
        """`refused` is called for every step that was not taken, before weights change again."""
        self.bad_in_a_row = 0
        self.skipped = 0
        self._refused, self._late = refused, late
        self._attempt: Attempt | None = None
        self._pending: Verdict | None = None

    def begin(self, step: int, batches: Sequence[Batch], now: Now) -> None:
        """The next step to be judged."""
        self._attempt = Attempt(step, batches, now, torch.get_rng_state())

    def accepts(self, losses: Scored, lengths: Float[Tensor, " tensors"]) -> bool | Bool[Tensor, ""]:
        """Whether the step may be taken, given the lengths of its gradients, in any process; on the device where `late`.

        Raises WorkError after MOST_BAD_STEPS refusals in a row.
        """
        accepted = distributed.all_true(torch.isfinite(losses.total) & torch.isfinite(lengths).all())
        self.settle()
        self._pending = Verdict(accepted, self._attempt)
        return accepted if self._late else self.settle()

    def settle(self) -> bool:
        """Read the verdict on the last step if that was not done yet, and act on it; whether it was taken."""
        if self._pending is None:
            return True
        verdict, self._pending = self._pending, None
        accepted = verdict.read()
        self.bad_in_a_row = 0 if accepted else self.bad_in_a_row + 1
        self.skipped += not accepted
        if not accepted and verdict.attempt is not None:
            self._refused(verdict.attempt)
        self._check(verdict.attempt is not None)
        return accepted

    def _check(self, written: bool) -> None:
        """`written`: the steps were given to `begin`, and so `refused` has them."""
        if self.bad_in_a_row >= MOST_BAD_STEPS:
            replay = "; `python -m pretrain.train --replay FILE` on a refused-*.pt of the run's folder shows where it begins"
            raise WorkError(
                f"loss or gradients were not finite in {MOST_BAD_STEPS} steps in a row: lower --lr, raise --warmup-epochs, or "
                f"give --precision fp32{replay if written else ''} (the last checkpoint is untouched)"
            )


class Verdict:
    """A yes or no that is on its way from the device to the host."""

    def __init__(self, accepted: Bool[Tensor, ""], attempt: Attempt | None) -> None:
        self.attempt = attempt
        self._answer, self._arrived = accepted.detach(), None
        if accepted.is_cuda:
            self._answer = torch.empty((), dtype=torch.bool, pin_memory=True)  # a copy to other memory would wait
            self._answer.copy_(accepted, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> bool:
        """Waits for that step's backward, not for what was begun since."""
        if self._arrived:
            self._arrived.synchronize()
        return bool(self._answer)


class BadImages:
    """The images of a run that could not be used, each counted once, in all processes together."""

    def __init__(self, most: int, known: Iterable[Bad]) -> None:
        self.most = most
        self.all = {bad.name: bad for bad in known}
        self._new: list[Bad] = []

    def add(self, bad: Iterable[Bad]) -> None:
        """What this process has met."""
        self._new += bad

    def news(self) -> list[Bad]:
        """What is new in any process since the last call; all must call it together."""
        new = {bad.name: bad for bad in distributed.gathered(self._new) if bad.name not in self.all}
        self.all |= new
        self._new = []
        return list(new.values())

    def check(self) -> None:
        """Raise WorkError when there are more than may be."""
        if len(self.all) > self.most:
            raise WorkError(too_many(list(self.all.values()), self.most))


def most_bad(given: int | None, images: int) -> int:
    """How many images may be bad: what was given, else 0.1 %, at least 20."""
    return max(20, images // 1000) if given is None else given


class OnlineKnn:
    """k-NN accuracy of the teacher on a small part of the run's own labelled data: a curve, not a result."""

    def __init__(self, bank: Images, queries: Images, crop: int) -> None:
        self._bank, self._queries, self._crop = bank, queries, crop

    def measure(self, backbone: Backbone) -> float:
        """Top-1 percent with k = 10."""
        resize = augment.evaluation_resize(self._crop)
        was_training = backbone.training
        backbone.eval()
        bank = neighbours.features(backbone, self._bank, resize=resize, crop=self._crop)
        queries = neighbours.features(backbone, self._queries, resize=resize, crop=self._crop)
        backbone.train(was_training)
        bank_labels, labels = torch.as_tensor(self._bank.labels), torch.as_tensor(self._queries.labels)
        classes = int(max(bank_labels.max(), labels.max())) + 1
        return neighbours.accuracy(neighbours.vote(queries, bank, bank_labels, classes, ks=(10,))[10], labels)


def online_knn(source: str, images: Images, crop: int) -> OnlineKnn | None:
    """A measurement on part of `images`, tested on the source's other part or, where it has none, on held-out ones.

    None where the images have no labels, and in all processes but the main one. Raises UserError where the classes differ, and
    where the test images have no labels or none of either can be used.
    """
    if images.labels is None or not distributed.is_main():
        return None
    bank, queries = _bank_and_queries(source, images)
    if not len(bank) or not len(queries):
        raise UserError(
            f"too few images of {images.name} can be used with --channels {images.channels} for the k-NN curve: "
            "give other --knn-data, or --knn-every 0"
        )
    return OnlineKnn(bank, queries, crop)


def _bank_and_queries(source: str, images: Images) -> tuple[Images, Images]:
    if has_part(source, "val"):
        queries = aligned(open_images(source, "val", images.channels, images.value_range), images)
        if queries.labels is None:
            raise UserError(
                f"{queries.name} has no labels, which the k-NN curve needs: sort its images into class folders as those to train "
                "on are, or give --knn-data, or --knn-every 0"
            )
        return readable(subset(images, BANK)), readable(subset(queries, QUERIES))
    some = readable(subset(images, BANK + QUERIES))
    cut = max(1, len(some) // 3)
    numbers = np.arange(len(some))
    return Subset(some, numbers[cut:]), Subset(some, numbers[:cut])


def readable(images: Images) -> Images:
    """Those that can be decoded."""
    numbers = list(usable(images))
    return images if len(numbers) == len(images) else Subset(images, np.array(numbers, dtype=int))
