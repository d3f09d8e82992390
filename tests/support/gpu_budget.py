"""What a counted step of a GPU may cost, and in which sentences it is refused."""

from collections.abc import Sequence
from typing import NamedTuple

from probes.bench.count import Counted, row_of
from probes.bench.kernels import CARDS


class Budget(NamedTuple):
    """The most that one step may have."""

    launches: int
    other_gigabytes: float
    """Moved outside matrix products and attention."""
    peak_gibibytes: float


def faults(found: Counted, budget: Budget) -> list[str]:
    """What a step does that no step of a GPU should: empty if it keeps within everything."""
    row = row_of(found.kernels, CARDS["H100"])
    wrong = [f"waits for the device: {wait.name} in {wait.place}" for wait in found.waits]
    late: Sequence[object] = [upload for upload in found.uploads if upload.waits]
    wrong += [f"uploads from pageable memory: {upload}" for upload in late]
    if row.launches > budget.launches:
        wrong.append(f"{row.launches} launches, more than {budget.launches}")
    if row.other_bytes > budget.other_gigabytes * 1e9:
        wrong.append(f"{row.other_bytes / 1e9:.1f} GB outside products and attention, more than {budget.other_gigabytes}")
    if found.peak > budget.peak_gibibytes * 2**30:
        wrong.append(f"peak of {found.peak / 2**30:.1f} GiB, more than {budget.peak_gibibytes}")
    return wrong
