#!/usr/bin/env bash
# Runs a command of megarlhf on every device of one or several nodes, through torchrun.
set -euo pipefail
PROGRAM=torchrun.sh
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'EOT'
usage: launch/torchrun.sh [options] -- COMMAND [arguments]

  launch/torchrun.sh --nproc 2 -- sft --config configs/FILE.yaml optimizer.lr=1e-5

COMMAND is rl, generate, sft, rm, prm, dpo, kto or kd; what follows goes to megarlhf unchanged.

  --nproc N         processes on this node (default: its GPUs, else 1)
  --nnodes N        nodes (default 1); run the same line on each, with its own --node-rank
  --node-rank R     this node, from 0 (default: SLURM_NODEID; needed when N > 1)
  --master-addr A   address of node 0 that the others reach (needed when N > 1)
  --master-port P   free port on node 0 (default 29500; on one node torchrun picks a free one)
  --log-dir DIR     gets a folder a start with one file per rank (default: logs in the line's output.dir,
                    else megarlhf-logs); only the node's first rank still prints here
  --dry-run         print the command and stop
  -h, --help        print this and stop

PYTHON chooses the interpreter (default: the checkout's .venv, else python3).
TERM, HUP or Ctrl-C: the run saves after its step and ends with status 130; the same line goes on from there. A
second Ctrl-C ends it at once. When a rank fails the status is 1, and what the first one said is shown last.
EOT
}

# count_gpus: this node's, as far as CUDA_VISIBLE_DEVICES shows them.
count_gpus() {
    if [[ -n ${CUDA_VISIBLE_DEVICES+is set} ]]; then
        tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^ ]' || true
    else
        { nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true
    fi
}

nproc='' nnodes=1 node_rank='' master_addr='' master_port='' log_dir='' dry_run=''
while [[ $# -gt 0 ]]; do
    case $1 in
    --nproc | --nnodes | --node-rank | --master-addr | --master-port | --log-dir)
        store "${@:1:2}"
        shift 2
        ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && break ;;
    -*) wrong "unknown option '$1'" ;;
    *) wrong "'$1' stands before '--': options first, then --, then the megarlhf command" ;;
    esac
done

[[ $# -gt 0 ]] || wrong "no megarlhf command: write it after '--'"
if [[ -z $nproc ]]; then
    nproc=$(count_gpus)
    ((nproc > 0)) || nproc=1
fi
need_number --nproc "$nproc" 1 1024
need_number --nnodes "$nnodes" 1 65536

python=$(find_python)
launcher=("$python" -m torch.distributed.run "--nproc-per-node=$nproc")
if ((nnodes == 1)); then
    [[ -z $node_rank$master_addr$master_port ]] ||
        wrong "--node-rank, --master-addr and --master-port belong to --nnodes above 1"
    # The loopback address, because the machine's own name need not resolve.
    launcher+=(--standalone --local-addr=127.0.0.1)
else
    : "${node_rank:=${SLURM_NODEID:-}}"
    [[ -n $node_rank ]] || wrong "--nnodes $nnodes needs --node-rank"
    [[ -n $master_addr ]] || wrong "--nnodes $nnodes needs --master-addr"
    need_number --node-rank "$node_rank" 0 $((nnodes - 1))
    need_number --master-port "${master_port:=29500}" 1 65535
    # Gloo and NCCL take the interface of this address: it must be a real one on every node.
    known=$(resolve "$master_addr") || known=''
    [[ -n $known$dry_run ]] || fail "--master-addr $master_addr is not found here, or as a loopback address only: give the \
address by which the other nodes reach node 0"
    master_addr=${known:-$master_addr}
    launcher+=("--nnodes=$nnodes" "--node-rank=$node_rank"
        "--master-addr=$master_addr" "--master-port=$master_port")
fi
log_dir=$(realpath -m -- "${log_dir:-$(log_folder "$@")}")
logs=$log_dir/$(date +%Y%m%d-%H%M%S)-node${node_rank:-0}
[[ -n $dry_run ]] || logs=$(new_folder "$logs")
# Ranks write to files, the first one here too. torchrun does not pass signals on: see lib.sh; QUIT is for urgency.
launcher+=("--log-dir=$logs" --redirects=3 --tee=0:1 --role= --signals-to-handle=SIGQUIT
    --shutdown-timeout=5 -m megarlhf "$@")

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # ranks share the cores
# shellcheck disable=SC2016 # torchrun replaces it, by the empty --role: no prefix before the lines printed here
export TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE='$role_name'
inner=${MEGARLHF_STOP_FILE:-} # set by the launcher that runs this script on each node
export MEGARLHF_STOP_FILE=${inner:-$logs/stop}
if [[ -n $dry_run ]]; then
    show "OMP_NUM_THREADS=$OMP_NUM_THREADS" "MEGARLHF_STOP_FILE=$MEGARLHF_STOP_FILE" \
        "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE=$TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE" "${launcher[@]}"
    exit 0
fi
[[ -n $inner ]] || say "logs of each rank: $logs/*/attempt_*/RANK/{stdout,stderr}.log"
status=0
run_stoppable "$logs/torchrun.log" "${launcher[@]}" || status=$?
[[ -z $inner ]] || exit "$status"
if ((status == 0)) && was_stopped; then
    say "stopped after step $(<"$MEGARLHF_STOP_FILE"), and saved: the same line goes on"
    exit "$INTERRUPTED"
fi
((status <= 128)) || end_left
((status == 0)) || show_failure "$logs"
exit "$status"
