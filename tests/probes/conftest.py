"""Images for the probes."""

from pathlib import Path

import pytest

from pretrain.sample import __main__ as sample


@pytest.fixture(scope="session")
def more_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as class folders: 80 images to train, 80 to test. Tests only read them."""
    root = tmp_path_factory.mktemp("more_folders")
    sample.main(["--out", str(root), "--count", "80", "--size", "32"])
    return root
