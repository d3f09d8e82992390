#!/usr/bin/env bash
# Speed, measured here and now, against the plain way of doing the same.
#
#   tools/bench.sh data [--data DIR]         images/s of one core: decoding, Pillow's and torchvision's crops, ours; a GPU's crops
#   tools/bench.sh step [--arch vit_base]    one training step, as training does it here, against the plain method
#   tools/bench.sh data|step --against original CLONE    and against the original's own code, in a clone of its repository
#   tools/bench.sh sources [--images N]      folders, lists, parquet and shards of so many images: seconds to open, memory, images/s
#   tools/bench.sh knn [--part 1]            k-NN of ImageNet's size on drawn features: seconds, memory; --part 1 is the whole
#   tools/bench.sh count [--card H200]       one training step and its crops of a GPU that is not there: launches, bytes, waits, memory, a roofline
#   tools/bench.sh count --by operator       the operators of each act that move most bytes or launch most kernels
#   tools/bench.sh data|step|sources|knn|count --help
set -euo pipefail
case "${1:-}" in
    data | step | sources | knn | count) module="probes.bench.$1" ;;
    *) echo "error: tools/bench.sh PART [flags]: PART is data, step, sources, knn or count; --help after it lists the flags" >&2; exit 2 ;;
esac
flags=("${@:2}")
set --
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$START" "$module" ${flags[@]+"${flags[@]}"}
