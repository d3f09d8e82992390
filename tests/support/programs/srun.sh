#!/usr/bin/env bash
# Stands in for Slurm's srun: two tasks here, and SIGUSR1 is passed on to them.
echo $$ > "$REQUEUED.srun"
pids=()
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    pids+=($!)
done
trap 'kill -USR1 "${pids[@]}"' USR1
status=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done
    [ "$code" -gt "$status" ] && status=$code
done
exit $status
