"""Checkpoint files are whole or absent, and never run code."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints import published, store
from checkpoints.cli import UserError
from tests.support.bomb import Bomb


def test_a_saved_run_comes_back_and_the_one_before_it_is_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        store.save_run(tmp_path, {"step": step, "weights": torch.full((3,), step)})
    found = store.load_run(tmp_path)
    assert found is not None and found[0]["step"] == 2 and found[1].name == store.LAST
    assert store.read_torch(tmp_path / store.PREVIOUS)["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.LAST, store.PREVIOUS]


def test_a_truncated_checkpoint_is_passed_over_for_the_previous_one(tmp_path: Path) -> None:
    for step in (1, 2):
        store.save_run(tmp_path, {"step": step, "weights": torch.randn(1000)})
    last = tmp_path / store.LAST
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    found = store.load_run(tmp_path)
    assert found is not None and found[0]["step"] == 1


def test_a_folder_of_broken_checkpoints_is_an_error_that_names_them(tmp_path: Path) -> None:
    (tmp_path / store.LAST).write_bytes(b"not a \xff checkpoint")
    with pytest.raises(UserError, match=r"last\.pt is not a readable checkpoint"):
        store.load_run(tmp_path)


@pytest.mark.parametrize("through", [store.read_torch, published.read])
def test_code_in_a_checkpoint_is_refused_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"student": {}, "teacher": {}, "ibot_loss": {}, "args": Bomb()}, "bomb.pth")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        through(Path("bomb.pth"))
    Path("plain.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        through(Path("plain.pkl"))
    assert not Path("exploded").exists()


def test_a_published_file_with_a_strange_key_is_refused_by_name(tmp_path: Path, parity_dir: Path) -> None:
    with torch.serialization.safe_globals(published.ALLOWED):
        content = torch.load(parity_dir / "checkpoint_published_layout.pth", weights_only=True)
    strange = {**content, "student": {**content["student"], "module.extra.weight": torch.zeros(1)}}
    torch.save(strange, tmp_path / "strange.pth")
    with pytest.raises(UserError, match=r"neither backbone nor head: extra\.weight"):
        published.read(tmp_path / "strange.pth")
    torch.save({**content, "args": argparse.Namespace(), "ibot_loss": {"center": torch.zeros(1)}}, tmp_path / "centre.pth")
    with pytest.raises(UserError, match="center and center2"):
        published.read(tmp_path / "centre.pth")
    del content["optimizer"]
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(UserError, match="lacks optimizer"):
        published.read(tmp_path / "short.pth")


def test_a_backbone_file_describes_itself(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    store.save_backbone(path, {"w": torch.arange(3.0)}, {"epoch": 4})
    weights, metadata = store.read_safetensors(path)
    assert metadata["about"] == {"epoch": 4} and torch.equal(weights["w"], torch.arange(3.0))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        store.read_safetensors(path)


def test_the_newest_run_is_found_and_its_absence_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain with tools/pretrain\.sh"):
        store.newest_run(tmp_path)
    for number, name in enumerate(("old", "new")):
        path = store.save_run(tmp_path / name, {"step": number})
        os.utime(path, (number, number))
    assert store.newest_run(tmp_path).name == "new"
