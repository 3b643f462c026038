#!/usr/bin/env bash
# Rounds of sampling, scoring and training: rejection sampling (sft) or iterative DPO (dpo).
set -euo pipefail
PROGRAM=iterate.sh
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'EOT'
usage: launch/iterate.sh METHOD --model DIR --out DIR [options]

  launch/iterate.sh dpo --model DIR --out OUT --rounds 3 --nproc 2 \
      --generate data.prompts=json@FILE --generate reward.function=my_reward.py \
      --train optimizer.lr=1e-6 --train loss.beta=0.1

METHOD is sft (rejection sampling: train on the best of n responses) or dpo (iterative DPO: on the best
and the worst). Each round samples from the model of the round before, which is also DPO's reference.

  --model DIR           the model of the first round
  --out DIR             gets round-1/generate, round-1/train, round-2/...; round-N/train/model is the result
  --rounds N            how many (default 3)
  --nproc N             processes that train on this node (default: its GPUs, else 1)
  --generate KEY=VALUE  a setting of megarlhf generate; as often as needed
  --train KEY=VALUE     a setting of the training command; as often as needed
  --dry-run             print the commands and stop
  -h, --help            print this and stop

With --train lora.rank=16 the adapters of a round are merged into its model, the base of the next.

Settings may also be in a file: --generate and --train take one FILE.yaml too. What is done is not done again:
the same line goes on where it was stopped. Ctrl-C, TERM and HUP are passed on to what runs: it saves, and the status is 130.
EOT
}

method='' model='' out='' rounds=3 dry_run=''
nproc=() generate=() train=()
add_setting() { # add_setting ARRAY WORD: a setting, or a file of them
    local -n settings=$1
    if [[ $2 == *.yaml || $2 == *.yml ]] && [[ $2 != *=* ]]; then settings+=(--config); fi
    settings+=("$2")
}
while [[ $# -gt 0 ]]; do
    case $1 in
    --model | --out | --rounds)
        store "${@:1:2}"
        shift 2
        ;;
    --nproc) need_value "${@:1:2}" && need_number "$1" "$2" 1 1024 && nproc=(--nproc "$2") && shift 2 ;;
    --generate | --train) need_value "${@:1:2}" && add_setting "${1#--}" "$2" && shift 2 ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) wrong "unknown option '$1'" ;;
    *) [[ -z $method ]] || wrong "'$1' is one word too many" && method=$1 && shift ;;
    esac
done
case $method in
sft) rows=best.jsonl ;;
dpo) rows=pairs.jsonl ;;
*) wrong "METHOD must be sft or dpo, not '$method'" ;;
esac
[[ -n $model ]] || wrong "--model is missing"
[[ -n $out ]] || wrong "--out is missing"
need_number --rounds "$rounds" 1 1000

python=$(find_python)
here=$(dirname "${BASH_SOURCE[0]}")
# run WORD...: runs a command to which the signals that this script gets are passed on, as they mean the same to it.
run() {
    local child='' again=1 status
    trap 'again=1; [[ -z $child ]] || kill -INT "$child" 2>/dev/null || true' INT
    trap 'again=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM HUP
    set -m # only so that it can be interrupted: a shell makes deaf to Ctrl-C what it runs in the background
    "$@" &
    child=$!
    set +m
    while [[ -n $again ]]; do
        again='' status=0
        wait "$child" || status=$?
    done
    trap - INT TERM HUP
    return "$status"
}

do_once() { # do_once DIRECTORY COMMAND...: skipped when the directory's run is complete
    local done=$1/done
    shift
    if [[ -n $dry_run ]]; then
        show "$@"
    elif [[ ! -e $done ]]; then
        run "$@"
        touch "$done"
    fi
}

# merge MODEL AT: makes a model of the adapters of a round, the base of the next. Only a whole one gets the name.
merge() {
    local words=("$python" -m megarlhf merge-lora --base "$1" --adapter "$2/adapter" --output "$2/merged")
    if [[ -n $dry_run ]]; then
        [[ " ${train[*]-} " != *' lora.rank='[1-9]* ]] || { show "${words[@]}" && show mv "$2/merged" "$2/model"; }
    elif [[ -d $2/adapter && ! -e $2/model ]]; then
        rm -rf "$2/merged"
        run "${words[@]}"
        mv "$2/merged" "$2/model"
    fi
}

for ((round = 1; round <= rounds; round++)); do
    at=$out/round-$round
    do_once "$at/generate" "$python" -m megarlhf generate ${generate[@]+"${generate[@]}"} \
        "model.path=$model" "train.seed=$round" "output.dir=$at/generate"
    do_once "$at/train" "$here/torchrun.sh" ${nproc[@]+"${nproc[@]}"} -- "$method" ${train[@]+"${train[@]}"} \
        "model.path=$model" "data.train=json@$at/generate/$rows" "output.dir=$at/train"
    merge "$model" "$at/train"
    model=$at/train/model
done
[[ -n $dry_run ]] || say "the model of round $rounds: $model"
