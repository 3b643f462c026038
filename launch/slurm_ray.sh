# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # nodes, addresses, logs, python, port and wait are the script's, which uses run
# Ray on the nodes of a Slurm job, for as long as the run. Source it after slurm_lib.sh and ray_lib.sh.

# environment_words: puts into `ray_environment` what the job's Ray and driver need. Every job has its own token and folder,
# so that jobs and users on one network stay apart. The driver leaves its error where torchrun's ranks leave theirs.
environment_words() {
    ray_environment=("RAY_ADDRESS=${addresses[0]}:$port" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
        "TORCHELASTIC_ERROR_FILE=$logs/driver/error.json")
}

# node_run INDEX: puts into `start` the words that keep Ray running on that node.
node_run() {
    local node=${nodes[$1]} ray folder=/tmp/ray-$SLURM_JOB_ID-$1
    ray_words "${addresses[$1]}" "${addresses[0]}:$port" "$folder"
    step_words "$1" 1
    start=("${step[0]}" "--output=${logs//%/%%}/ray-$node/ray.log" "${step[@]:1}" "$LAUNCH/ray_node.sh" "$folder"
        "$logs/ray-$node" "${ray[@]}")
}

# on_ray WORD...: the words of a command on the first node.
on_ray() {
    step_words 0 1
    run=("${step[@]}" "$@")
}

steps=()
# Ends the nodes' Ray by the file that they look for, so that each keeps its logs. What does not end in time is left
# to Slurm, which ends all steps of a job.
# shellcheck disable=SC2317 # run by the trap
tear_down() {
    local deadline=$((SECONDS + 30)) one
    ((${#steps[@]})) || return 0
    touch "$logs/down"
    for one in "${steps[@]}"; do
        while kill -0 "$one" 2>/dev/null && ((SECONDS < deadline)); do sleep 0.2; done
    done
    steps=()
}

# check_ray: ends the job where Ray has ended on a node.
check_ray() {
    local index
    for index in "${!steps[@]}"; do
        kill -0 "${steps[index]}" 2>/dev/null ||
            fail "Ray ended on ${nodes[index]}: $(tail -n 5 "$logs/ray-${nodes[index]}/ray.log")"
    done
}

# ray_up: Ray on all nodes; returns when they have found each other.
ray_up() {
    local index joining deadline=$((SECONDS + wait))
    environment_words
    unset RAY_AUTH_TOKEN_PATH
    RAY_AUTH_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' ')
    export "${ray_environment[@]}" RAY_AUTH_TOKEN
    ! listens "$RAY_ADDRESS" || fail "something listens on $RAY_ADDRESS already, perhaps a Ray that was left: choose --port"
    for index in "${!nodes[@]}"; do
        node_run "$index"
        "${start[@]}" &
        steps+=("$!")
        until ((index > 0)) || listens "$RAY_ADDRESS"; do
            check_ray
            ((SECONDS < deadline)) || fail "Ray did not start on ${nodes[0]} in $wait s: see $logs/ray-${nodes[0]}/ray.log"
            sleep 0.3
        done
    done
    joined_words ${#nodes[@]} "$wait"
    on_ray "${joined[@]}"
    "${run[@]}" &
    joining=$!
    while kill -0 "$joining" 2>/dev/null; do
        (check_ray) || { kill "$joining" && exit 1; }
        sleep 0.3
    done
    wait "$joining" || fail "the Ray cluster is not complete: see $logs/ray-*/ray.log"
}
