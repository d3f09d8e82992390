#!/usr/bin/env bash
# One of the paper's ablations: every row trained and measured, then the table beside the published one.
#
#   tools/ablate.sh --table T9 [--data D] [--epochs N] [--rows NAME ...] [--tokenizer dalle:FILE] [--dry-run]
#
# Without data: small networks on the embedded sample. --help lists all flags. The same command goes on where it was stopped.
set -euo pipefail
flags=("$@")
set --
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$START" probes.ablate ${flags[@]+"${flags[@]}"}
