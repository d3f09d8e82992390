"""`tools/bench.sh count`: step and crops in one table, and the roofline of both."""

import json
import subprocess
from functools import partial
from pathlib import Path

import pytest

from checkpoints.cli import WRONG_COMMAND
from probes.bench import count, host
from probes.bench.roofline import roofline
from tests.support.commands import command, exit_code

TINY = ("--depth", "1", "--width", "64", "--drop-path", "0")


def test_the_slower_of_device_and_host_decides() -> None:
    bound = roofline(128, device_ms=50.0, launches=1000, python_ms=30.0)
    assert bound.host_ms == pytest.approx(35.0) and bound.images_per_second == pytest.approx(128 / 0.050)
    assert roofline(128, device_ms=20.0, launches=1000, python_ms=30.0).images_per_second == pytest.approx(128 / 0.035)


def test_the_table_has_step_and_crops_and_the_card_decides_the_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """46c01a2 had no such command; the first one left crops and Python out."""
    monkeypatch.setattr(count, "step_on", partial(count.step_on, flags=TINY))
    monkeypatch.setattr(count, "python_milliseconds", lambda arch: (3.0, 1.0))
    found = {}
    for card in ("H100", "H200"):
        words = ["--batch-size", "2", "--card", card, "--json", str(tmp_path / card), *(["--markdown"] if card == "H200" else [])]
        assert exit_code(count.main, words) == 0
        found[card] = json.loads((tmp_path / card).read_text())
        said = capsys.readouterr().out
        assert "step and crops" in said and ("| step and crops | " in said) == (card == "H200")
    one, other = found["H100"], found["H200"]
    rows = one["rows"]
    for name in ("launches", "other_bytes", "milliseconds"):
        assert rows["step and crops"][name] == pytest.approx(rows["step"][name] + rows["crops"][name])
    assert rows["crops"]["launches"] > 0 and rows["step"]["launches"] > 0
    assert one["device_ms"] == pytest.approx(rows["step and crops"]["milliseconds"])
    assert one["host_ms"] == pytest.approx(0.005 * rows["step and crops"]["launches"] + 4.0)
    assert one["images_per_second"] == pytest.approx(2000 / max(one["device_ms"], one["host_ms"]))
    assert other["device_ms"] < one["device_ms"] and other["host_ms"] == one["host_ms"]


@pytest.mark.parametrize("wrong", [("--card", "A100"), ("--card", ""), ("--batch-size", "0")])
def test_a_wrong_command_is_refused(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(count.main, list(wrong)) == WRONG_COMMAND
    assert wrong[0] in capsys.readouterr().err


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from checkpoints.cli import run_command
from probes.bench import count, data, pretended_gpu, step
with pretended_gpu.pretended():
    pass
sys.exit(run_command(count.main, []))
"""


def test_a_machine_without_triton_is_told_what_to_install() -> None:
    """46c01a2 had no such kernels; the first version with them ended in a traceback of an import."""
    done = subprocess.run(**command("-c", WITHOUT_TRITON), check=False, timeout=120)
    said = [line for line in done.stderr.splitlines() if "torch/utils" not in line]  # torch remarks on it, too
    assert done.returncode == WRONG_COMMAND and len(said) == 1 and "pip install triton" in said[0], done.stderr


def test_pythons_time_is_of_a_real_step_and_real_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "WIDTH", " ".join(TINY))
    step, crops = host.python_milliseconds("vit_small", rounds=1)
    assert step > 0 and crops > 0
