#!/usr/bin/env bash
# All that is to be measured on a GPU, in one call of ten minutes: tests, benches, a profile, CIFAR-10, dense transfer.
#
#   tools/gpu_day.sh --out DIR [--cifar10 CIFAR10] [--minutes 10]
#
# CIFAR10: the folder that holds train.parquet and test.parquet. Results: DIR/gpu_day.json and DIR/gpu_day.md, written after
# every part. The same command goes on where it was stopped.
set -euo pipefail
flags=("$@")
set --
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$START" probes.bench.gpu_day ${flags[@]+"${flags[@]}"}
