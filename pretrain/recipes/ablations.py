"""The paper's ablations as values: what each published row changes, and what it reached.

Tables 9, 10, 17, 18, 20, the small tables of appendices B and E, Figures 8 and 11. A row is named by its settings: rows of the
same name in two tables are one training. What is uncertain about them is in docs/ablations.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pretrain.recipes.ablation_rows import (
    APART,
    CODES,
    CODES_ALONE,
    FIXED,
    MIM_ALONE,
    NO_MIM,
    RANDOM,
    SMALL_TWO,
    TWO,
    Row,
    Table,
    Values,
)
from pretrain.recipes.presets import SHORT_WARM_UP, TWO_CROPS

TWO_300 = "47.0 h on 16 V100, 13.1 GB each (Table 19)"
DINO_300 = "44.7 h on 16 V100, 9.3 GB each (Table 19)"
BEIT_300 = "33.7 h on 16 V100, 5.6 GB each, with one crop (Table 19); here two"
PLOT = "published number read off a plot"
DEFAULT = {"knn": 69.1, "linear": 74.2}

IBOT = Row("ibot", "iBOT", DEFAULT, cost=TWO_300)
DINO = Row("dino", "DINO", {"knn": 67.9, "linear": 72.5}, NO_MIM, cost=DINO_300)
FROZEN = Row(
    "frozen_tokenizer",
    "MIM with standalone DINO tokenizer, no CLS loss",
    {"knn": 44.3, "linear": 60.0},
    {"targets": "frozen"} | APART | MIM_ALONE,
    needs="dino",
    pooled=True,
)
BEIT = Row(
    "beit",
    "BEiT",
    {"knn": 6.9, "linear": 23.5},
    CODES_ALONE,
    tokenizer="dalle",
    pooled=True,
    cost=BEIT_300,
)


def _two_crops(name: str, what: str, published: str, *rows: Row, helpers: tuple[Row, ...] = ()) -> Table:
    """A table of ViT-S/16 of 300 epochs without local crops and with a fixed ratio."""
    return Table(name, published, what, rows, TWO, SMALL_TWO, helpers=helpers)


def _tokenization() -> Table:
    return _two_crops(
        "T9",
        "what the tokenizer must be: online, of semantic meaning, and shared",
        "T9_tokenizer_ablation",
        IBOT._replace(method="iBOT (MIM+CLS, shared head)"),
        Row("separate_heads", "MIM+CLS, separate heads", {"knn": 69.0, "linear": 73.8}, APART, cost=TWO_300),
        Row("mim_only", "MIM only", {"knn": 9.5, "linear": 29.8}, MIM_ALONE, pooled=True),
        FROZEN,
        BEIT,
        DINO._replace(method="DINO (CLS only)"),
        Row("beit_dino", "BEiT + DINO", {"knn": 48.0, "linear": 62.7}, CODES, tokenizer="dalle"),
    )


def _alternatives() -> Table:
    chosen = Row(
        "patch_clusters", "Patch Clustering", {"knn": 19.2, "linear": 40.1}, CODES_ALONE, tokenizer="patches", pooled=True
    )
    return _two_crops(
        "T20",
        "other tokenizers",
        "T20_alt_tokenizers",
        chosen._replace(
            name="mean_colours",
            method="MPP",
            numbers={"knn": 16.4, "linear": 37.2},
            tokenizer="colour",
            small={"tokenizer": "colour"},
        ),
        chosen,
        BEIT._replace(numbers={"knn": 6.9, "linear": 24.2}, note="the publication has three linear numbers for BEiT"),
        FROZEN._replace(method="Standalone DINO as tokenizer"),
        Row(
            "ratio_0.3_pm_0.2",
            "iBOT",
            {"knn": 70.3, "linear": 74.8},
            {"pred_ratio": (0.3,), "pred_ratio_var": (0.2,)},
            cost=TWO_300,
            note="ratio 0.3 +- 0.2 is inferred",
        ),
        helpers=(DINO,),
    )


def _heads() -> Table:
    semi: Values = {"shared_head": False, "shared_head_teacher": True}
    return _two_crops(
        "T17",
        "how much of the head [CLS] and patches share",
        "T17_head_sharing",
        Row("vanilla", "vanilla (separate heads)", {"knn": 68.9, "linear": 73.9}, APART | {"separate_layers": 3}),
        Row(
            "shared_dagger", "shared † (first 2 of 3 layers only)", {"knn": 68.0, "linear": 73.7}, APART | {"separate_layers": 1}
        ),
        Row("semi_shared", "semi-shared", {"knn": 68.4, "linear": 73.7}, semi),
        Row("semi_shared_dagger", "semi-shared †", {"knn": 68.4, "linear": 73.8}, semi | {"separate_layers": 1}),
        IBOT._replace(method="shared (default)"),
    )


def _labels() -> Table:
    recalled = "published numbers are recalled, not read"
    even: Values = {"warmup_teacher_patch_temp": 0.1, "teacher_patch_temp": 0.1}
    return _two_crops(
        "T18",
        "hard labels against soft ones",
        "T18_hard_soft",
        IBOT._replace(cells={"centering": True}),
        Row("only_sharpening", "only sharpening", {"knn": 69.4, "linear": 73.9}, {"centre_patches": False}, cost=TWO_300),
        DINO,
        Row(
            "no_sharpening",
            "softmax without sharpening",
            {"knn": 49.8, "linear": 63.5},
            even,
            note=f"{recalled}; whether with centring is unknown",
        ),
        Row(
            "hardmax",
            "hardmax",
            {"knn": 64.8, "linear": 71.9},
            {"targets": "hard"},
            note=f"{recalled}; whether with centring is unknown",
        ),
    )


def _dense() -> Table:
    return _two_crops(
        "TE_dense_selfdistill",
        "masked patches against patches matched between views",
        "TE_dense_selfdistill",
        DINO,
        Row("dense_position", "DINO + pos.", {"knn": 67.1, "linear": 72.5}, {"targets": "dense_position"}),
        Row("dense_feature", "DINO + feat.", {"knn": 68.5, "linear": 73.4}, {"targets": "dense_feature"}),
        IBOT,
    )


def _centres() -> Table:
    def row(name: str, momentum: float, temps: tuple[float, float], knn: float, linear: float) -> Row:
        text = "->".join(f"{temp:.2f}".removeprefix("0") for temp in temps)
        changes: Values = {"patch_centre_momentum": momentum} if momentum != 0.9 else {}
        small: Values = {}
        if temps != (0.04, 0.07):
            changes |= {"warmup_teacher_patch_temp": temps[0], "teacher_patch_temp": temps[1]}
            small = {"teacher_patch_temp": round(0.04 * temps[1] / 0.07, 4)}
        cells = {"m_prime": momentum, "tau_t_prime": text}
        return Row(name, "iBOT", {"knn": knn, "linear": linear}, changes, cells, small, cost=TWO_300)

    usual = (0.04, 0.07)
    return _two_crops(
        "TE_center_temp",
        "momentum of the patches' centre, temperature of their teacher",
        "TE_center_temp",
        row("centre_0.8", 0.8, usual, 68.7, 74.0),
        row("centre_0.99", 0.99, usual, 68.8, 73.8),
        row("centre_0.999", 0.999, usual, 68.9, 73.8),
        row("temp_0.04_0.06", 0.9, (0.04, 0.06), 68.5, 73.5),
        row("temp_0.05_0.08", 0.9, (0.05, 0.08), 68.7, 73.9),
        row("ibot", 0.9, usual, 69.1, 74.2),
    )


def _loss_ratio() -> Table:
    note = "read as L_CLS / L_MIM with L_CLS kept at 1; the publication's direction is uncertain"

    def row(name: str, ratio: float, knn: float, linear: float) -> Row:
        changes, small = {"lambda_patch": 1 / ratio}, {"lambda_patch": round(0.3 / ratio, 4)}
        return Row(name, "iBOT", {"knn": knn, "linear": linear}, changes, {"ratio": ratio}, small, cost=TWO_300, note=note)

    usual = IBOT._replace(cells={"ratio": 1.0})
    rows = (row("loss_ratio_0.5", 0.5, 68.7, 73.8), row("loss_ratio_2", 2.0, 69.4, 74.1), usual)
    return _two_crops("TE_loss_ratio", "weight of the two losses", "TE_loss_ratio", *rows)


def _out_dim() -> Table:
    def row(name: str, count: int, knn: float, linear: float) -> Row:
        changes: Values = {} if count == 8192 else {"out_dim": count, "patch_out_dim": count}
        small: Values = {} if count == 8192 else {"out_dim": count // 32, "patch_out_dim": count // 32}
        return Row(name, "iBOT", {"knn": knn, "linear": linear}, changes, {"K": count}, small, cost=TWO_300)

    rows = row("out_dim_4096", 4096, 68.3, 74.5), row("out_dim_16384", 16384, 68.8, 74.0), row("ibot", 8192, 69.1, 74.2)
    return _two_crops("TE_out_dim", "number of prototypes", "TE_out_dim", *rows)


RATIOS = (
    (0.0, 0.0, 67.1, 69.8),
    (0.05, 0.0, 68.6, 71.6),
    (0.1, 0.0, 69.5, 72.5),
    (0.2, 0.0, 69.7, 72.9),
    (0.2, 0.2, 69.9, 73.2),
    (0.25, 0.0, 69.4, 73.2),
    (0.25, 0.2, 69.2, 73.3),
    (0.3, 0.0, 69.1, 72.8),
    (0.3, 0.1, 69.8, 72.8),
    (0.3, 0.2, 70.3, 73.5),
    (0.35, 0.0, 68.9, 72.5),
    (0.4, 0.0, 67.5, 72.3),
    (0.5, 0.0, 65.4, 71.0),
)
"""Ratio, its spread, k-NN and linear."""


def _ratios() -> Table:
    def row(ratio: float, spread: float, knn: float, linear: float) -> Row:
        name = "ibot" if (ratio, spread) == (0.3, 0.0) else f"ratio_{ratio:g}" + (f"_pm_{spread:g}" if spread else "")
        changes: Values = {} if name == "ibot" else {"pred_ratio": (ratio,), "pred_ratio_var": (spread,)}
        cells = {"r": ratio, "variance": f"+-{spread:g}" if spread else "fixed"}
        return Row(name, "iBOT", {"knn": knn, "linear": linear}, changes, cells, cost=TWO_300, note=PLOT)

    rows = (row(*one) for one in RATIOS)
    return _two_crops("F11", "share of patches that is masked", "F11_prediction_ratio", *rows)


def _multi_crop() -> Table:
    """Figure 8. On the sample local crops are larger, so that they have room for a mask."""

    def row(name: str, method: str, nmi: float, **changes: Any) -> Row:
        return Row(f"f8_{name}", method, {"nmi_epoch100": nmi}, changes, arch="ViT-S/16 (inferred)", note=PLOT)

    rows = (
        row("a_two_crops", "(a) no multi-crop", 59.0, local_crops_number=0),
        row("b_globals", "(b) MIM on globals", 61.0),
        row("c_all", "(c) MIM on all crops", 27.0, masked_crops="all"),
        row("d_one", "(d) MIM on one global", 68.0, masked_crops="one"),
        row("b_random", "(b) with random MIM", 70.0, **RANDOM),
    )
    small = FIXED | {"local_crops_size": 24}
    return Table("F8", "F8_nmi_multicrop", "which crops of multi-crop are masked", rows, FIXED, small, epochs=100)


def _crop_scales() -> Table:
    def row(size: str, epochs: int, s: float, knn: float) -> Row:
        changes: Values = {"global_crops_scale": (s, 1.0), "local_crops_scale": (0.05, s)}
        changes |= SHORT_WARM_UP if size == "B" else {}
        cells = {"epochs": epochs, "s": s}
        name, small = f"crop_scale_{s:g}_vit{size.lower()}", {"local_crops_scale": (0.1, s)}
        return Row(name, "iBOT", {"knn": knn}, changes, cells, small, f"ViT-{size}/16", epochs)

    rows = (row("S", 300, 0.25, 74.0), row("S", 300, 0.4, 74.3), row("S", 300, 0.32, 74.6))
    large = (row("B", 50, 0.25, 70.0), row("B", 50, 0.4, 70.1), row("B", 50, 0.32, 70.4))
    what = "where the scales of global and local crops meet"
    return Table("TB_crop_scale", "TB_crop_scale", what, rows + large, RANDOM, RANDOM)


def _crops(name: str, base: Values, small: Values, numbers: Mapping[str, tuple[float, float]], hours: Mapping[str, str]) -> Table:
    """One half of Table 10: DINO and iBOT, ViT-S/16 and ViT-B/16."""

    def rows() -> Iterator[Row]:
        for key, (knn, linear) in numbers.items():
            method, size = key.split()
            arch, epochs = f"ViT-{size}/16", 800 if size == "S" else 400
            changes = NO_MIM if method == "DINO" else {}
            row = f"{name}_{method.lower()}_vit{size.lower()}"
            cost = hours.get(key, "not published")
            yield Row(
                row, method, {"knn": knn, "linear": linear}, changes, {"epochs": epochs}, arch=arch, epochs=epochs, cost=cost
            )

    what = f"iBOT and DINO {name.replace('_', ' ').replace('mcrop', 'local crops')}"
    return Table(f"T10_{name}", f"T10_{name}", what, tuple(rows()), base | RANDOM, small | RANDOM, epochs=800)


def _all() -> Iterator[Table]:
    yield _tokenization()
    yield _crops(
        "without_mcrop",
        TWO_CROPS,
        {"local_crops_number": 0},
        {"DINO S": (70.0, 73.7), "DINO B": (68.9, 72.8), "iBOT S": (72.4, 76.2), "iBOT B": (71.2, 76.0)},
        {"DINO S": "111.6 h on 16 V100, 9.3 GB each (Table 19)", "iBOT S": "126.4 h on 16 V100, 13.1 GB each (Table 19)"},
    )
    yield _crops(
        "with_mcrop",
        {},
        {},
        {"DINO S": (74.5, 77.0), "DINO B": (76.1, 78.2), "iBOT S": (75.2, 77.9), "iBOT B": (76.8, 79.4)},
        {"DINO S": "180.0 h on 16 V100, 15.4 GB each (Table 19)", "iBOT S": "193.4 h on 16 V100, 19.5 GB each (Table 19)"},
    )
    yield from (_heads(), _labels(), _alternatives(), _dense(), _centres(), _loss_ratio(), _out_dim())
    yield from (_crop_scales(), _multi_crop(), _ratios())


TABLES: dict[str, Table] = {table.name: table for table in _all()}
"""By name, in the paper's order."""
