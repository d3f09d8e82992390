"""What sources cost at their size: each kind is made with as many images as asked for, and opened."""

import json
import mmap
from pathlib import Path

import pytest

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from probes.bench import sources
from probes.shared import memory


def test_every_kind_is_made_opened_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK", 20)
    flags = ["--images", "40", "--read", "5", "--size", "16", "--out", str(tmp_path), "--json", str(tmp_path / "n.json")]
    assert run_command(sources.main, flags) == DONE
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert {name.split()[0] for name in numbers} == set(sources.MAKERS) and all(value >= 0 for value in numbers.values())
    assert [path.name for path in tmp_path.iterdir()] == ["n.json"]


def test_a_number_that_blocks_do_not_make_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "BLOCK", 20)
    flags = ["--images", "50", "--kinds", "shards", "--read", "5", "--size", "16", "--out", str(tmp_path)]
    assert run_command(sources.main, flags) == WRONG_COMMAND
    assert "--images takes multiples of 20" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_memory_that_is_taken_is_seen() -> None:
    """A mapping of its own: an allocation may lie in what earlier tests have given back and the system keeps."""
    before = memory.held()
    with mmap.mmap(-1, 64_000_000) as block:
        for page in range(0, 64_000_000, mmap.PAGESIZE):
            block[page] = 1
        assert memory.held() - before > 50_000_000
