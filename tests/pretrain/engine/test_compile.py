"""Compiled blocks."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from checkpoints.cli import DONE, run_command
from pretrain import train
from tests.support.commands import SMALL


@pytest.mark.filterwarnings("ignore")  # the compiler's remarks on itself
def test_compiled_blocks_train_to_the_same_losses_and_a_compiler_that_fails_stops_nothing(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    flags = [*SMALL, "--depth", "1", "--data", str(folders), "--steps", "2", "--precision", "fp32", "--knn-every", "0"]
    for mode in ("off", "on"):
        assert run_command(train.main, [*flags, "--compile", mode, "--out", str(tmp_path / mode)]) == DONE
        line = json.loads((tmp_path / mode / "metrics.jsonl").read_text().splitlines()[-1])
        losses.append((line["loss_cls"], line["loss_patch"]))
    assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-4, atol=1e-5)
    assert "not compiled" not in capsys.readouterr().out

    def broken(self: torch.nn.Module, **options: object) -> None:
        def fail(*inputs: object) -> None:
            raise RuntimeError("no compiler here")

        self._compiled_call_impl = fail

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    assert run_command(train.main, [*flags, "--compile", "on", "--out", str(tmp_path / "broken")]) == DONE
    assert "note: the blocks are not compiled (no compiler here)" in capsys.readouterr().out
