"""Fine-tuning end to end, the paper's Tables 2, 3, 4, 7, 11 and 12: `python -m probes.finetune --ckpt runs/sample`.

One loop for all of them; what differs stands in `probes/finetune/recipes.py`. Read `train_step`, then `train`.
"""

import sys
from collections.abc import Sequence

from checkpoints import terminal
from checkpoints.cli import DONE, INTERRUPTED, run_command
from pretrain.engine import distributed
from probes.finetune.options import read_command_line
from probes.finetune.train import measure


def main(arguments: Sequence[str]) -> int:
    options = read_command_line(arguments)
    with terminal.lasting(), distributed.processes() as device:
        return INTERRUPTED if measure(options, device) is None else DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
