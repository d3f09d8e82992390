"""The crops of a batch on a GPU, counted on a CPU: 128 photographs of 500 x 375 pixels, 2 x 224 + 10 x 96 crops.

46c01a2 launched 3,471 kernels, moved 117 GB and uploaded indices from pageable memory for each of them. The kernels are Triton's,
which torch brings on Linux, with or without a GPU: this test is never left out there.
"""

import pytest
import torch

from checkpoints.architecture import MEAN, STD
from checkpoints.cli import UserError
from pretrain.batches.dataset import make_batch
from probes.bench import crops
from probes.bench.count import Counted, counted, plan_for
from probes.bench.pretended_gpu import GPU, pretended
from tests.support.gpu_budget import Budget, faults

BUDGET = Budget(launches=20, other_gigabytes=2.0, peak_gibibytes=0.6)
"""The issue allows 300 launches and 20 GB."""
UPLOADS = 12
EASY = Budget(10**6, 1e6, 1e6)


@pytest.fixture(scope="module")
def made() -> Counted:
    with pretended() as gpu:
        step = crops.crops_on(gpu, plan_for("vit_small", 128), 128)
        batch = step()
        assert batch.crops.shape == (2, 128, 3, 224, 224) and batch.local_crops.shape == (10, 128, 3, 96, 96)
        assert batch.crops.device == batch.local_crops.device == GPU
        del batch
        return counted(step, gpu)


def test_crops_of_a_batch_keep_their_budget(made: Counted) -> None:
    assert faults(made, BUDGET) == []
    assert 0 < len(made.uploads) <= UPLOADS and all(one.pinned for one in made.uploads)


def test_a_smaller_budget_of_crops_is_overrun(made: Counted) -> None:
    assert len(faults(made, Budget(3, 0.1, 0.1))) == 3


def test_crops_by_the_plain_operations_do_not_keep_it() -> None:
    """What a GPU without the kernels does, and 46c01a2 did: hundreds of launches, indices from pageable memory."""
    with pretended() as gpu:
        cut = crops.cut_of(plan_for("vit_small", 4), 4)
        found = counted(lambda: make_batch(cut.to(GPU), MEAN, STD), gpu)
    wrong = faults(found, BUDGET)
    assert any("launches" in one for one in wrong) and any("pageable" in one for one in wrong)
    assert found.waits == [] and faults(found._replace(uploads=[]), EASY) == []


def test_without_triton_the_crops_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install triton"):
        crops.kernels()


def test_the_hosts_own_work_needs_no_device() -> None:
    batch = crops.crops_without_device(plan_for("vit_small", 2), 2)()
    assert batch.crops.device == torch.device("meta") and batch.local_crops.shape == (10, 2, 3, 96, 96)
