# shellcheck shell=bash
# shellcheck disable=SC2154 # nodes, container, mounts, env_file, python, logs and log_dir are the script's
# What a script inside a Slurm job knows of the job: its nodes, their addresses, how to run a step on them, and how to
# go on in another life of the job. Source it after lib.sh.

# list_nodes: the job's nodes, one a line.
list_nodes() {
    if command -v scontrol >/dev/null; then
        scontrol show hostnames "$SLURM_JOB_NODELIST"
    elif [[ $SLURM_JOB_NODELIST != *'['* ]]; then
        tr , '\n' <<<"$SLURM_JOB_NODELIST"
    else
        fail "cannot expand the node list '$SLURM_JOB_NODELIST' without scontrol"
    fi
}

# address_of NODE: where the others reach it: by Slurm's own NodeAddr, or else by the node's name, which is left as it is
# where it has no address.
address_of() {
    local name=''
    ! command -v scontrol >/dev/null || name=$(scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    : "${name:=$1}"
    resolve "$name" || echo "$name"
}

# step_words FIRST COUNT: puts into `step` the words that run a command once on each of COUNT nodes of the job, from
# node FIRST: srun, the container, the environment file. Reads nodes, container, mounts, env_file.
step_words() {
    local list
    printf -v list %s, "${nodes[@]:$1:$2}"
    step=(srun --overlap --kill-on-bad-exit=1 --cpu-bind=none --input=none --unbuffered
        "--nodes=$2" "--ntasks=$2" --ntasks-per-node=1 "--nodelist=${list%,}")
    case $container in
    '') ;;
    *.sif)
        step+=(apptainer exec --nv --pwd "$PWD")
        for list in "${mounts[@]}"; do step+=(--bind "$list"); done
        step+=("$container")
        ;;
    *)
        printf -v list %s, "${mounts[@]}"
        step+=("--container-image=$container" "--container-mounts=${list%,}" "--container-workdir=$PWD")
        ;;
    esac
    # shellcheck disable=SC2016 # expanded on the node
    [[ -z $env_file ]] || step+=(bash -c '[[ -r $0 ]] || { echo "no $0 on $HOSTNAME" >&2; exit 1; }; set -a; source "$0"; set +a; exec "$@"'
        "$env_file")
}

# can_use_container: Slurm has no containers without the pyxis plugin.
can_use_container() {
    case $container in
    '') ;;
    *.sif)
        [[ -f $container ]] || fail "no file '$container' in $PWD"
        command -v apptainer >/dev/null || fail "no apptainer on $HOSTNAME to run $container with"
        ;;
    *) grep -q -- --container-image < <(srun --help) || fail "Slurm here has no --container-image (the pyxis plugin): \
give --container an Apptainer image, FILE.sif" ;;
    esac
}

# check_words ADDRESS...: puts into `look` the words that look over the nodes. A node that is unfit does not end the look
# over the others: all that is wrong is said at once. Unbuffered, a line of one node would get into another's.
check_words() {
    local word
    step_words 0 $#
    look=()
    for word in "${step[@]}"; do
        case $word in
        --unbuffered) ;;
        --kill-on-bad-exit=1) look+=(--kill-on-bad-exit=0) ;;
        *) look+=("$word") ;;
        esac
    done
    look+=("$python" "$LAUNCH/check_node.py" --shared "$logs" "$@")
}

# check_nodes ADDRESS...: ends the job with what is wrong where a node cannot run it.
check_nodes() {
    local found agreed
    check_words "$@"
    found=$("${look[@]}") ||
        fail "a node is not fit for the run: see above; sbatch --exclude=NODE goes round it"
    (($(grep -c . <<<"$found") == $#)) || fail "not every node has answered: $found"
    sort -n <<<"$found" | cut -f2,3 | tr '\t' ' ' >&2
    agreed=$(cut -f3 <<<"$found" | sort -u | wc -l)
    ((agreed == 1)) || fail "the nodes differ: see above"
}

# go_on_later: called when the run was stopped by the signal that comes ahead of the time limit, and has saved: puts
# the job back into the queue, under its number; Slurm starts it again. Not if two lives in a row did no step, nor if it
# was cancelled meanwhile. Reads log_dir.
go_on_later() {
    local done_steps pause before=(0)
    [[ ! -e $log_dir/stopped-after ]] || mapfile -t -O 1 before <"$log_dir/stopped-after"
    done_steps=${before[-1]} # told before the run began
    ! was_stopped || done_steps=$(<"$MEGARLHF_STOP_FILE")
    echo "$done_steps" >>"$log_dir/stopped-after"
    [[ ${#before[@]} -lt 2 || "${before[*]: -2}" != "$done_steps $done_steps" ]] ||
        fail "the time limit is too short: no step was done since it came last (step $done_steps); raise --time"
    # At the limit Slurm has begun to end the job, with that reason; a job that ends for another one was cancelled.
    case $(scontrol show job "$SLURM_JOB_ID") in
    *JobState=RUNNING* | *Reason=TimeLimit* | '') ;;
    *)
        say "stopped after step $done_steps, and cancelled"
        return
        ;;
    esac
    for pause in 5 10 20 ''; do # a controller may be busy
        if scontrol requeue "$SLURM_JOB_ID"; then
            say "the time limit is near: stopped after step $done_steps, and queued again"
            return
        fi
        sleep "${pause:-0}"
    done
    say "stopped after step $done_steps, but Slurm does not queue the job again: submit the same line"
}
