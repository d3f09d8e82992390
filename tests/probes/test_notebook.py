"""The notebook's cells run one after the other, on the sample. 46c01a2 had no notebook."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IBOT_FEATURES", str(tmp_path / "cache"))
    notebook = json.loads((ROOT / "docs" / "notebooks" / "compare.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "the notebook is kept without outputs"
            exec("".join(cell["source"]), names)  # as a kernel does, all cells in one namespace
    assert "mean rank" in capsys.readouterr().out and names["found"].features.shape == (40, 192)
    assert (tmp_path / "comparison" / "index.html").is_file()
