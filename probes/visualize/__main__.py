"""Pictures of a frozen backbone: `python -m probes.visualize attention|correspondence|patterns|pca|tsne --ckpt runs/sample`.

Each writes PNG files and one page, `index.html`, whose captions say checkpoint and image.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from checkpoints import places, terminal
from checkpoints.cli import UserError, parse, run_command
from probes.shared import record_name
from probes.shared.subject import Subject, open_frozen
from probes.visualize import attention_maps, correspondence, gallery, pca, prototypes, tsne
from probes.visualize.gallery import Shown

KINDS: dict[str, tuple[type, Callable[[Any, Subject], Iterator[Shown]]]] = {
    "attention": (attention_maps.Attention, attention_maps.draw),
    "correspondence": (correspondence.Correspondence, correspondence.draw),
    "patterns": (prototypes.Patterns, prototypes.draw),
    "pca": (pca.Pca, pca.draw),
    "tsne": (tsne.Tsne, tsne.draw),
}
USAGE = f"usage: python -m probes.visualize {{{','.join(KINDS)}}} [flags]; each has its own --help"


def main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] not in KINDS:
        if arguments and arguments[0] in ("-h", "--help"):
            terminal.page(f"{__doc__}\n{USAGE}")
            return
        raise UserError(f"say what to draw: {USAGE}")
    kind, began = arguments[0], time.perf_counter()
    options_of, draw = KINDS[kind]
    options: Any = parse(options_of, arguments[1:], prog=f"python -m probes.visualize {kind}")
    subject = open_frozen(options, full=kind == "patterns")
    out = options.out or places.below(record_name.folder(subject.loaded), f"{kind}_{record_name.checkpoint(subject.loaded)}")
    places.tried(out / "index.html")
    notes = [f"Checkpoint: {subject.loaded.path}, {options.key}. Images: {options.data}."]
    pictures = list(draw(options, subject))
    page = gallery.hang(out, f"{kind.capitalize()}: {subject.loaded.path.parent.name or subject.loaded.path}", notes, pictures)
    terminal.say(f"{len(pictures)} pictures in {time.perf_counter() - began:.0f} s: {page}")


if __name__ == "__main__":
    sys.exit(run_command(main))
