"""A step of training on a GPU, counted on a CPU: it mixes no devices, waits for nothing, uploads nothing large, keeps its budget.

128 images, ViT-S/16, depth 12, 2 x 224 + 10 x 96 pixels, bf16.
"""

from collections.abc import Callable

import pytest
import torch

from pretrain.engine import optim
from probes.bench.count import Counted, by_operator, counted, plan_for, row_of, step_on
from probes.bench.crops import crops_on
from probes.bench.kernels import CARDS
from probes.bench.pretended_gpu import GPU, pretended
from probes.bench.roofline import roofline
from tests.support.gpu_budget import Budget, faults

DEFAULT = Budget(launches=720, other_gigabytes=60.0, peak_gibibytes=11.0)
COMPILED = Budget(launches=1250, other_gigabytes=78.0, peak_gibibytes=17.0)
"""Where torch.compile has to do without this project's kernels."""
EAGER = Budget(launches=1640, other_gigabytes=143.0, peak_gibibytes=15.3)
"""Where nothing is compiled."""
AT_LEAST = {"H100": 2300.0, "H200": 2850.0}
"""Images/s that the roofline of step and crops allows, the host's Python apart."""
TINY = ("--depth", "1", "--width", "64", "--drop-path", "0")


@pytest.fixture(scope="module")
def compiled() -> Counted:
    with pretended() as gpu:
        return counted(step_on(gpu), gpu)


def test_a_step_keeps_its_budget(compiled: Counted) -> None:
    """In 46c01a2: 131 GB, 18 GiB, blocks uncompiled. Graphs: the student's head, the teacher's, targets and losses."""
    assert faults(compiled, DEFAULT) == [] and compiled.graphs == 3


def test_a_step_without_this_projects_kernels_keeps_its_budget_with_few_graphs_for_all_blocks() -> None:
    with pretended() as gpu:
        found = counted(step_on(gpu, kernels=False), gpu)
    assert faults(found, COMPILED) == [] and found.graphs == 6


def test_a_step_that_is_not_compiled_keeps_its_budget() -> None:
    with pretended() as gpu:
        assert faults(counted(step_on(gpu, compiled=False), gpu), EAGER) == []


def test_the_table_by_operator_begins_with_what_moves_and_launches_most(compiled: Counted) -> None:
    card = CARDS["H100"]
    rows, whole = by_operator(compiled, card, 4), row_of(compiled.kernels, card)
    (heaviest, heavy), *_ = rows
    assert heaviest == "backward: gelu_backward" and heavy.other_bytes == max(row.other_bytes for _, row in rows)
    assert max(row.launches for _, row in rows) >= max(heavy.launches, whole.launches / 30) and 4 <= len(rows) <= 8
    everything = by_operator(compiled, card, 10**6)
    assert sum(row.launches for _, row in everything) == whole.launches


def test_a_smaller_budget_is_overrun(compiled: Counted) -> None:
    wrong = faults(compiled, Budget(100, 1.0, 1.0))
    assert [word for word in ("launches", "GB outside", "peak") if any(word in one for one in wrong)] == [
        "launches",
        "GB outside",
        "peak",
    ]


def test_the_roofline_of_step_and_crops_together_keeps_its_bound(compiled: Counted) -> None:
    """46c01a2: 990 images/s of an H100, 1,370 of an H200."""
    with pretended() as gpu:
        crops = counted(crops_on(gpu, plan_for("vit_small", 128), 128), gpu)
    for name, least in AT_LEAST.items():
        both = row_of([*compiled.kernels, *crops.kernels], CARDS[name])
        assert roofline(128, both.milliseconds, both.launches, 0.0).images_per_second >= least


def waits(gradients: list[torch.Tensor]) -> float:
    return float(gradients[0].sum())


def uploads(gradients: list[torch.Tensor]) -> torch.Tensor:
    return gradients[0].add_(torch.ones(200, 200).to(GPU, non_blocking=True).sum())


def mixes(gradients: list[torch.Tensor]) -> torch.Tensor:
    return gradients[0] + torch.ones(1)


def spoil(monkeypatch: pytest.MonkeyPatch, bad: Callable[[list[torch.Tensor]], object]) -> None:
    """Make every step do this as well."""
    real = optim.norms_of

    def norms_of(gradients: list[torch.Tensor]) -> torch.Tensor:
        bad(gradients)
        return real(gradients)

    monkeypatch.setattr(optim, "norms_of", norms_of)


@pytest.mark.parametrize(("bad", "word"), [(waits, "waits for the device"), (uploads, "uploads from pageable memory")])
def test_a_bad_step_is_refused(bad: Callable[[list[torch.Tensor]], object], word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = Budget(10**6, 1e6, 1e6)
    with pretended() as gpu:
        step = step_on(gpu, batch_size=2, flags=TINY)
        assert faults(counted(step, gpu), large) == []
        spoil(monkeypatch, bad)
        (wrong,) = faults(counted(step, gpu), large)
    assert word in wrong


def test_a_step_that_mixes_devices_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended() as gpu:
        step = step_on(gpu, batch_size=2, flags=TINY)
        spoil(monkeypatch, mixes)
        with pytest.raises(RuntimeError, match="device"):
            counted(step, gpu)
