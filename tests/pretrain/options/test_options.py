"""Options in groups: plain flags, sections of --help, the original's names, flat names in files."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from checkpoints import flat
from checkpoints.cli import WRONG_COMMAND, run_command
from pretrain import train
from pretrain.engine.options import as_values
from pretrain.options.command_line import read_command_line
from pretrain.options.groups import PORT, Config
from pretrain.options.stored import FREE_TO_CHANGE, NEVER_TO_CHANGE, differences, from_values

NAMES = [field.name for field in flat.fields(Config)]


def test_an_option_lies_in_one_group_and_the_lists_of_names_name_options() -> None:
    assert not [name for name, count in Counter(NAMES).items() if count > 1]
    assert set(NAMES) >= FREE_TO_CHANGE | NEVER_TO_CHANGE and not FREE_TO_CHANGE & NEVER_TO_CHANGE
    assert all(dataclasses.is_dataclass(group.type) for group in dataclasses.fields(Config))


def test_help_has_a_section_for_each_group_and_plain_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        train.main(["--recipe", "sample", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "(default: 256)" in said  # --out-dim of the recipe
    for group in dataclasses.fields(Config):
        assert f" {group.name} options " in said and f"--{group.name}." not in said
    assert all(flat.flag(name) in said for name in NAMES)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--data_path x", "data", "x"),
        ("--output_dir=x", "out", "x"),
        ("--num-workers 3", "workers", 3),
        ("--lambda1 0.5", "lambda_cls", 0.5),
        ("--lambda2=2", "lambda_patch", 2.0),
        ("--window_size 14", "window", 14),
        ("--saveckp_freq 40", "keep_every", 40),
        ("--arch deit_base", "arch", "vit_base"),
        ("--arch=deit_tiny", "arch", "vit_tiny"),
        ("--arch vit_small --arch deit_small", "arch", "vit_small"),
        ("--use_fp16 false", "precision", "fp32"),
        ("--use-fp16=TRUE --seed 3", "precision", "auto"),
        ("--use_fp16 --seed 3", "precision", "auto"),
        ("--serve", "serve", PORT),
        ("--serve --seed 3", "serve", PORT),
        ("--serve 0", "serve", 0),
        ("--serve None", "serve", None),
        ("--depth None", "depth", None),
        ("--value-range -1 1e3", "value_range", [-1.0, 1000.0]),
        ("--shared-head no", "shared_head", False),
        ("--no-report", "report", False),
        ("--data sample:32", "recipe", "sample"),
        ("--data-path x", "recipe", "ibot_vits16"),
        ("--arch vit_small", "recipe", None),
        ("--arch vit_small --recipe beit", "recipe", "beit"),
        ("--recipe beit --recipe=dino", "recipe", "dino"),
    ],
)
def test_a_flag_means_what_it_meant(line: str, name: str, value: object) -> None:
    """Each as 46c01a2 read it, the original's names included."""
    assert as_values(read_command_line(line.split()))[name] == value


@pytest.mark.parametrize(
    "line",
    ["--precision true", "--use_fp16 maybe", "--epoch 3", "--images.data x", "--serve x", "--lr", "--recipe", "word"],
)
def test_a_wrong_command_line_ends_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = run_command(train.main, line.split())
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == WRONG_COMMAND and "Traceback" not in said and line.rsplit(maxsplit=1)[-1] in said


def test_options_go_to_a_file_and_back_by_their_flat_names() -> None:
    options = from_values(lr=0.1, out=Path("x"), pred_ratio=(0.1, 0.2), depth=3)
    values = as_values(options)
    assert list(values) == NAMES and (values["out"], values["pred_ratio"]) == ("x", [0.1, 0.2])
    assert (options.optimisation.lr, options.run.out, options.masks.pred_ratio) == (0.1, Path("x"), (0.1, 0.2))
    assert differences(values, {**values, "lr": 0.2, "out": "y"}) == {"lr": "--lr was 0.2, now 0.1"}
    with pytest.raises(TypeError, match="there is no option nothing"):
        from_values(nothing=1)
