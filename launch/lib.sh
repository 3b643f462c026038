# shellcheck shell=bash
# shellcheck disable=SC2034 # used by the scripts
# What every script here shares. Source it after `set -euo pipefail` and PROGRAM=...; the script defines usage().

LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$LAUNCH")
INTERRUPTED=130 # the exit status of a run that was asked to stop, has saved and can go on

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

# need_number OPTION VALUE LOWEST HIGHEST: written without leading zeros, by which bash reads octal numbers.
need_number() {
    if ! [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3 || $2 > $4)); then
        wrong "$1 takes a whole number from $3 to $4, not '$2'"
    fi
}

# need_command [WORD]: one of the commands of megarlhf that run on several devices.
need_command() {
    case ${1:-} in
    rl | generate | sft | rm | prm | dpo | kto | kd) ;;
    '') wrong "no megarlhf command: write it after '--'" ;;
    *) wrong "COMMAND must be rl, generate, sft, rm, prm, dpo, kto or kd, not '$1'" ;;
    esac
}

# store OPTION [VALUE]: puts the value of --some-option into the variable some_option.
store() {
    need_value "$@"
    local name=${1#--}
    printf -v "${name//-/_}" %s "$2"
}

# Prints the interpreter: $PYTHON, else the checkout's .venv, else python3.
find_python() {
    local python=${PYTHON:-}
    [[ -n $python ]] || { python=$ROOT/.venv/bin/python && [[ -x $python ]]; } || python=python3
    command -v "$python" || fail "no Python at '$python': run 'make venv' in $ROOT or set PYTHON"
}

# resolve NAME: the IPv4 address by which other machines know it; an address is its own. Fails where there is none, or only
# a loopback one, which is what many machines make of their own name.
resolve() {
    if [[ $1 =~ ^[0-9]+(\.[0-9]+){3}$ ]]; then
        echo "$1"
    else
        getent ahostsv4 "$1" | awk '$1 !~ /^127\./ { print $1; exit }' | grep .
    fi
}

# listens ADDRESS:PORT: whether something does; an address that does not answer is not waited for.
# shellcheck disable=SC2016 # expanded by the inner shell
listens() { timeout 3 bash -c ': <"/dev/tcp/$0/$1"' "${1%:*}" "${1##*:}" 2>/dev/null; }

# show WORD...: prints a command so that a shell reads back the same words.
show() {
    local word line=''
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || printf -v word %q "$word"
        line+=" $word"
    done
    echo "${line:1}"
}

# log_folder WORD...: where a run's logs go by default: logs/ in its output.dir, if the words set it.
log_folder() {
    local word folder=megarlhf-logs
    for word; do
        [[ $word != output.dir=* ]] || folder=${word#*=}/logs
    done
    echo "$folder"
}

# new_folder NAME: makes that folder, or NAME.1, NAME.2 where another run has made it, and prints which.
new_folder() {
    local name=$1 number=0
    mkdir -p -- "$(dirname -- "$1")" || fail "cannot make $1: choose --log-dir"
    until mkdir -- "$name" 2>/dev/null; do
        [[ -e $name ]] || fail "cannot make $name: choose --log-dir"
        name=$1.$((++number))
    done
    echo "$name"
}

# --- the run as a child -----------------------------------------------------------------------
#
# The ranks are not reached by signals: torchrun, srun or a container is between. MEGARLHF_STOP_FILE names
# a file; that it exists asks the run to stop after its step; when it has saved it writes the step into it.

SIGNALLED='' # the signals that asked the run to stop

# shellcheck disable=SC2317 # run by a trap
ask_to_stop() {
    SIGNALLED+=" $1"
    [[ -e $MEGARLHF_STOP_FILE ]] || say "$1: the run will save and stop after this step"
    touch "$MEGARLHF_STOP_FILE"
}

# run_stoppable FILE WORD...: runs a command, its standard error to the end of FILE (-: as it is), waits for it and
# returns its status. TERM, HUP, USR1 and INT ask the run to stop; a second INT (Ctrl-C) ends it at once. TERM itself stays away
# from the launcher below us, which would pass it on, wait for a short while and kill.
run_stoppable() {
    local errors=$1 child='' again status
    shift
    trap 'again=1; ask_to_stop TERM' TERM
    trap 'again=1; ask_to_stop HUP' HUP
    trap 'again=1; ask_to_stop USR1' USR1
    trap 'again=1; [[ -z $child || $SIGNALLED != *INT* ]] || kill -QUIT -- "-$child" 2>/dev/null; ask_to_stop INT' INT
    (
        trap '' TERM HUP USR1
        [[ $errors == - ]] || exec 2>>"$errors"
        exec setsid "$@" # a group of its own: Ctrl-C reaches this script only
    ) &
    child=$!
    while :; do
        again='' status=0
        wait "$child" || status=$?
        [[ -n $again ]] || break # a trap cuts `wait` short; the child is still there
    done
    trap - TERM HUP USR1 INT
    return "$status"
}

# was_stopped: whether the run was interrupted, and has saved.
was_stopped() { [[ -s $MEGARLHF_STOP_FILE ]]; }

# show_failure FOLDER: prints what the first rank that failed said last; the ranks' logs are under FOLDER. PYTHON may be
# inside a container.
show_failure() {
    local python
    for python in ${PYTHON:+"$PYTHON"} "$ROOT/.venv/bin/python" python3; do
        ! command -v "$python" >/dev/null || { "$python" "$LAUNCH/first_failure.py" "$1" >&2 && return; }
    done
    say "a rank failed: see $1"
}

# end_left: ends what a launcher that was itself killed has left of this start's processes, and no other: they have its
# stop file in their environment.
end_left() {
    local file
    while read -r file; do
        kill -KILL "${file//[!0-9]/}" 2>/dev/null || true
    done < <(grep -lszxF -- "MEGARLHF_STOP_FILE=$MEGARLHF_STOP_FILE" /proc/[0-9]*/environ)
}
