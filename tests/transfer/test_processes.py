"""Dense transfer in two processes on CPUs."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from pretrain.sample import dense
from tests.support.commands import ROOT, command
from tests.support.networks import VIT, write_moved

pytest.importorskip("mmdet", reason="the extra `transfer` is not installed: tools/setup.sh transfer")

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "transfer.train")


def test_two_processes_train_and_test_a_segmenter_at_several_scales(tmp_path: Path) -> None:
    """MMEngine joins processes, wraps models and synchronises batch norms on GPUs only."""
    ckpt = write_moved(tmp_path / "b.safetensors", VIT._replace(depth=4, image_size=32))
    dense.write_ade20k(tmp_path / "data", {"train": 4, "val": 2}, size=64)
    flags = ["--task", "ade20k", "--ckpt", ckpt, "--data", tmp_path / "data", "--config", "sample_upernet", "--iters", "2"]
    flags += ["--batch-size", "2", "--multi-scale", "true", "--out", tmp_path / "run"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(**command(*TWO, *map(str, flags), PYTHONPATH=paths), check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "run" / "results" / "transfer_ade20k.json").read_text())
    assert found["protocol"]["images_a_step"] == 4
    assert {"miou", "miou_ms"} <= found["metrics"].keys()
