#!/usr/bin/env bash
# Pretrain: sets the environment up when it is missing, then one process per GPU, or one on a CPU.
#
#   tools/pretrain.sh                                        the embedded sample, five minutes on two cores
#   tools/pretrain.sh --data DIR                             your images, the paper's ViT-S/16
#   tools/pretrain.sh --help                                 every flag; the original's published command lines work too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT="$PWD"
flags=("$@")
set --
source tools/setup.sh
cd "$OLDPWD"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$gpus" -m pretrain.train ${flags[@]+"${flags[@]}"}
fi
exec "$PYTHON" -m pretrain.train ${flags[@]+"${flags[@]}"}
