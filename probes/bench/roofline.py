"""The most images a second that a card and its host allow, from counts: an estimate and an upper bound, not a measurement."""

from typing import NamedTuple

from probes.bench.kernels import LAUNCH


class Roofline(NamedTuple):
    """Of crops and step together."""

    device_ms: float
    """They run on one device, so their times add up, whatever their streams."""
    host_ms: float
    """Launches and Python of both: threads of one process share its interpreter."""
    images_per_second: float


def roofline(batch_size: int, device_ms: float, launches: int, python_ms: float) -> Roofline:
    """The slower of device and host decides."""
    host = 1e3 * LAUNCH * launches + python_ms
    return Roofline(device_ms, host, 1e3 * batch_size / max(device_ms, host))
