#!/usr/bin/env bash
# Detection and instance segmentation (Cascade Mask R-CNN, COCO) on a pretrained backbone: box AP, mask AP.
#
#   tools/transfer_coco.sh [--ckpt F] [--data COCO] [--config NAME] [--gpus N] [flags of transfer.train]
#
# --data: a folder with COCO json of any classes (docs/dense-transfer.md); --val-percent 20 where it has no test part.
# Without --data the embedded sample in COCO's layout. --gpus: processes (default: every GPU of the machine).
set -euo pipefail
TASK=coco
source "$(dirname "${BASH_SOURCE[0]}")/transfer.sh"
