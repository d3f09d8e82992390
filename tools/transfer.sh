# What tools/transfer_coco.sh and tools/transfer_ade20k.sh share: the environment, and one process for each GPU. TASK is set.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT="$PWD"
flags=() gpus=""
while [ $# -gt 0 ]; do
    case "$1" in
        --gpus) gpus="${2:?--gpus needs a number}"; shift 2 ;;
        --gpus=*) gpus="${1#*=}"; shift ;;
        *) flags+=("$1"); shift ;;
    esac
done
set -- transfer
source tools/setup.sh
cd "$OLDPWD"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

[ -n "$gpus" ] || gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
if [ "$gpus" -gt 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$gpus" -m transfer.train --task "$TASK" ${flags[@]+"${flags[@]}"}
fi
exec "$PYTHON" -m transfer.train --task "$TASK" ${flags[@]+"${flags[@]}"}
