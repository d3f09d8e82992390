"""--config: flags from a file, as if typed, but for what a file may not say."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from checkpoints.cli import UserError, parse
from pretrain.engine.options import as_values
from pretrain.options.command_line import read_command_line
from pretrain.recipes.registry import RECIPES


@dataclass(frozen=True)
class Options:
    """A command."""

    data: str = "sample"
    """Images."""
    ckpt: Path | None = None
    """A checkpoint."""
    tokenizer: str | None = None
    """Codes."""
    track: Literal["none", "wandb"] = "none"
    """Where the log goes."""
    device: str | None = None
    """Of the work."""
    batch_size: int = 8
    """Images at once."""
    lr: float = 0.1
    """Of the optimizer."""
    k: tuple[int, ...] = (10, 20)
    """Neighbours."""
    untrained: bool = False
    """Random weights."""
    report: bool = True
    """A page."""


def given(tmp_path: Path, content: str, *words: str) -> Options:
    file = tmp_path / "flags.yaml"
    file.write_text(content)
    return parse(Options, ["--config", str(file), *words])


def test_yaml_is_as_if_typed_and_what_is_typed_wins(tmp_path: Path) -> None:
    """46c01a2 has no such flag. 5e-4 is a text to YAML 1.1, and `on` a truth value."""
    (tmp_path / "last.pt").touch()
    content = f"lr: 5e-4\nbatch-size: 4\nk: [1, 2, 3]\nuntrained: true\nreport: off\ndevice: cuda:1\nckpt: {tmp_path}/last.pt\n"
    found = given(tmp_path, content)
    assert found == Options(
        lr=5e-4, batch_size=4, k=(1, 2, 3), untrained=True, report=False, device="cuda:1", ckpt=tmp_path / "last.pt"
    )
    found = given(tmp_path, content, "--batch_size", "2", "--no-untrained", "--k", "7", "--ckpt", "a name")
    assert (found.batch_size, found.untrained, found.k, found.ckpt, found.lr) == (2, False, (7,), Path("a name"), 5e-4)
    assert given(tmp_path, "# nothing\n") == Options()
    assert given(tmp_path, "ckpt: null\nk: []\n") == Options(k=())


@pytest.mark.parametrize("recipe", ["sample", "ibot_vitb16", "ibot_swint7"])
def test_the_config_of_a_run_is_read_back(recipe: str, tmp_path: Path) -> None:
    if recipe not in RECIPES:
        pytest.fail(f"there is no recipe {recipe}")
    typed = read_command_line(
        ["--recipe", recipe, "--data", "pictures", "--lr", "0.00001", "--no-report", "--value_range", "0", "9"]
    )
    (tmp_path / "config.json").write_text(json.dumps(as_values(typed)))
    config = ["--config", str(tmp_path / "config.json")]
    assert read_command_line(config) == typed
    assert as_values(read_command_line([*config, "--data-path", "sample", "--use_fp16", "false"])) == as_values(typed) | {
        "data": "sample",
        "precision": "fp32",
    }


WRONG = (
    ("batchsize: 3", "there is no flag --batchsize: perhaps --batch-size"),
    ("nonsense: 3", "there is no flag --nonsense: leave it out"),
    ("config: other.yaml", "there is no flag --config"),
    ("lr: 1\nlr: 2", "lr stands there twice"),
    ('{"lr": 1, "lr": 2}', "lr stands there twice"),
    ("data: hf:cifar10", "type --data hf:cifar10"),
    ("data: 'pipe:touch owned'", "type --data pipe:touch owned"),
    ("data: torchvision:CIFAR10", "type --data torchvision:CIFAR10"),
    ("data: https://example.org/x.tar", "type --data https://example.org/x.tar"),
    ("ckpt: timm:vit_small_patch16_224", "type --ckpt timm:"),
    ("ckpt: python:mine.py:build", "type --ckpt python:mine.py:build"),
    ("ckpt: dino_vits16", "--ckpt dino_vits16 is no path that is there"),
    ("tokenizer: dalle", "type --tokenizer dalle"),
    ("track: wandb", "type --track wandb"),
    ("data: --track", "--data begins with a dash"),
    ("data: null", "--data has no value"),
    ("k: [[1], 2]", "--k has more than a value or a list of values"),
    ("data: !!python/object/apply:os.system [touch owned]", "is no plain value: leave such tags out"),
    ("- lr\n- 3", "it holds no names with values"),
    ("just words", "it holds no names with values"),
    ("a: [", "neither YAML nor JSON"),
    ('{"lr": ', "neither YAML nor JSON"),
    ("lr: .nan", "--lr"),
)


@pytest.mark.parametrize(("content", "said"), WRONG, ids=[content for content, _ in WRONG])
def test_what_a_file_may_not_say_is_one_sentence_and_exit_code_2(
    content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if content == "lr: .nan":  # refused where numbers are read
        with pytest.raises(SystemExit) as end:
            given(tmp_path, content)
        assert end.value.code == 2
    else:
        with pytest.raises(UserError, match=said):
            given(tmp_path, content)
    assert not (tmp_path / "owned").exists()


def test_the_file_itself(tmp_path: Path) -> None:
    for words, said in (
        (["--config"], "--config needs a file"),
        (["--config", str(tmp_path)], "cannot be read"),
        (["--config", str(tmp_path / "none")], "cannot be read"),
        (["--config", "a", "--config", "b"], "given twice"),
    ):
        with pytest.raises(UserError, match=said):
            parse(Options, words)
    (tmp_path / "junk").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no text in UTF-8"):
        parse(Options, ["--config", str(tmp_path / "junk")])
