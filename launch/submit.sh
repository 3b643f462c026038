#!/usr/bin/env bash
# Submits launch/slurm.sbatch: a command of megarlhf on the nodes of a Slurm cluster.
set -euo pipefail
PROGRAM=submit.sh
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'EOT'
usage: launch/submit.sh [options] -- COMMAND [arguments]

  launch/submit.sh --nodes 4 --gpus 8 --time 04:00:00 --account A --partition P -- rl --config configs/FILE.yaml

COMMAND and what follows go to megarlhf unchanged; launch/slurm.sbatch --help says how it is run there.

  --nodes N         nodes (default 1)
  --gpus N          GPUs of each node (default: none asked for)
  --account A, --partition P, --qos Q, --time T, --job-name NAME, --exclude NODES: as for sbatch
  --save-seconds S  how long before the time limit the run is told to save and queue again (default 300): the longest
                    step and a save must fit
  --sbatch WORD     any other word for sbatch, as often as needed
  --nproc, --container, --mount, --env-file, --log-dir, --port, --wait, --no-check: as for launch/slurm.sbatch
  --dry-run         print the command and stop
  -h, --help        print this and stop
EOT
}

nodes=1 gpus='' save_seconds=300 env_file='' dry_run='' for_sbatch=() for_job=()
while [[ $# -gt 0 ]]; do
    case $1 in
    --nodes | --gpus | --save-seconds) store "${@:1:2}" && shift 2 ;;
    --account | --partition | --qos | --time | --job-name | --exclude)
        need_value "${@:1:2}" && for_sbatch+=("$1=$2") && shift 2
        ;;
    --sbatch) # its value is an option itself
        [[ -n ${2:-} ]] || wrong "--sbatch needs a value"
        for_sbatch+=("$2") && shift 2
        ;;
    --nproc | --container | --mount | --env-file | --log-dir | --port | --wait)
        need_value "${@:1:2}" && for_job+=("$1" "$2")
        [[ $1 != --env-file ]] || env_file=$2
        shift 2
        ;;
    --no-check) for_job+=("$1") && shift ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    -*) wrong "unknown option '$1'" ;;
    *) wrong "'$1' stands before '--': options first, then --, then the megarlhf command" ;;
    esac
done
need_command "${1:-}" # not only when the job's turn has come
need_number --nodes "$nodes" 1 65536
need_number --save-seconds "$save_seconds" 1 65535
[[ -z $gpus ]] || { need_number --gpus "$gpus" 1 64 && for_sbatch+=("--gpus-per-node=$gpus"); }

for word in ${for_sbatch[@]+"${for_sbatch[@]}"}; do
    [[ $word != -a* && $word != --array* ]] || wrong "an array would run this very line in each of its tasks: submit a job a run"
done

line=(sbatch "--nodes=$nodes" "--signal=B:USR1@$save_seconds" ${for_sbatch[@]+"${for_sbatch[@]}"}
    "$LAUNCH/slurm.sbatch" ${for_job[@]+"${for_job[@]}"} -- "$@")
if [[ -n $dry_run ]]; then
    show "${line[@]}"
    exit 0
fi
[[ -z $env_file || -f $env_file ]] || fail "no file '$env_file' in $PWD"
command -v sbatch >/dev/null || fail "no sbatch here: submit from a machine of the Slurm cluster"
exec "${line[@]}"
