#!/usr/bin/env bash
# From a checkpoint to the paper's tables: every probe and transfer whose data is given, then the tables and a page.
#
#   tools/reproduce.sh --ckpt F [--imagenet DIR] [--coco DIR] [--ade20k DIR] ... [--table T1 T5 ...] [--key student] [--dry-run]
#
# Exits with 1 where a step failed, was skipped for a failed one, or cannot be for this checkpoint or the given data, on the sample too
# (said before anything runs), or where nothing runs for a flag or table that was asked for.
# Without data: everything on the embedded sample. --help lists all flags. The same command goes on where it was stopped.
set -euo pipefail
flags=("$@")
set -- transfer
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$START" probes.reproduce ${flags[@]+"${flags[@]}"}
