"""Shapes are checked in every test; threads are few, so that processes on one machine do not fight."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network for anything
os.environ["PYTHONWARNINGS"] = "ignore"  # for processes that tests start; here warnings are errors

from jaxtyping import install_import_hook

install_import_hook(["checkpoints", "pretrain", "probes"], "beartype.beartype")

import pytest  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch import Tensor  # noqa: E402


class Fixture(NamedTuple):
    """One parity file: what it says of itself, and its tensors."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-dir", type=Path, default=Path(__file__).parent / "parity", help="folder of parity fixtures")


SLOW = frozenset(
    "backbones commands dense documented_commands export finetune learning lost pictures probes promises_data promises_feed "
    "promises_files promises_life promises_machine promises_pixels promises_records promises_truth report reproduce "
    "reproduce_data retrieval robustness sample tokenizers video broken".split()
)
"""Files, without `test_`, that start trainings or whole commands; so do all of tests/attacks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `tools/test.sh --fast` leaves out."""
    for item in items:
        if item.path.parent.name == "attacks" or item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def features_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Features that tests compute are kept apart from the user's."""
    os.environ["IBOT_FEATURES"] = str(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="session")
def parity_dir(request: pytest.FixtureRequest) -> Path:
    return request.config.getoption("--parity-dir")


@pytest.fixture(scope="session")
def parity(parity_dir: Path) -> Callable[[str], Fixture]:
    """Reads a fixture by name."""

    def read(name: str) -> Fixture:
        with safe_open(parity_dir / f"{name}.safetensors", framework="pt") as file:
            about: Mapping[str, Any] = json.loads(file.metadata()["about"])
            return Fixture(dict(about), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118

    return read
