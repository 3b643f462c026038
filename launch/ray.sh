#!/usr/bin/env bash
# A Ray cluster on machines without Slurm: up and down, one machine at a time.
set -euo pipefail
PROGRAM=ray.sh
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source-path=SCRIPTDIR source=ray_lib.sh
source "$LAUNCH/ray_lib.sh"

usage() {
    cat <<'EOT'
usage: launch/ray.sh up --address A [--port P]      on the first machine, whose address A the others reach
       launch/ray.sh up --join A:P [--address B]    on every other machine
       launch/ray.sh env                            the lines that `megarlhf rl` needs: eval "$(launch/ray.sh env)"
       launch/ray.sh down                           on every machine: ends what `up` started there, nothing else

  --port P      Ray's port on the first machine, P+1 with it (default 6379)
  --address B   this machine's own (default: the one by which it reaches the first)
  --dir DIR     where the cluster's token, logs and process ids are (default ~/.megarlhf/ray)
  --wait S      seconds that Ray may take to start (default 60)
  --dry-run     print the commands and stop
  -h, --help    print this and stop

Who has the token may run programs on the cluster. Without a common home, copy DIR/token to the other machines first.
PYTHON chooses the interpreter (default: the checkout's .venv, else python3).
EOT
}

action=${1:-} address='' port=6379 join='' dir=${HOME:-}/.megarlhf/ray wait=60 dry_run=''
case $action in
up | env | down) shift ;;
-h | --help) usage && exit 0 ;;
*) wrong "say up, env or down, not '$action'" ;;
esac
while [[ $# -gt 0 ]]; do
    case $1 in
    --address | --port | --join | --dir | --wait) store "${@:1:2}" && shift 2 ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    *) wrong "unknown option '$1'" ;;
    esac
done
need_number --port "$port" 1024 65534
need_number --wait "$wait" 1 86400
[[ -z $join || $join =~ ^[A-Za-z0-9._-]+:[0-9]+$ ]] || wrong "--join takes ADDRESS:PORT, not '$join'"
[[ -z $join ]] || need_number "the port of --join" "${join#*:}" 1024 65534
[[ -z $address || $address =~ ^[A-Za-z0-9._-]+$ ]] || wrong "--address takes a name or an IPv4 address, not '$address'"

dir=$(realpath -m -- "$dir") # `env` is read in other folders
# Every cluster and machine has its own, with a short name: Ray has sockets in it, whose names may have 107 characters.
folder_of() { echo "/tmp/ray-$(cksum <<<"$dir $1" | cut -d' ' -f1)"; }

# runs FILE: whether the process of that .pid file is ours, on this machine. The folder may be shared by machines, and
# a number used again.
runs() {
    local pid
    pid=$(<"$1")
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q -- "--temp-dir=$(folder_of "$(basename "$1" .pid)") "
}

environment() {
    show export "RAY_ADDRESS=$1" RAY_AUTH_MODE=token "RAY_AUTH_TOKEN_PATH=$dir/token" RAY_USAGE_STATS_ENABLED=0
}

# real NAME: its address, or the end of the script.
real() { resolve "$1" || fail "$1 is not found here, or as a loopback address only: give the one that the other machines reach"; }

# check_first HEAD: ends the script where the first machine of a cluster cannot start.
check_first() {
    local file
    for file in "$dir"/*.pid; do
        [[ ! -e $file ]] || ! runs "$file" || fail "Ray runs at $(basename "$file" .pid) already: 'ray.sh down' first"
    done
    [[ ! -e $dir/head ]] || ! listens "$(<"$dir/head")" ||
        fail "a cluster runs at $(<"$dir/head") already: 'ray.sh down' on its machines first, or choose --dir"
    ! listens "$1" || fail "something listens on $1 already, perhaps a Ray that was left: choose --port"
}

up() {
    local python head ray pid file deadline=$((SECONDS + wait))
    python=$(find_python)
    if [[ -n $join ]]; then
        head=$(real "${join%:*}"):${join#*:}
        [[ -n $address ]] || address=$("$python" -c 'import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM); s.connect((sys.argv[1], 1)); print(s.getsockname()[0])' "${head%:*}" 2>/dev/null) ||
            fail "${join%:*} cannot be reached: is that its address?"
    fi
    [[ -n $address ]] || wrong "the first machine needs --address: the one that the others reach"
    address=$(real "$address")
    : "${head:=$address:$port}"
    ray_words "$address" "$head" "$(folder_of "$address")"
    if [[ -n $dry_run ]]; then
        environment "$head"
        echo "$(show "${ray[@]}") &"
        return
    fi
    umask 077
    mkdir -p "$dir" || fail "cannot make $dir: choose --dir"
    file=$dir/$address.pid
    if [[ -z $join ]]; then
        check_first "$head"
        od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$dir/token"
    else
        [[ -f $dir/token ]] || fail "no $dir/token: copy it from ${join%:*}"
        [[ ! -e $file ]] || ! runs "$file" || fail "Ray runs at $address already: 'ray.sh down' first"
        listens "$head" || fail "nothing listens on $head: is Ray up there?"
    fi
    echo "$head" >"$dir/head"
    eval "$(environment "$head")"
    unset RAY_AUTH_TOKEN
    pid=''
    trap '[[ -z $pid ]] || { echo "$pid" >"$file" && end "$file"; }; exit "$INTERRUPTED"' INT TERM HUP
    setsid "${ray[@]}" >"$dir/$address.log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$file"
    until grep -q 'Ray runtime started' "$dir/$address.log"; do
        kill -0 "$pid" 2>/dev/null || { forget "$file" && fail "Ray did not start: $(tail -n 5 "$dir/$address.log")"; }
        ((SECONDS < deadline)) || { end "$file" && fail "Ray did not start in $wait s: see $dir/$address.log"; }
        sleep 0.3
    done
    say "Ray runs at $address (log: $dir/$address.log); on the other machines: launch/ray.sh up --join $head"
}

# forget FILE: removes what Ray has left at the address of that .pid file; with the first machine's the cluster is gone.
forget() {
    local address
    address=$(basename "$1" .pid)
    rm -rf "$(folder_of "$address")" "$1"
    if [[ -e $dir/head && $(<"$dir/head") == "$address":* ]]; then rm -f "$dir/head" "$dir/token"; fi
}

# end FILE: ends the Ray of that .pid file.
end() {
    local pid deadline=$((SECONDS + 30))
    pid=$(<"$1")
    kill -TERM "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.2; done
    ! runs "$1" || fail "Ray (process $pid) does not end: see ${1%.pid}.log"
    forget "$1"
}

down() {
    local file ended=0
    for file in "$dir"/*.pid; do
        [[ -e $file ]] || continue
        if [[ -n $dry_run ]]; then
            ! runs "$file" || show kill -TERM "$(<"$file")"
        elif runs "$file"; then
            end "$file"
            ended=$((ended + 1))
        elif [[ -d $(folder_of "$(basename "$file" .pid)") ]]; then # of this machine, and killed meanwhile
            forget "$file"
        fi
    done
    [[ -n $dry_run ]] || say "ended Ray at $ended addresses of this machine"
}

case $action in
up) up ;;
down) down ;;
env)
    [[ -f $dir/head ]] || fail "no cluster in $dir: 'ray.sh up' first"
    listens "$(<"$dir/head")" || fail "no cluster at $(<"$dir/head") any more: 'ray.sh down', and up again"
    environment "$(<"$dir/head")"
    ;;
esac
