#!/usr/bin/env bash
# From a checkpoint to the paper's tables: every probe and transfer whose data is given, then the tables and a page.
#
#   tools/reproduce.sh --ckpt F [--imagenet DIR] [--coco DIR] [--ade20k DIR] ... [--table T1 T5 ...] [--dry-run]
#
# Without data: everything on the embedded sample. --help lists all flags. The same command goes on where it was stopped.
set -euo pipefail
flags=("$@")
set -- transfer
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$START" probes.reproduce ${flags[@]+"${flags[@]}"}
