# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # python is the script's, which uses ray and joined
# How Ray is started on a node and found complete, by Slurm or by hand. Source it after lib.sh.

# ray_words ADDRESS HEAD FOLDER: puts into `ray` the words that run Ray on the node with that address until they are
# ended, its files in FOLDER of the node; HEAD is ADDRESS:PORT of the first node's. Reads python.
ray_words() {
    ray=("$python" -m ray.scripts.scripts start --block "--node-ip-address=$1" --min-worker-port=0 --max-worker-port=0
        --dashboard-agent-listen-port=0 "--temp-dir=$3")
    if [[ $1 == "${2%:*}" ]]; then
        ray+=(--head "--port=${2##*:}" "--ray-client-server-port=$((${2##*:} + 1))" --include-dashboard=false)
    else
        ray+=("--address=$2")
    fi
}

# joined_words NODES SECONDS: puts into `joined` a command that waits until so many nodes are in the cluster.
joined_words() {
    joined=("$python" -c '
import sys, time, ray
nodes, seconds = map(int, sys.argv[1:])
deadline = time.monotonic() + seconds
while not ray.is_initialized():  # a busy first node may not answer at once
    try:
        ray.init(log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        if time.monotonic() > deadline:
            sys.exit(str(error))
        time.sleep(1)
while (alive := sum(node["Alive"] for node in ray.nodes())) < nodes:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {nodes} nodes joined Ray in {seconds} s")
    time.sleep(1)' "$1" "$2")
}
