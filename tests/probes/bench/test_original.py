"""The original's modules beside ours: a stand-in for its repository, which says what it was asked for."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from checkpoints.cli import WRONG_COMMAND
from probes.bench import data, step
from tests.support.commands import exit_code

MAIN = """
import tensorboardX, utils, models, torch
from torch import nn
from models.head import iBOTHead
from loader import ImageFolderMask
from evaluation.unsupervised.unsup_cls import eval_pred

class iBOTLoss(nn.Module):
    def __init__(self, *arguments, lambda1, lambda2):
        super().__init__()
    def forward(self, student, teacher, local, masks, epoch):
        assert not teacher[0].requires_grad and len(masks) == 2
        return {"loss": (student[0] - teacher[0]).square().mean() + student[1].square().mean() + local.square().mean() + 1}

class DataAugmentationiBOT:
    def __init__(self, global_scale, local_scale, globals_, locals_):
        self.count = globals_ + locals_
    def __call__(self, image):
        return [image.resize((8, 8))] * self.count
"""
UTILS = """
import torch
from torch import nn

class MultiCropWrapper(nn.Module):
    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head
    def forward(self, images, mask=None):
        assert (mask is not None) <= self.backbone.masked_im_modeling
        return self.head(torch.cat([self.backbone(one) for one in images]))

def get_params_groups(model):
    return [{"params": list(model.parameters())}, {"params": [], "weight_decay": 0.0}]

def clip_gradients(model, limit):
    assert all(one.grad is not None for one in model.parameters())
"""
MODELS = """
from torch import nn

class Backbone(nn.Module):
    embed_dim = 4
    def __init__(self, patch_size, return_all_tokens, masked_im_modeling=False, drop_path_rate=0.0):
        super().__init__()
        self.masked_im_modeling, self.layer = masked_im_modeling, nn.Linear(3, 4)
    def forward(self, images):
        return self.layer(images.mean((2, 3)))

vit_tiny = vit_small = Backbone
"""
HEAD = """
from torch import nn

class iBOTHead(nn.Module):
    def __init__(self, width, out_dim, patch_out_dim, act, shared_head, norm_last_layer=True):
        super().__init__()
        self.last = nn.Linear(width, out_dim)
    def forward(self, tokens):
        return self.last(tokens), self.last(tokens)
"""
FILES = {"main_ibot.py": MAIN, "utils.py": UTILS, "loader.py": "ImageFolderMask = None", "models/__init__.py": MODELS}


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A repository with the names that the original has, and nothing of what they do."""
    (tmp_path / "clone" / "models").mkdir(parents=True)
    for name, text in {**FILES, "models/head.py": HEAD}.items():
        (tmp_path / "clone" / name).write_text(text)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path / "clone"
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("main_ibot", "utils", "models", "loader", "evaluation", "tensorboardX"):
            del sys.modules[name]
    assert sys.path == path
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_step_of_the_original_is_timed(clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """46c01a2 had only the plain method."""
    flags = ["--tiny", "--batch-size", "2", "--rounds", "1", "--precision", "fp32", "--json", str(tmp_path / "n.json")]
    assert exit_code(step.main, [*flags, "--variant", "original", "--against", "original", str(clone)]) == 0
    assert '"seconds"' in capsys.readouterr().out and "loss" in (tmp_path / "n.json").read_text()


def test_its_augmentation_is_timed(clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--images 2 --batch-size 2 --rounds 1 --recipe sample".split()
    assert exit_code(data.main, [*flags, "--against", "original", str(clone), "--json", str(tmp_path / "n.json")]) == 0
    assert "the original's own" in capsys.readouterr().out and "the original's own" in (tmp_path / "n.json").read_text()


@pytest.mark.parametrize("main", [step.main, data.main])
def test_what_is_no_clone_is_one_sentence(main: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(main) and exit_code(main, ["--against", "original", str(tmp_path)]) == WRONG_COMMAND
    complained = " ".join(capsys.readouterr().err.split())
    assert "this is no clone of the original's repository (it has no main_ibot.py)" in complained
    assert len(complained) < 400 and "Traceback" not in complained
