"""Eight processes ask for one published checkpoint at once; prints how many of them get it.

python -m tests.support.programs.fetch_in_eight ENTRY      ENTRY: what the list of published checkpoints says of it, as JSON
"""

import json
import os
import sys
from pathlib import Path

from checkpoints import zoo
from pretrain.models.backbone import load_backbone


def child() -> None:
    """Loads it; ends the process."""
    try:
        load_backbone(Path("little"))
    except BaseException as error:
        print("failed:", error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def main() -> None:
    entry = json.loads(sys.argv[1])
    zoo.names = lambda: {"little": entry}
    children = []
    for _ in range(8):
        pid = os.fork()
        if not pid:
            child()
        children.append(pid)
    print(sum(os.waitpid(pid, 0)[1] == 0 for pid in children))


if __name__ == "__main__":
    main()
