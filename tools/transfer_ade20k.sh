#!/usr/bin/env bash
# Semantic segmentation (UPerNet or a linear layer, ADE20K) on a pretrained backbone: mIoU.
#
#   tools/transfer_ade20k.sh [--ckpt F] [--data ADEChallengeData2016] [--head upernet|linear] [--config NAME] [--gpus N] [flags]
#
# Without --data the embedded sample in ADE20K's layout. --gpus: processes (default: every GPU of the machine).
set -euo pipefail
TASK=ade20k
source "$(dirname "${BASH_SOURCE[0]}")/transfer.sh"
