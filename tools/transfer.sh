# What tools/transfer_coco.sh and tools/transfer_ade20k.sh share: the environment, and one process for each GPU. TASK is set.
flags=() gpus=""
while [ $# -gt 0 ]; do
    case "$1" in
        --gpus) gpus="${2:?--gpus needs a number}"; shift 2 ;;
        --gpus=*) gpus="${1#*=}"; shift ;;
        *) flags+=("$1"); shift ;;
    esac
done
set -- transfer
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
start_on_gpus "$gpus" transfer.train --task "$TASK" ${flags[@]+"${flags[@]}"}
