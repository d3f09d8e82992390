"""README's table of tasks and backbones: every cell is tried, on small networks and a few images."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain import train
from pretrain.sample import __main__ as sample
from tests.support import small_world
from tests.support.commands import HEADS, QUICK, ROOT
from tests.support.modules import command_module

MINE = """
import torch

class Mine(torch.nn.Module):
    preprocessing = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "size": 32}
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 8, 8)
    def tokens(self, images):
        return self.stem(images)
    def pooled(self, images):
        return self.tokens(images).mean(dim=(2, 3))

class Bare(torch.nn.Module):
    preprocessing = Mine.preprocessing
    def forward(self, images):
        return images.flatten(1)[:, ::97]
"""
PROBE = "--data data --crop 32 --resize 32 --workers 0 --cache CACHE --out NEW.json"
TASKS = {
    "`probes.knn`": ("probes.knn", f"{PROBE} --k 3"),
    "`probes.linear`": ("probes.linear", f"{PROBE} --epochs 1 --lr 0.1 --mode cached"),
    "`probes.logistic`": ("probes.logistic", PROBE),
    "`probes.cluster`": ("probes.cluster", PROBE),
    "`probes.semi`": ("probes.semi", f"{PROBE} --epochs 1 --tuned-epochs 6 --percent 50"),
    "`probes.segment`": ("probes.segment", "--images 4 --epochs 1 --size 64 --lr 0.01 --out NEW.json"),
    "`probes.retrieval`": ("probes.retrieval", "--suite copydays --size 64 --out NEW.json"),
    "`probes.video`": ("probes.video", "--limit 1 --size 64 --out NEW.json"),
    "`probes.compare`": ("probes.compare", "--data data --probes knn --crop 32 --resize 32 --workers 0 --cache CACHE --out NEW"),
    "`probes.embed`": ("probes.embed", PROBE.replace("NEW.json", "NEW.parquet")),
    "`probes.finetune`": (
        "probes.finetune",
        "--data data --batch-size 8 --epochs 1 --warmup-epochs 0 --input-size 32 --workers 0 --precision fp32 --folder NEW "
        "--out NEW.json",
    ),
    "`tools/pretrain.sh` with `--init-from`": ("pretrain.train", f"{' '.join(QUICK)} --data data --steps 1 --out NEW"),
    "`checkpoints.export`": ("checkpoints.export", "--to original --out NEW"),
}
"""By the command in the table: module and flags."""
KINDS = {
    "iBOT, DINO, DINOv2 files": "runs/ours",
    "timm ViT": "timm:test_vit.r160_in1k@vit.safetensors",
    "ResNet, ConvNeXt, ...": "timm:test_resnet.r160_in1k@resnet.safetensors",
    "Hugging Face folder": "hf:folder",
    "your own module": "python:mine.py:Mine",
}
"""By the head of the column: a backbone of that kind."""


def table() -> list[tuple[str, str, str]]:
    """Command, kind and cell of README's table."""
    lines = (ROOT / "README.md").read_text().partition("<!-- tasks: tests/probes/test_readme_tasks.py -->\n\n")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return [(row[1], kind, cell) for row in rows[2:] for kind, cell in zip(rows[0][2:], row[2:], strict=True)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        small_world.make_samples_small(patch)
        sample.main(["--out", "data", "--count", "20", "--size", "32"])
        assert run_command(train.main, [*QUICK, "--data", "data", "--steps", "1", "--out", "runs/ours"]) == DONE
        torch.manual_seed(0)
        for name in ("vit", "resnet"):
            save_file(timm.create_model(f"test_{name}").state_dict(), f"{name}.safetensors")
        shape: dict[str, Any] = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 8,
            "image_size": 32,
        }
        Dinov2Model(Dinov2Config(**shape)).save_pretrained("folder")
        BitImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained("folder")
        Path("mine.py").write_text(MINE)
        yield root


@pytest.mark.parametrize(("task", "kind", "cell"), [one for one in table() if one[0] in TASKS], ids=str)
def test_a_cell(
    task: str,
    kind: str,
    cell: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, flags = TASKS[task]
    asked = [KINDS[kind]] + (["python:mine.py:Bare"] if cell == "if it has tokens" else [])
    for said in asked:
        name = "--init-from" if module == "pretrain.train" else "--ckpt"
        ckpts = (
            [said, KINDS["timm ViT" if "ours" in said else "iBOT, DINO, DINOv2 files"]] if module == "probes.compare" else [said]
        )
        new = str(tmp_path / re.sub(r"\W", "_", said))
        words = [word.replace("NEW", new).replace("CACHE", str(tmp_path / "cache")) for word in flags.split()]
        if module == "pretrain.train" and said.startswith("timm:test_vit"):
            sizes = "--arch test_vit --patch-size 16 --global-crops-size 160 --local-crops-number 0"
            words = [
                *sizes.split(),
                *HEADS,
                *"--batch-size-per-gpu 4 --precision fp32 --compile off --workers 0".split(),
                *words[-6:],
            ]
        monkeypatch.setattr("sys.argv", [module, name, *ckpts])
        code = run_command(importlib.import_module(command_module(module)).main, [name, *ckpts, *words])
        error = capsys.readouterr().err
        expected = DONE if cell in ("yes", "if it has tokens") and "Bare" not in said else WRONG_COMMAND
        assert code == expected, (said, error)
        assert code == DONE or error.count("error: ") == 1, error


def test_every_row_and_column_is_tried_or_tried_elsewhere() -> None:
    rows = {task for task, _, _ in table()}
    assert {kind for _, kind, _ in table()} == set(KINDS)
    assert rows - set(TASKS) == {
        "`tools/transfer_coco.sh`",
        "`tools/transfer_ade20k.sh`",
    }  # tests/transfer/test_foreign_commands.py
