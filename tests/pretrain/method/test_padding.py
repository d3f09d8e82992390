"""Masked patches padded to a bound change no loss and no gradient."""

import numpy as np
import pytest
import torch

from pretrain.batches import masking
from pretrain.batches.masking import MaskSettings
from pretrain.engine.precision import Precision
from pretrain.method.masked_crops import OneGlobal
from pretrain.method.objective import Objective, forward_and_losses
from pretrain.method.schedule import ScheduleValues
from tests.support.networks import batch, student_and_teacher

NOW = ScheduleValues(0, 1e-3, 0.1, 0.9, 0.04, 0.07, False, True)


@pytest.mark.parametrize("needed_only", [False, True])
@pytest.mark.parametrize("kind", [Objective, OneGlobal])
def test_padded_patches_weigh_nothing(kind: type[Objective], needed_only: bool) -> None:
    """Losses, gradients and what the log measures; with a padding of nonzero weight the losses differ."""
    found, given, precision = [], batch(), Precision("fp32", torch.device("cpu"))
    count = len(given.masks.indices)
    for bound in (None, count + 100):
        student, teacher = student_and_teacher()
        student.needed_only = needed_only
        objective = kind()
        objective.padded_to = bound
        output = forward_and_losses(student, teacher, given, NOW, precision, objective, 1.0, 1.0)
        output.losses.total.backward()
        assert len(output.student.patches) == (bound or count) and len(output.targets.patches) == count
        gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
        found.append((output.losses, output.targets, gradients))
    (losses, targets, gradients), (padded, padded_targets, padded_gradients) = found
    # what is added is exactly zero; sums over more rows may be taken in another order
    torch.testing.assert_close(tuple(padded), tuple(losses), rtol=1e-6, atol=0)
    torch.testing.assert_close(tuple(padded_targets), tuple(targets), rtol=1e-5, atol=1e-7)
    assert gradients.keys() == padded_gradients.keys()
    for name, gradient in gradients.items():
        if not name.endswith("attn.qkv.bias"):  # the gradient of key biases is rounding, see docs/decisions.md
            torch.testing.assert_close(padded_gradients[name], gradient, rtol=1e-5, atol=1e-6 * gradient.norm().item(), msg=name)


def test_more_masked_patches_than_the_bound_stay_as_they_are() -> None:
    masks = batch().masks
    assert masks.padded(len(masks.indices) - 1) is masks and masks.padded(len(masks.indices)) is masks
    more = masks.padded(len(masks.indices) + 3)
    assert more.indices[-3:].tolist() == [0, 0, 0] and more.weight[-3:].tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(more.weight[:-3], masks.weight) and torch.equal(more.indices[:-3], masks.indices)


@pytest.mark.parametrize("shape", ["block", "rand"])
def test_batches_keep_below_the_bound_which_is_not_far_above_them(shape: str) -> None:
    settings = MaskSettings((0.0, 0.3), (0.0, 0.2), shape)
    generator, bound = np.random.default_rng(0), masking.bound(settings, 64, 196)
    counts = [len(masking.draw(generator, settings, 2, 32, 14, 14).indices) for _ in range(100)]
    assert max(counts) <= bound < 2 * np.mean(counts)
    assert masking.bound(settings, 2, 196) == 256  # both at the largest ratio: 196 at most
    assert masking.bound(MaskSettings((0.3,), (0.0,), shape), 64, 196) == 3840  # 3,763.2, always
    assert masking.bound(MaskSettings((0.0,), (0.0,), shape), 64, 196) == 0
