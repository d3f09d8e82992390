"""The last block computed for the tokens that losses read gives what the whole block gives."""

from typing import Any

import pytest
import torch
from timm.layers import DropPath

from pretrain.method import ibot
from pretrain.method.objective import IBOT
from pretrain.method.schedule import ScheduleValues
from tests.support.networks import batch, student_and_teacher

NOW = ScheduleValues(0, 1e-3, 0.1, 0.9, 0.04, 0.07, False, True)


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("masked", [True, False])
def test_the_last_block_on_needed_tokens_has_the_same_losses_and_gradients(masked: bool, rate: float) -> None:
    losses, gradients = [], []
    for needed_only in (False, True):
        student, teacher = student_and_teacher()
        blocks: Any = student.backbone.blocks
        for block in blocks if rate else ():
            block.drop_path1 = DropPath(rate)
        student.needed_only = needed_only
        student.train()
        given = batch()
        masks = given.masks if masked else None
        torch.manual_seed(1)  # of stochastic depth
        output = student(given.crops, masks, given.local_crops)
        targets = IBOT.targets(teacher(given.crops, masks), given, masks, teacher.centres, NOW)
        total = ibot.losses(output, targets, masks, 1.0, 1.0).total
        total.backward()
        losses.append(total.detach())
        gradients.append({name: p.grad for name, p in student.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        size = gradient.norm().item()  # float32: errors are relative to the whole gradient
        if not name.endswith("attn.qkv.bias"):  # the gradient of key biases is rounding, see docs/decisions.md
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * size, msg=name)
