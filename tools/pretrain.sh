#!/usr/bin/env bash
# Pretrain: sets the environment up when it is missing, then one process per GPU, or one on a CPU.
#
#   tools/pretrain.sh                                        the embedded sample, five minutes on two cores
#   tools/pretrain.sh --data DIR                             your images, the paper's ViT-S/16
#   tools/pretrain.sh --help                                 every flag; the original's published command lines work too
set -euo pipefail
flags=("$@")
set --
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
start_on_gpus "" pretrain.train ${flags[@]+"${flags[@]}"}
