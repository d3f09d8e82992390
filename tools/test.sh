#!/usr/bin/env bash
# Check everything: adds what tests need to the environment, lints, type-checks, runs every test.
#
#   tools/test.sh [pytest arguments]      e.g. tools/test.sh -k parity --parity-dir DIR
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
arguments=("$@")
set -- dev
source tools/setup.sh "$@"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest ${arguments[@]+"${arguments[@]}"}
