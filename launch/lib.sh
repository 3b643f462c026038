# shellcheck shell=bash
# What torchrun.sh and slurm.sbatch share. Source it after `set -euo pipefail`; the script defines usage().

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "$PROGRAM: $*" >&2; }

# fail MESSAGE: the command line was right, but the run cannot go on.
fail() {
    say "$*"
    exit 1
}

# wrong MESSAGE: the command line is wrong.
wrong() {
    say "error: $*"
    usage >&2
    exit 2
}

# need_value OPTION [VALUE]: an option at the end of the line, or before another one, has no value.
need_value() { [[ $# -ge 2 && -n $2 && $2 != --* ]] || wrong "$1 needs a value"; }

# need_number OPTION VALUE LOWEST HIGHEST
need_number() {
    if ! [[ $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
        wrong "$1 takes a whole number from $3 to $4, not '$2'"
    fi
}

# Prints the interpreter: $PYTHON, else the checkout's .venv, else python3.
find_python() {
    local python=${PYTHON:-}
    [[ -n $python ]] || { python=$ROOT/.venv/bin/python && [[ -x $python ]]; } || python=python3
    command -v "$python" || fail "no Python at '$python': run 'make venv' in $ROOT or set PYTHON"
}

# show WORD...: prints a command so that a shell reads back the same words.
show() {
    local word line=''
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || printf -v word %q "$word"
        line+=" $word"
    done
    echo "${line:1}"
}

# run_child WORD...: runs a command, passes TERM and INT on to it, waits for it, returns its status.
# Both arrive as TERM: bash starts background commands with INT ignored.
run_child() {
    local child='' signalled='' status
    trap 'signalled=1; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
    "$@" &
    child=$!
    [[ -z $signalled ]] || kill -TERM "$child"
    while :; do
        signalled='' status=0
        wait "$child" || status=$?
        [[ -n $signalled ]] || break # a trap cuts `wait` short; the child is still there
    done
    trap - TERM INT
    return "$status"
}
