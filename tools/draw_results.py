"""Tables of results in README and docs, from the records in docs/measured: `python tools/draw_results.py` renews them.

`--check` compares them (exit code 1 where one differs). `--keep NAME FOLDER [FOLDER ...]` puts new measurements into
docs/measured/NAME.json first: for `sample`, run folders in the order of their seeds, each with the record of
`probes.knn --baselines --out FOLDER/knn.json`; for `cifar10`, folders of `tools/ablate.sh --table T9`, one a seed.
`--picture` draws the curves of CIFAR-10 into docs/pictures.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "docs" / "measured"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
BLOCK = re.compile(r"<!-- measured: (\S+) -->\n.*?<!-- end of it -->\n", re.DOTALL)
TITLES = {
    "ibot": "iBOT",
    "dino": "DINO ([CLS] loss only)",
    "mim_only": "masked patches only",
    "beit": "BEiT-like (k-means tokens)",
    "supervised": "supervised",
    "untrained": "untrained",
    "pixels": "raw pixels",
}
"""Rows of the table of CIFAR-10, in its order."""
PANELS = {"loss_cls": "[CLS] loss, nats", "loss_patch": "patch loss, nats", "effective_rank": "effective rank of [CLS]"}
"""Curves of CIFAR-10: the log's field, and its title."""
POINTS = 40
"""Of a curve."""


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's log; none for a row that has no training of its own."""
    log = run / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def kept_of_sample(folders: Sequence[Path]) -> dict[str, Any]:
    """One entry a run: its numbers and its k-NN curve by step."""
    found = []
    for folder in folders:
        record, config, log = read(folder / "knn.json"), read(folder / "config.json"), lines_of(folder)
        found.append(
            {
                "seed": config["seed"],
                "metrics": record["metrics"],
                "intervals": record["intervals"],
                "versions": record["versions"],
                "curve": {str(line["step"]): line["knn"] for line in log if "knn" in line},
            }
        )
    return {"runs": found}


def kept_of_cifar10(folders: Sequence[Path]) -> dict[str, Any]:
    """One entry a seed: the record of all rows, and each training's curves by step."""
    found = []
    for folder in folders:
        record = read(folder / "ablation_T9.json")
        record["data"] = {"train": "CIFAR10"}
        for row in record["rows"]:
            row["checkpoint"] = row["name"]
        record["curves"] = {row: curves for row in TITLES if (curves := curves_of(lines_of(folder / row)))}
        found.append(record)
    return {"runs": found}


def curves_of(log: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Means over stretches of a training's log, of the panels' fields that it has and that are not 0 throughout."""
    lines = [line for line in log if "loss" in line]
    ends = [len(lines) * place // POINTS for place in range(POINTS + 1)]
    parts = [lines[low:high] for low, high in pairwise(ends) if high > low]
    found = {"step": [float(part[-1]["step"]) for part in parts]}
    for name in PANELS:
        values = [round(sum(line[name] for line in part) / len(part), 4) for part in parts if name in part[0]]
        found |= {name: values} if any(values) else {}
    return found if len(found) > 1 else {}


def share(value: float, ends: Sequence[float] | None) -> str:
    """A percentage with its interval."""
    return f"{value:.1f}" + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cifar10() -> str:
    """Rows by seed: k-NN and linear."""
    runs = read(MEASURED / "cifar10.json")["runs"]
    by_seed = {run["protocol"]["seed"]: {row["name"]: row for row in run["rows"]} for run in runs}
    several = len(by_seed) > 1
    columns = [(metric, word, seed) for metric, word in (("knn", "k-NN"), ("linear", "linear")) for seed in by_seed]
    head = ["", *(f"{word}, seed {seed}" if several else word for _, word, seed in columns)]
    body = []
    for name, title in TITLES.items():
        cells = [by_seed[seed].get(name, {"metrics": {}}) for *_, seed in columns]
        numbers = [
            share(row["metrics"][metric], row["intervals"].get(metric)) if metric in row["metrics"] else "not measured"
            for row, (metric, *_) in zip(cells, columns, strict=True)
        ]
        body.append([title, *numbers])
    return table(head, body)


def sample() -> str:
    """One row a seed."""
    head = ["seed", "k-NN", "untrained", "raw pixels"]
    body = [
        [
            str(run["seed"]),
            share(run["metrics"]["top1"], run["intervals"].get("top1")),
            f"{run['metrics']['untrained_top1']:.1f}",
            f"{run['metrics']['pixels_top1']:.1f}",
        ]
        for run in read(MEASURED / "sample.json")["runs"]
    ]
    return table(head, body)


def sample_curves() -> str:
    """The k-NN curve of training, one row a seed."""
    runs = read(MEASURED / "sample.json")["runs"]
    body = [[str(run["seed"]), *(f"{value:.1f}" for value in run["curve"].values())] for run in runs]
    return table(["seed", *runs[0]["curve"]], body)


KEPT: dict[str, Callable[[Sequence[Path]], dict[str, Any]]] = {"sample": kept_of_sample, "cifar10": kept_of_cifar10}
TABLES: dict[str, Callable[[], str]] = {"cifar10": cifar10, "sample": sample, "sample-curves": sample_curves}


def renewed(page: str) -> str:
    """The page with the tables of now. Raises KeyError for a block of a name that has none."""
    return BLOCK.sub(lambda block: f"<!-- measured: {block[1]} -->\n\n{TABLES[block[1]]()}\n<!-- end of it -->\n", page)


def draw_curves(file: Path) -> None:
    """One panel a field, one line a row of the first seed."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 (heavy, and the check does not draw)

    curves = read(MEASURED / "cifar10.json")["runs"][0]["curves"]
    figure, panels = plt.subplots(1, len(PANELS), figsize=(14, 4), layout="constrained")
    for panel, (field, title) in zip(panels, PANELS.items(), strict=True):
        for place, (row, values) in enumerate(curves.items()):
            if field in values:
                panel.plot(values["step"], values[field], ("-", "--", "-.", ":")[place % 4], color=f"C{place}", label=TITLES[row])
        panel.set(title=title, xlabel="step")
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=100)


def main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--picture"]:
        draw_curves(ROOT / "docs" / "pictures" / "cifar10.png")
        return 0
    if arguments[:1] == ["--keep"]:
        name, *folders = arguments[1:]
        content = json.dumps(KEPT[name]([Path(folder) for folder in folders]), indent=1)
        (MEASURED / f"{name}.json").write_text(f"{content}\n", encoding="utf-8")
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    now = {path: renewed(page) for path, page in pages.items()}
    if list(arguments) == ["--check"]:
        return int(now != pages)
    for path, page in now.items():
        path.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
