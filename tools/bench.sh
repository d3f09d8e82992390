#!/usr/bin/env bash
# Speed, measured here and now, against the plain way of doing the same.
#
#   tools/bench.sh data [--data DIR]         images/s of one core: decoding, Pillow's and torchvision's crops, ours; a GPU's crops
#   tools/bench.sh data --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT="$PWD"
flags=("$@")
set --
source tools/setup.sh
cd "$OLDPWD"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m pretrain.bench ${flags[@]+"${flags[@]}"}
