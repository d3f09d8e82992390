"""Shapes are checked in every test; threads are few, so that processes on one machine do not fight."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network for anything
os.environ["PYTHONWARNINGS"] = "ignore"  # for processes that tests start; here warnings are errors

from tests.support import shapes

shapes.check(["checkpoints", "pretrain", "probes", "transfer"])

import pytest  # noqa: E402
from safetensors import safe_open  # noqa: E402

from pretrain.sample import __main__ as sample  # noqa: E402
from tests.support.parity import Fixture, Read  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-dir", type=Path, default=Path(__file__).parent / "parity", help="folder of parity fixtures")


SLOW = frozenset(
    {
        "attacks",
        "promises",
        "checkpoints/test_resolve.py",
        "house/test_documented_commands.py",
        "pretrain/engine",
        "pretrain/images/test_broken.py",
        "pretrain/models/test_compiling.py",
        "pretrain/run/test_health.py",
        "pretrain/run/test_lost.py",
        "pretrain/sample/test_sample.py",
        "pretrain/test_commands.py",
        "pretrain/test_learning.py",
        "pretrain/tokenizers/test_tokenizers.py",
        "probes/bench",
        "probes/finetune/test_finetune.py",
        "probes/report/test_report.py",
        "probes/reproduce/test_data.py",
        "probes/reproduce/test_steps.py",
        "probes/retrieval/test_retrieval.py",
        "probes/robustness/test_robustness.py",
        "probes/test_metrics.py",
        "probes/test_probes.py",
        "probes/video/test_video.py",
        "probes/visualize/test_pictures.py",
        "probes/test_segment.py",
        "transfer/test_backbone.py",
        "transfer/test_configs.py",
        "transfer/test_foreign_commands.py",
        "transfer/test_exports.py",
        "transfer/test_predict.py",
        "transfer/test_processes.py",
        "transfer/test_results.py",
        "transfer/test_train.py",
    }
)
"""Files that start trainings or whole commands, and rooms that do nothing else."""


LONG = (
    "house/test_documented_commands.py",
    "attacks/test_checkpoints.py",
    "probes/reproduce/test_data.py",
    "promises/test_feed.py",
    "probes/bench/test_gpu_day.py",
    "pretrain/run/test_lost.py",
    "attacks/test_pickles.py",
    "pretrain/engine/test_processes.py",
    "attacks/test_left_alive.py",
    "pretrain/test_commands.py",
    "transfer/test_train.py",
    "transfer/test_predict.py",
    "transfer/test_configs.py",
    "probes/test_probes.py",
    "probes/finetune/test_finetune.py",
    "attacks/test_outputs.py",
    "probes/reproduce/test_steps.py",
    "promises/test_pixels.py",
    "promises/test_truth.py",
    "attacks/test_start.py",
    "promises/test_files.py",
)
"""Files that take longest: begun first, so that no process is alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put LONG files first; mark what `tools/test.sh --fast` leaves out."""
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.relative_to(Path(__file__).parent).as_posix(), len(order)))
    for item in items:
        file = item.path.relative_to(Path(__file__).parent)
        if SLOW & {file.as_posix(), *(folder.as_posix() for folder in file.parents)}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def features_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Features that tests compute are kept apart from the user's."""
    os.environ["IBOT_FEATURES"] = str(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as class folders: 40 images to train, 40 to test. Tests only read them."""
    root = tmp_path_factory.mktemp("folders")
    sample.main(["--out", str(root), "--count", "40", "--size", "32"])
    return root


@pytest.fixture(scope="session")
def parity_dir(request: pytest.FixtureRequest) -> Path:
    return request.config.getoption("--parity-dir")


@pytest.fixture(scope="session")
def parity(parity_dir: Path) -> Read:
    """Reads a fixture by name."""

    def read(name: str) -> Fixture:
        with safe_open(parity_dir / f"{name}.safetensors", framework="pt") as file:
            about: Mapping[str, Any] = json.loads(file.metadata()["about"])
            return Fixture(dict(about), {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118

    return read
