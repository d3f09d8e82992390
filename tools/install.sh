# Sourced by setup.sh: fetches and installs into .venv, by uv or pip, with progress; what was interrupted is mended by the next call.
# The versions are those of constraints.txt for both.

LOG="$ROOT/.venv/setup.log"
UNFINISHED="$ROOT/.venv/unfinished" # there while something is being installed: what lies in .venv then may be a part
TORCH_INDEX="${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" # of --cpu: an index, or a folder of wheels
DISK_OF_DOWNLOAD=21                                                # tenths: 3.6 GB of wheels were 7.3 GB of files
PIP="-m pip --disable-pip-version-check"

cost() { # cost CPU EXTRA...: megabytes that are fetched, from tools/downloads.txt
    local wanted=" base $* "
    case "$wanted" in *" dev "*) wanted=" base dev $(printf '%s\n' "$@" | awk '/^(cpu-torch|cpu|gpu|gpu-cuda12)$/' | tr '\n' ' ') " ;; esac
    awk -v wanted="$wanted" '!/^#/ && index(wanted, " " $1 " ") { sum += $2 } END { print sum + 0 }' "$ROOT/tools/downloads.txt"
}

gigabytes() { # gigabytes MEGABYTES
    awk -v mb="$1" 'BEGIN { printf "%.1f", mb / 1000 }'
}

pip_has_own_sources() { # pip_has_own_sources PYTHON: whether pip is told of another index or folder, which uv does not read
    [ -n "${PIP_INDEX_URL:-}${PIP_EXTRA_INDEX_URL:-}${PIP_FIND_LINKS:-}${PIP_NO_INDEX:-}" ] ||
        in_root "$1" $PIP config list 2>/dev/null | grep -qE '(index-url|find-links|no-index|proxy|client-cert)='
}

uv_has_sources() { [ -n "${UV_DEFAULT_INDEX:-}${UV_INDEX:-}${UV_INDEX_URL:-}${UV_FIND_LINKS:-}${UV_CONFIG_FILE:-}" ]; }

choose_installer() { # sets UV: uv where it is there or pip can fetch it, and both ask the same index; empty for pip
    UV=""
    if ! uv_has_sources && pip_has_own_sources "$PYTHON"; then
        ! command -v uv >/dev/null || echo "pip installs: its settings name another index, which uv does not read (UV_DEFAULT_INDEX names one for uv)" >&2
    elif command -v uv >/dev/null; then
        UV="$(command -v uv)"
    elif in_root "$PYTHON" $PIP install --quiet --constraint "$ROOT/constraints.txt" uv >>"$LOG" 2>&1; then
        UV="$ROOT/.venv/bin/uv"
    fi
}

announce() { # announce MEGABYTES: what will be fetched, how long that takes, and whether the disk has room
    local seconds=35 disk free there=0 who=pip # installing a gigabyte took pip 35 s and uv 12 s of one core
    [ -z "$UV" ] || { who=uv && seconds=12; }
    disk=$(($1 * DISK_OF_DOWNLOAD / 10))
    echo "$who fetches about $(gigabytes "$1") GB ($(gigabytes "$disk") GB on disk): about $((($1 * 80 + $1 * seconds + 59999) / 60000)) minutes at 100 Mbit/s, less for what is cached" >&2
    free="$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1000) }')"
    there="$(du -sk "$ROOT/.venv" | awk '{ print int($1 / 1000) }')"
    [ "$free" -ge $((disk - there)) ] || echo "note: $ROOT has only $(gigabytes "$free") GB free, which may be too little" >&2
}

fetched() { # what the log says so far, in megabytes: pip names a file when it begins it, uv when it has it
    awk '
        function size(text) { gsub(/[()]/, "", text); n = text + 0; return text ~ /GiB|GB/ ? n * 1000 : text ~ /KiB|kB/ ? n / 1000 : n }
        /\.metadata/ { next }
        /^ *(Downloading|Using cached) .*\(.*B\)/ { one = size($(NF - 1) $NF); if ($(NF - 1) !~ /^\(/) one = size($NF); if ($2 ~ /\.(whl|gz|zip)/) sum += one; else of[$2] = one }
        /^ *Downloaded / { sum += of[$2] }
        END { print int(sum) }' "$LOG"
}

watched() { # watched WHO COMMAND...: in the background, its words in the log; says how far it is, each second on a screen
    local who="$1" child code=0 seconds=0 line screen=""
    shift
    (cd "$ROOT" && exec "$@") >>"$LOG" 2>&1 &
    child=$!
    trap 'kill "$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; echo >&2; echo "interrupted: start again, and what is missing is added (what was fetched whole stays in the cache)" >&2; exit 130' INT TERM
    [ ! -t 2 ] || screen=1
    while kill -0 "$child" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        line="$(printf '%s %d:%02d  %s of about %s GB' "$who" $((seconds / 60)) $((seconds % 60)) "$(gigabytes "$(fetched)")" "$(gigabytes "$MEGABYTES")")"
        if [ -n "$screen" ]; then printf '\r%s\033[K' "$line" >&2; elif [ $((seconds % 20)) = 0 ]; then echo "$line" >&2; fi
    done
    wait "$child" || code=$?
    trap - INT TERM
    [ -z "$screen" ] || printf '\r\033[K' >&2
    return "$code"
}

out_of_space() { grep -qiE 'no space left|disk quota' "$LOG"; }

failed() { # the sentence on what the log says
    tail -n 40 "$LOG" >&2
    if out_of_space; then
        echo "error: the disk is full: make room (pip cache purge, uv cache clean) and start again, what is missing is then added" >&2
    elif grep -qiE 'name resolution|failed to establish|connection (refused|timed|reset|aborted|broken)|connect timeout|read timed out|dns error|error sending request|network is unreachable' "$LOG"; then
        echo "error: the package index could not be reached (above, and in $LOG): see to the network or to pip's index-url and start again, what is missing is then added" >&2
    else
        echo "error: installing has failed (above, and in $LOG): see to what it names and start again, what is missing is then added" >&2
    fi
    return 1
}

install_packages() { # install_packages WORDS OF PIP INSTALL...
    if [ -n "$UV" ]; then
        ! watched uv "$UV" pip install --python "$PYTHON" --constraint "$ROOT/constraints.txt" "$@" || return 0
        ! out_of_space || return 1
        echo "note: uv has failed ($LOG), pip goes on" >&2
        UV=""
    fi
    # shellcheck disable=SC2086
    watched pip "$PYTHON" $PIP install --progress-bar off --constraint "$ROOT/constraints.txt" "$@"
}

install_cpu_torch() { # torch without CUDA from $TORCH_INDEX; false where it has none, which is said
    local from=(--index-url "$TORCH_INDEX")
    [ ! -d "$TORCH_INDEX" ] || from=(--no-index --find-links "$TORCH_INDEX")
    # shellcheck disable=SC2086
    if in_root env -u PIP_EXTRA_INDEX_URL -u PIP_FIND_LINKS "$PYTHON" $PIP install --no-deps --retries 1 --timeout 20 \
        --constraint "$ROOT/constraints.txt" "${from[@]}" torch torchvision >>"$LOG" 2>&1 &&
        in_root "$PYTHON" -c 'import importlib.metadata as m, sys; sys.exit(any("nvidia" in one or "cuda" in one for one in m.requires("torch") or ()))'; then
        return
    fi
    echo "note: $TORCH_INDEX has no CPU build of the pinned torch, or cannot be reached ($LOG): the build with CUDA takes its place, which needs no GPU" >&2
    return 1
}

make_venv() { # make_venv PYTHON: .venv with pip in it; one that was being made is made again, packages that were being written are taken out
    if ! [ -x "$ROOT/.venv/bin/python" ] || ! in_root "$ROOT/.venv/bin/python" -c 'import pip' 2>/dev/null; then
        in_root "$1" -m venv "$ROOT/.venv" ||
            { echo "error: $1 -m venv has failed (above): Debian and Ubuntu have it in the package python3-venv; then start again" >&2; return 1; }
    fi
    : >"$LOG"
    if [ -e "$UNFINISHED" ]; then
        echo "the last set-up did not end: what it left in parts is installed again" >&2
        in_root "$ROOT/.venv/bin/python" "$ROOT/tools/broken_packages.py" >>"$LOG"
    fi
    : >"$UNFINISHED"
}

install_into_venv() { # install_into_venv CPU EXTRAS: CPU is 1 for --cpu; EXTRAS with commas between them
    local cpu="$1" extras="$2"
    choose_installer
    # shellcheck disable=SC2086
    MEGABYTES="$(cost ${cpu:+cpu-torch} ${extras//,/ })"
    announce "$MEGABYTES"
    # shellcheck disable=SC2086
    [ -z "$cpu" ] || install_cpu_torch || MEGABYTES="$(cost ${extras//,/ })"
    install_packages --editable "$ROOT${extras:+[$extras]}" || failed || return 1
    # Pictures are only read here: where the machine has no libraries for windows, the build without them does the same.
    if in_root "$PYTHON" $PIP show --quiet opencv-python >/dev/null 2>&1 && ! in_root "$PYTHON" -c "import cv2" >/dev/null 2>&1; then
        in_root "$PYTHON" $PIP uninstall --quiet --yes opencv-python >>"$LOG" 2>&1 || failed || return 1
        in_root "$PYTHON" $PIP install --quiet --force-reinstall --no-deps opencv-python-headless >>"$LOG" 2>&1 || failed || return 1
    fi
    rm -f "$UNFINISHED"
}
