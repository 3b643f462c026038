#!/usr/bin/env bash
# Runs a command of megarlhf on every device of one or several nodes, through torchrun.
set -euo pipefail
PROGRAM=torchrun.sh
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'EOF'
usage: launch/torchrun.sh [options] -- COMMAND [arguments]

  launch/torchrun.sh --nproc 2 -- sft --config configs/FILE.yaml optimizer.lr=1e-5

COMMAND is rl, generate, sft, rm, prm, dpo, kto or kd; what follows goes to megarlhf unchanged.

  --nproc N         processes on this node (default: its GPUs, else 1)
  --nnodes N        nodes (default 1); run the same line on each, with its own --node-rank
  --node-rank R     this node, from 0 (needed when N > 1)
  --master-addr A   address of node 0 that the others reach (needed when N > 1)
  --master-port P   free port on node 0 (default 29500; on one node torchrun picks a free one)
  --log-dir DIR     one file per rank under DIR; only the node's first rank still prints here
  --dry-run         print the command and stop
  -h, --help        print this and stop

PYTHON chooses the interpreter (default: the checkout's .venv, else python3).
TERM and INT end the run in order; the exit status is torchrun's.
EOF
}

nproc='' nnodes=1 node_rank='' master_addr='' master_port='' log_dir='' dry_run=''
while [[ $# -gt 0 ]]; do
    case $1 in
    --nproc | --nnodes | --node-rank | --master-addr | --master-port | --log-dir)
        need_value "${@:1:2}"
        name=${1#--}
        printf -v "${name//-/_}" %s "$2"
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
    nproc=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
    ((nproc > 0)) || nproc=1
fi
need_number --nproc "$nproc" 1 1024
need_number --nnodes "$nnodes" 1 65536

python=$(find_python)
launcher=("$python" -m torch.distributed.run "--nproc-per-node=$nproc")
if ((10#$nnodes == 1)); then
    [[ -z $node_rank$master_addr$master_port ]] ||
        wrong "--node-rank, --master-addr and --master-port belong to --nnodes above 1"
    # The loopback address, because the machine's own name need not resolve.
    launcher+=(--standalone --local-addr=127.0.0.1)
else
    [[ -n $node_rank ]] || wrong "--nnodes $nnodes needs --node-rank"
    [[ -n $master_addr ]] || wrong "--nnodes $nnodes needs --master-addr"
    need_number --node-rank "$node_rank" 0 $((10#$nnodes - 1))
    need_number --master-port "${master_port:=29500}" 1 65535
    launcher+=("--nnodes=$nnodes" "--node-rank=$node_rank"
        "--master-addr=$master_addr" "--master-port=$master_port")
fi
[[ -z $log_dir ]] || launcher+=("--log-dir=$log_dir" --redirects=3 --tee=0:3)
launcher+=(-m megarlhf "$@")

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # ranks share the cores
if [[ -n $dry_run ]]; then
    show "OMP_NUM_THREADS=$OMP_NUM_THREADS" "${launcher[@]}"
    exit 0
fi
[[ -z $log_dir ]] || say "logs of each rank: $log_dir/*/attempt_*/RANK/{stdout,stderr}.log"
run_child "${launcher[@]}"
