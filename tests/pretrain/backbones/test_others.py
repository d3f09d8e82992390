"""torchvision's classifiers and networks of one's own, as backbones to measure."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision import models

from checkpoints.cli import UserError, WorkError
from pretrain.backbones import timm_file
from pretrain.backbones.open import open_backbone
from pretrain.backbones.own import adapted, known
from pretrain.backbones.torchvision_model import TorchvisionModel
from pretrain.evaluate.views import evaluation_view
from pretrain.models.measured import Measured, Preprocessing, patch_tokens
from tests.support import networks


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_pooled_features_are_what_torchvisions_last_layer_reads(name: str, tmp_path: Path) -> None:
    """On 46c01a2 there was no way to name such a model."""
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    found = open_backbone(Path(f"torchvision:{name}.IMAGENET1K_V1@{tmp_path / 'weights.pth'}")).backbone
    assert isinstance(found, Measured) and "patches" in found.abilities
    its, pixels = found.preprocessing, np.random.default_rng(0).integers(0, 256, (250, 300, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((90, 75)).resize((300, 250), Image.Resampling.BICUBIC))
    weights = models.get_model_weights(name)["IMAGENET1K_V1"]
    view = evaluation_view(pixels, its.resize, its.crop, its.interpolation, its.squash, mean=its.mean, std=its.std)
    assert_close(view, weights.transforms()(Image.fromarray(pixels)), rtol=0, atol=1e-5)
    read: list[Tensor] = []
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    last.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    with torch.inference_mode():
        model(view[None])
        assert_close(found.pooled(view[None]), read[0], rtol=1e-4, atol=1e-4)
        side = its.crop // found.shape.stride
        assert patch_tokens(found, view[None]).shape[1] == side * side


def test_a_vit_of_torchvision_has_a_class_token_and_patches() -> None:
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, 2, 2, 32, 64).eval()
    how = Preprocessing((0.5,) * 3, (0.5,) * 3, 32, 32)
    images = torch.rand(2, 3, 32, 32)
    found = TorchvisionModel("vit", model, how, lambda: model)
    assert found.abilities == {"cls", "patches"} and found.cls_is_pooled and found.multiple == 8
    assert found.outputs(images).pooled.shape == (2, 32) and patch_tokens(found, images).shape == (2, 16, 32)
    with pytest.raises(UserError, match="torchvision:vit does not take images of 40 x 40 pixels"):
        found.fit(40)


def test_names_that_torchvision_has_not_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torchvision has no classifier resnet17"):
        open_backbone(Path("torchvision:resnet17"))
    with pytest.raises(UserError, match="torchvision has no weights 'V9' of resnet18"):
        open_backbone(Path("torchvision:resnet18.V9"))
    torch.save(models.resnet18().state_dict(), tmp_path / "18.pth")
    with pytest.raises(UserError, match="as torchvision's resnet34 does not fit: it lacks"):
        open_backbone(Path(f"torchvision:resnet34@{tmp_path / '18.pth'}"))


class Mine(nn.Module):
    """A network by the protocol, wrong where it is told to be."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.stem, self.wrong = nn.Conv2d(3, 8, 4, 4), wrong
        half = (0.5, 0.5, 0.5)
        self.preprocessing: Any = None if wrong == "preprocessing" else {"mean": half, "std": half, "size": 32}

    def tokens(self, images: Tensor) -> Tensor:
        found = self.stem(images)
        return found.flatten(2).transpose(1, 2)[:, 1:] if self.wrong == "tokens" else found

    def pooled(self, images: Tensor) -> Any:
        found = self.stem(images)
        return {"pooled": found.mean(dim=(2, 3)), "output": {}, "shape": found}.get(
            self.wrong or "pooled", found.mean(dim=(2, 3))
        )


def test_a_module_of_ones_own_is_measured() -> None:
    module = Mine()
    found = known(module)
    images = torch.rand(2, 3, 32, 32)
    assert isinstance(found, Measured) and (found.shape.stride, found.shape.embed_dim) == (4, 8)
    assert_close(found.pooled(images), module.pooled(images))
    assert patch_tokens(found, images).shape == (2, 64, 8) and found.last_blocks(images, 4)[-1].shape == (2, 65, 8)
    own = networks.backbone()
    assert known(own) is own
    with pytest.raises(UserError, match="cannot be made with random weights"):
        found.fresh()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("preprocessing", "mine has no preprocessing: give it mean, std and size"),
        ("output", "its pooled feature is a dict, not"),
        ("shape", r"its pooled feature is \[2, 8, 8, 8\], not \[2, width\]"),
        ("tokens", "63 tokens of a square image are no"),
    ],
)
def test_a_module_that_breaks_the_protocol_is_one_sentence(wrong: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        adapted(Mine(wrong), "mine")
    with pytest.raises(UserError, match="mine is a list, not a torch module"):
        adapted([1], "mine")


def test_code_is_run_only_where_this_call_was_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record, a configuration or a file that says `python:...` runs nothing: the words must stand on the command line."""
    file = tmp_path / "mine.py"
    lines = [
        "from pathlib import Path",
        f"from {Mine.__module__} import Mine as build",
        f"Path({str(tmp_path / 'ran')!r}).touch()",
    ]
    file.write_text("\n".join(lines))
    said = f"python:{file}:build"
    with pytest.raises(UserError, match="code is run only where it is typed as --ckpt"):
        open_backbone(Path(said))
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(sys, "argv", ["probes.knn", "--ckpt", said])
    loaded = open_backbone(Path(said))
    assert (tmp_path / "ran").exists() and loaded.backbone.shape.arch == "python:mine.py:build"
    file.write_text("def build():\n    raise SystemExit(0)\n")  # would end the command as if all had gone well
    with pytest.raises(UserError, match="SystemExit"):
        open_backbone(Path(said))
    for words, more in ((f"python:{file}:nothing", "AttributeError"), ("python:nowhere.py:build", "a file that is there")):
        monkeypatch.setattr(sys, "argv", ["probes.knn", f"--ckpt={words}"])
        with pytest.raises(UserError, match=more):
            open_backbone(Path(words))


@pytest.mark.parametrize(
    ("said", "words"), [("hf:", "hf: names no model"), ("timm:", "timm: names no model"), ("timm:@a.pth", "no model")]
)
def test_a_scheme_without_a_name_is_one_sentence(said: str, words: str) -> None:
    """The first version asked for a `config.json` of the current folder, or offered six of timm's models."""
    with pytest.raises(UserError, match=f"^{said}.* names no model"):
        open_backbone(Path(said))


def test_timms_weights_that_cannot_be_fetched_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(name: str, **_: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(timm_file, "built", offline)
    said = r"^timm's weights of resnet18 could not be fetched \(Name or service not known\): give a file"
    with pytest.raises(WorkError, match=said):
        open_backbone(Path("timm:resnet18"))
    assert "Retrying" not in capsys.readouterr().err
