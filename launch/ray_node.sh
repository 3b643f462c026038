#!/usr/bin/env bash
# ray_node.sh FOLDER LOGS COMMAND...: runs Ray on this node, with its files in FOLDER, until the file LOGS/down is
# there or Ray ends; then keeps Ray's logs in LOGS. Started by slurm.sbatch.
set -euo pipefail
folder=$1 logs=$2
shift 2
mkdir -p "$folder"
trap '' TERM # Slurm's, at the end of a job: the batch script writes the file
(
    trap - TERM
    exec setsid "$@"
) &
child=$!
while [[ ! -e ${logs%/*}/down ]] && kill -0 "$child" 2>/dev/null; do sleep 0.3; done
kill -TERM "$child" 2>/dev/null || true
status=0
wait "$child" || status=$?
cp -r "$folder"/session_latest/logs/. "$logs" 2>/dev/null || true
rm -rf "$folder"
exit "$status"
