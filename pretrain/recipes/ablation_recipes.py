"""A recipe for every row of the paper's ablations, at the paper's scale: `ablation_t9_beit`, `ablation_t17_vanilla`, ..."""

from pretrain.recipes.ablation_rows import Row, Table
from pretrain.recipes.ablations import TABLES
from pretrain.recipes.presets import Recipe

SHORT = {
    "dino": "ablation_t9_dino",
    "mim_only": "ablation_t9_mim_only",
    "frozen_tokenizer": "ablation_t9_frozen_tokenizer",
    "beit": "ablation_t9_beit",
    "beit_dino": "ablation_t9_beit_dino",
    "hard_labels": "ablation_t18_hardmax",
    "dense_position": "ablation_te_dense_selfdistill_dense_position",
    "dense_feature": "ablation_te_dense_selfdistill_dense_feature",
}
"""Other names of those that stand for a method."""

METRICS = {"knn": "k-NN", "linear": "linear", "nmi_epoch100": "NMI after 100 epochs"}
TOKENIZERS = {"dalle": "--tokenizer dalle:FILE", "colour": "--tokenizer colour", "patches": "--tokenizer kmeans:FILE"}
"""Flags that the command must have besides. FILE of kmeans comes from python -m pretrain.tokenizers patches."""


def recipe_name(table: Table, row: Row) -> str:
    """A row's name for `--recipe`."""
    name = table.name.lower()
    after = row.name.removeprefix(f"{name}_").removeprefix(f"{name.partition('_')[2]}_")
    return f"ablation_{name}_{after}"


def expected(table: Table, row: Row) -> str:
    """The published numbers in words."""
    numbers = ", ".join(f"{METRICS[column]} {value:.1f}" for column, value in row.numbers.items())
    notes = [table.published.replace("_", " ")] + ["on the mean of the patch tokens"] * row.pooled + [row.note] * bool(row.note)
    return f"{numbers} ({'; '.join(notes)})"


def _recipe(table: Table, row: Row) -> Recipe:
    settings = table.settings(row)
    machine = "--accumulate 4" if row.arch == "ViT-B/16" else "--batch-size-per-gpu 128"
    if row.tokenizer:
        machine += f" {TOKENIZERS[row.tokenizer]}"
    if row.needs:
        machine += f" --tokenizer runs/{recipe_name(table, table.row(row.needs))}"
    arch = row.arch.partition(" ")[0]
    what = f"{arch}, {settings['epochs']} epochs: {table.name}, {row.method}"
    return Recipe(what, settings, expected(table, row), row.cost, machine)


ABLATIONS: dict[str, Recipe] = {
    recipe_name(table, row): _recipe(table, row) for table in TABLES.values() for row in (*table.rows, *table.helpers)
}
"""By name; in full by `python -m pretrain.config NAME`."""


def listed() -> str:
    """All of them, a line each, by table."""
    also = {long: short for short, long in SHORT.items()}
    lines = ["The paper's ablations (python -m pretrain.config NAME says more, tools/ablate.sh runs a table):"]
    for table in TABLES.values():
        lines.append(f"\n{table.name}: {table.what}")
        for row in table.rows:
            name = recipe_name(table, row)
            other = f" (also {also[name]})" if name in also else ""
            lines.append(f"  {name}{other}: {row.method}, {row.arch.partition(' ')[0]}")
    return "\n".join(lines)
