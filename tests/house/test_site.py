"""The documents as a site: it builds without a warning, has every page, and its generated pages are those of the code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from pretrain.recipes.registry import NAMED
from tests.support.commands import ROOT
from tools.draw_results import BLOCK, MEASURED, TABLES

NAV = re.compile(r"^ *- [^:]+: (\S+\.md)$", re.MULTILINE)


def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # of the theme, on its successor
    done = subprocess.run(words, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(NAV.findall((ROOT / "mkdocs.yml").read_text()))
    for page in pages - {"README.md"}:
        assert (tmp_path / page.removesuffix(".md") / "index.html").is_file()
    index = (ROOT / "docs" / "README.md").read_text()
    assert {page for page in pages - {"README.md"} if f"]({page})" not in index} == set()


def test_the_list_of_messages_is_the_codes() -> None:
    """`python tools/draw_messages.py` renews it."""
    drawn = subprocess.run([sys.executable, str(ROOT / "tools" / "draw_messages.py"), "--check"], check=False)
    assert drawn.returncode == 0


def test_tables_of_results_are_those_of_the_records() -> None:
    """`python tools/draw_results.py` renews them."""
    drawn = subprocess.run([sys.executable, str(ROOT / "tools" / "draw_results.py"), "--check"], check=False)
    assert drawn.returncode == 0
    assert {name for page in ("README.md", "docs/results.md") for name in BLOCK.findall((ROOT / page).read_text())} == set(TABLES)


def test_the_samples_numbers_are_the_same_wherever_they_stand() -> None:
    """What start.md and the list of recipes say of three seeds."""
    runs = [run["metrics"] for run in json.loads((MEASURED / "sample.json").read_text())["runs"]]
    spans = {name: sorted(run[name] for run in runs) for name in ("top1", "untrained_top1")}
    words = {name: f"{low:.0f} to {high:.0f}" for name, (low, *_, high) in spans.items()}
    start = " ".join((ROOT / "docs" / "start.md").read_text().split())
    assert f"seeds had {words['top1']} %, untrained {words['untrained_top1']}" in start
    assert NAMED["sample"].expected == f"k-NN {words['top1']}, untrained {words['untrained_top1']} (docs/results.md)"
