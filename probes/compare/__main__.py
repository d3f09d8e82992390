"""Which backbone is better for these images? `python -m probes.compare --ckpt A B C --data D1 D2 --seeds 3`.

Every checkpoint on every data set by every probe that fits, under one protocol and one view; features are computed once for all
probes, what is done stays done, what fails stops nothing else. The table goes to the screen and to --out as Markdown, CSV, LaTeX
and a page with a plot (docs/compare.md).
"""

import sys
from collections.abc import Sequence

from checkpoints.cli import DONE, FAILED, parse, run_command
from probes.compare.plan import CompareOptions
from probes.compare.run import compare
from probes.shared import console


def main(arguments: Sequence[str]) -> int:
    options = parse(CompareOptions, arguments, prog="python -m probes.compare")
    found = compare(options)
    for title, (head, *body) in found.parts():
        console.table(title, head, body)
    console.say(found.about)
    for note in (*found.unfit, *found.failed):
        console.say(f"missing: {note}")
    console.say(f"records, logs, costs, table.md, table.csv, table.tex and index.html in {options.out}")
    return FAILED if found.failed else DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
