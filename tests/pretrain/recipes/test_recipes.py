"""The paper's settings by name: possible, as large a step as the paper's, and listed with what they cost."""

import shlex

import pytest

from checkpoints.cli import DONE, WRONG_COMMAND, run_command
from pretrain import config
from pretrain.engine.options import as_values
from pretrain.options.command_line import read_command_line
from pretrain.recipes import registry
from pretrain.setup.plan import plan_of
from probes.paper import published

PUBLISHED = [name for name in registry.NAMED if name.startswith("ibot")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_command_of_a_recipe_makes_the_papers_step_on_eight_gpus(name: str) -> None:
    line = registry.described(name).partition("command   ")[2].partition(" (eight GPUs)")[0]
    tool, *flags = shlex.split(line)
    plan = plan_of(read_command_line(flags))
    images = 8 * plan.batch_size
    assert tool == "tools/pretrain.sh" and plan.options.run.recipe == name and images == (1040 if "swint14" in name else 1024)
    assert name.endswith(f"_{plan.options.optimisation.epochs}")


@pytest.mark.parametrize("name", [name for name in registry.NAMED if name.startswith("ibot_vits16")])
def test_eight_gpus_of_80_gb_take_a_vit_s_step_at_once_with_the_same_learning_rate(name: str) -> None:
    """46c01a2 advised two micro-batches of 64: the same step, in twice the launches."""
    flags = ["--recipe", name, "--data", "x"]
    whole = plan_of(read_command_line([*flags, *registry.NAMED[name].machine.split()]))
    parts = plan_of(read_command_line([*flags, "--accumulate", "2"]))
    steps = whole.options.optimisation
    assert (steps.batch_size_per_gpu, steps.accumulate) == (128, 1)
    assert whole.schedule(100, 8) == parts.schedule(100, 8) and whole.schedule(100, 8).lr == steps.lr * 1024 / 256


def test_expected_numbers_are_the_tables_own() -> None:
    """Those of Table 1, by architecture."""
    rows = {row.arch: row.cells for row in published.tables()["T1_knn_linear_in1k"].rows if row.method == "iBOT"}
    found = {
        "ViT-S/16": "ibot_vits16_800",
        "ViT-B/16": "ibot_vitb16_400",
        "ViT-L/16": "ibot_vitl16_250",
        "Swin-T/7": "ibot_swint7_300",
        "Swin-T/14": "ibot_swint14_300",
    }
    assert rows.keys() == found.keys()
    for arch, name in found.items():
        assert f"k-NN {rows[arch]['knn']:.1f}, linear {rows[arch]['linear']:.1f}" in registry.NAMED[name].expected


def test_recipes_are_listed_and_short_names_mean_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(config.main, []) == DONE
    listed = capsys.readouterr().out
    for name, recipe in registry.NAMED.items():
        assert f"{name}" in listed and recipe.cost in listed and recipe.expected in listed
    for short, name in registry.SHORT.items():
        assert f"{name} (also {short}):" in listed and registry.RECIPES[short] == registry.RECIPES[name]
    assert run_command(config.main, ["ibot_vitb16"]) == DONE
    flags = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    typed = read_command_line(["--data", "x", "--arch", "vit_base", *shlex.split(" ".join(flags))])
    asked = read_command_line(["--data", "x", "--recipe", "ibot_vitb16"])
    assert as_values(typed) | {"recipe": None} == as_values(asked) | {"recipe": None}
    assert run_command(config.main, ["nothing"]) == WRONG_COMMAND
