#!/usr/bin/env bash
# Check everything: adds what tests need to the environment, lints, type-checks, runs every test.
#
#   tools/test.sh [pytest arguments]      e.g. tools/test.sh -k parity --parity-dir DIR; -n 0: in one process
#   tools/test.sh --fast [arguments]      without the tests that are marked slow: a few minutes on two cores
#
# Tests run in two processes of one thread each ($TEST_PROCESSES of them); the tests of one file stay together, and the files that
# take longest come first (tests/conftest.py says which).
set -euo pipefail
arguments=("$@")
if [ "${1:-}" = "--fast" ]; then
    arguments=(-m "not slow" "${@:2}")
fi
set -- dev
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

# The report is tested in a browser. Where there is none and none can be installed, those tests skip themselves and say so.
if ! command -v chromium chromium-browser google-chrome >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium for the tests of the report" >&2
    { timeout 120 apt-get -qq update && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get -qq install -y --no-install-recommends chromium
    } >/dev/null 2>&1 || echo "chromium could not be installed: those tests will be skipped" >&2
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
export PYTHONDONTWRITEBYTECODE= # whatever the user has: each program that a test starts would compile all modules anew
exec "$PYTHON" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder ${arguments[@]+"${arguments[@]}"}
