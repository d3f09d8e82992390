"""A training that knows one published checkpoint, `little`, at an address of the test's.

    python -m tests.support.little_zoo ADDRESS FOLDER FLAGS...

After `--init-from` each process writes the digest of what it begins with to FOLDER/weights-RANK.
"""

import os
import sys
from pathlib import Path
from typing import Any

from checkpoints import download, store, zoo
from checkpoints.cli import run_command
from pretrain import train

LISTED = {"arch": "vit", "patch_size": 8, "holds": "the teacher's backbone"}
"""What `tests.support.networks` makes."""


def main() -> None:
    address, folder, flags = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    zoo.names = lambda: {"little": {"address": address, **LISTED}}
    download.PAUSES = (0.0, 0.0, 0.0)
    init_from = train.init_from

    def noted(path: Path, student: Any, teacher: Any, **more: Any) -> Any:
        found = init_from(path, student, teacher, **more)
        digests = [store.checksum(network.backbone.state_dict()) for network in (student, teacher)]
        (folder / f"weights-{os.environ['RANK']}").write_text(" ".join(digests))
        return found

    train.init_from = noted
    sys.exit(run_command(train.main, flags))


if __name__ == "__main__":
    main()
