#!/usr/bin/env bash
# Make the environment: .venv beside this folder with pinned packages. Run it again at any time; what is there stays.
#
#   tools/setup.sh [--cpu] [EXTRA ...]      extras: dev docs export hub robustness tensorboard transfer zarr cpu gpu gpu-cuda12
#
# cpu, gpu (CUDA 13) and gpu-cuda12 choose the package of faiss; without them the machine's driver does. --cpu takes torch's CPU build
# too, from PyTorch's index or $TORCH_INDEX. uv installs where it is there or can be fetched (tools/install.sh), else pip.
# An active environment (or `PYTHON`) that already has the packages is used as it is.
# The other tools source this file and then have "$PYTHON" "$START" MODULE in place of python -m MODULE: nothing is imported
# from the folder that they are called in (see checkpoints/start.py).
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
START="$ROOT/checkpoints/start.py"
BASE_MODULES="torch torchvision timm safetensors pyarrow webdataset tifffile matplotlib tyro rich jaxtyping sklearn scipy faiss"
EXPORT_MODULES="transformers onnx onnxscript onnxruntime"
ROBUSTNESS_MODULES="imagecorruptions"
FAISS_PACKAGES="faiss-cpu faiss-gpu faiss-gpu-cuvs faiss-gpu-cu12 faiss-gpu-cu11"
OUR_TOOLBOXES="onedl-mmengine onedl-mmcv onedl-mmpretrain onedl-mmdetection onedl-mmsegmentation"
ORIGINAL_TOOLBOXES="mmengine mmengine-lite mmcv mmcv-lite mmcv-full mmpretrain mmdet mmsegmentation"
TRANSFER_MODULES="mmengine mmcv mmpretrain mmdet mmseg pycocotools"
DEV_MODULES="datasets tensorboard mkdocs material $EXPORT_MODULES $ROBUSTNESS_MODULES $TRANSFER_MODULES pytest xdist beartype hypothesis playwright ruff mypy"

safe_path() { # of PYTHONPATH only what is not relative to the current folder; an empty entry is that folder, too
    local IFS=: entry kept="$ROOT"
    set -f
    for entry in ${PYTHONPATH:-}; do
        case "$entry" in "$ROOT" | "$PWD") ;; /*) kept="$kept:$entry" ;; esac
    done
    set +f
    export PYTHONPATH="$kept" PYTHONSAFEPATH=1
}

in_root() { # in_root COMMAND...: python -c and -m put the current folder on the path, before 3.11 in any case
    (cd "$ROOT" && "$@")
}

has_modules() { # has_modules PYTHON MODULE...
    in_root "$1" -c 'import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in sys.argv[1:]))' "${@:2}" 2>/dev/null
}

unfinished() { # unfinished PYTHON: whether it is that of .venv, and its set-up was interrupted
    [ "${1%/bin/python}" -ef "$ROOT/.venv" ] && [ -e "$ROOT/.venv/unfinished" ]
}

installed() { # installed PYTHON PACKAGE...: those of them that are
    in_root "$1" -c '
import importlib.metadata as metadata, sys
for name in sys.argv[1:]:
    try:
        metadata.version(name)
        print(name)
    except metadata.PackageNotFoundError:
        pass' "${@:2}"
}

faiss_packages() { # faiss_packages PYTHON: those that are installed and provide the module faiss
    # shellcheck disable=SC2086
    installed "$1" $FAISS_PACKAGES
}

one_toolbox() { # one_toolbox PYTHON EXTRAS: fails where OpenMMLab's own packages lie, or would, beside those of the extra transfer: same files
    local original ours
    # shellcheck disable=SC2086
    ours="$(echo $(installed "$1" $OUR_TOOLBOXES))"
    # shellcheck disable=SC2086
    original="$(echo $(installed "$1" $ORIGINAL_TOOLBOXES))"
    case ",$2," in *,transfer,* | *,dev,*) ours="${ours:-$OUR_TOOLBOXES}" ;; esac
    [ -z "$ours" ] || [ -z "$original" ] ||
        { echo "error: $1 has $original, whose files are also those of $ours: $1 -m pip uninstall $original $(echo $(installed "$1" $OUR_TOOLBOXES)), then start again" >&2; return 2; }
}

faiss_extra() { # cpu, gpu or gpu-cuda12, as the machine's driver is
    local cuda
    cuda="$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1)" || true
    if [ "${cuda:-0}" -ge 13 ]; then echo gpu; elif [ "${cuda:-0}" -ge 12 ]; then echo gpu-cuda12; else echo cpu; fi
}

one_faiss() { # one_faiss PYTHON EXTRA: fails where two packages of faiss are there, or another than the extra (if it is not empty) wants
    local there wanted="$2" names
    there="$(faiss_packages "$1")"
    names="$(echo $there)"
    case "$wanted:$names" in
        *:*" "*) echo "error: $names are both installed, and each has overwritten files of the other: $1 -m pip uninstall $names, then start again" >&2; return 2 ;;
        cpu:faiss-gpu* | gpu:faiss-cpu | gpu-cuda12:faiss-cpu | gpu-cuda12:faiss-gpu-cuvs)
            echo "error: $1 has $names, which the extra $wanted cannot stand beside: $1 -m pip uninstall $names, then start again" >&2; return 2 ;;
    esac
}

supported() { # supported PYTHON
    in_root "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if command -v "$candidate" >/dev/null && supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python from 3.10 to 3.13 was found: install one, for example with your system's package manager" >&2
    return 1
}

setup() { # setup EXTRA...: sets PYTHON
    local modules="$BASE_MODULES" extras="" extra current faiss="" cpu=""
    for extra in "$@"; do
        case "$extra" in
            --cpu) cpu=1; continue ;;
            dev) modules="$modules $DEV_MODULES" ;;
            export) modules="$modules $EXPORT_MODULES" ;;
            transfer) modules="$modules $TRANSFER_MODULES" ;;
            robustness) modules="$modules $ROBUSTNESS_MODULES" ;;
            hub) modules="$modules datasets" ;;
            tensorboard | zarr) modules="$modules $extra" ;;
            docs) modules="$modules mkdocs material" ;;
            cpu | gpu | gpu-cuda12)
                [ -z "$faiss" ] || { echo "error: $faiss and $extra cannot stand beside each other: give one of them" >&2; return 2; }
                faiss="$extra"
                continue
                ;;
            *) echo "error: unknown extra $extra: choose from dev docs export hub robustness tensorboard transfer zarr cpu gpu gpu-cuda12" >&2; return 2 ;;
        esac
        extras="${extras:+$extras,}$extra"
    done
    case "$cpu:$faiss" in
        1:gpu*) echo "error: --cpu and $faiss cannot stand beside each other: give one of them" >&2; return 2 ;;
        1:*) faiss=cpu ;;
    esac
    for current in "${PYTHON:-}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}" "$ROOT/.venv/bin/python"; do
        case "$current" in /*) ;; */*) current="$PWD/$current" ;; esac
        # shellcheck disable=SC2086
        if [ -n "$current" ] && ! unfinished "$current" && has_modules "$current" $modules; then
            one_faiss "$current" "$faiss" || return 2
            one_toolbox "$current" "" || return 2
            PYTHON="$current"
            export PYTHON
            return
        fi
    done
    current="$(find_python)"
    echo "setting up $ROOT/.venv with $("$current" --version) (once)" >&2
    make_venv "$current"
    PYTHON="$ROOT/.venv/bin/python"
    export PYTHON
    one_faiss "$PYTHON" "$faiss" || return 2
    one_toolbox "$PYTHON" "$extras" || return 2
    [ -n "$(faiss_packages "$PYTHON")" ] || extras="${extras:+$extras,}${faiss:-$(faiss_extra)}"
    install_into_venv "$cpu" "$extras"
    echo "environment ready" >&2
}

protect_venv() { # what is typed as python -m after the environment was made active leaves the current folder alone, too
    local shell line
    for shell in "" .fish .csh; do
        case "$shell" in "") line="export PYTHONSAFEPATH=1" ;; .fish) line="set -gx PYTHONSAFEPATH 1" ;; *) line="setenv PYTHONSAFEPATH 1" ;; esac
        shell="$ROOT/.venv/bin/activate$shell"
        if [ -w "$shell" ] && ! grep -qxF "$line" "$shell"; then
            printf '\n# nothing is imported from the current folder\n%s\n' "$line" >>"$shell"
        fi
    done
}

start_on_gpus() { # start_on_gpus NUMBER MODULE...: so many processes, by default one for each GPU, or one; does not return
    local gpus="$1"
    shift
    [ -n "$gpus" ] || gpus=$(in_root "$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
    if [ "$gpus" -gt 1 ]; then
        exec "$PYTHON" "$START" torch.distributed.run --standalone --nproc-per-node "$gpus" -m "$@"
    fi
    exec "$PYTHON" "$START" "$@"
}

source "$ROOT/tools/install.sh"
safe_path
setup "$@"
protect_venv
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    echo "$PYTHON has what is needed"
fi
