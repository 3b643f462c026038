"""Sampling ahead of training against sampling in turn with it, at equal samples.

    megarlhf demo --dir runs/demo          # makes runs/demo-start: the warmed-up model and its task
    python -m benchmarks.async_rl --start runs/demo-start

Every way is a run of ``megarlhf rl`` on the demo's task, one after the other, in turns. The actor's rank
has one core for itself and the engine another (as by ``taskset``), in every way; so what differs is only
whether they compute at the same time. A run's figures are medians over the steps behind ``--warmup``;
seconds a step are from one step's end to the next one's, ``wall`` the seconds of all of these steps.
Held-out accuracy is ``before`` the first step and ``after`` the last, as many samples later.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import table, write_json
from megarlhf.report.metrics import MetricsLog

ROOT = Path(__file__).parents[1]
CORES = {b"ray::ActorWorker": 0, b"ray::VllmEngine": 1}  # by how the process calls itself
PIN_EVERY_S = 0.5
SIDES = ("seconds_generate", "sampler_seconds_generate", "sampler_seconds_wait", "seconds_wait")
SIDES += ("seconds_predict", "seconds_train", "seconds_stream")


def main() -> None:
    """Run all ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, required=True, help="DIR-start of `megarlhf demo`")
    parser.add_argument("--async-steps", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--eval-every", type=int, default=0, help="0: only before and after")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    parser.add_argument("settings", nargs="*", help="of megarlhf rl, for all ways")
    options = parser.parse_args()
    runs: dict[int, list[dict[str, Any]]] = {ahead: [] for ahead in options.async_steps}
    for number in range(options.rounds):
        for ahead, done in runs.items():
            done.append(measured(options, ahead, seed=options.seed + number))
            print(f"async_steps={ahead} seed={options.seed + number}: {done[-1]}", flush=True)
    in_turn = statistics.median(one["wall"] for one in runs[min(options.async_steps)])
    rows = []
    for ahead, done in runs.items():
        medians = {key: statistics.median(one[key] for one in done) for key in done[0]}
        rows.append({"async_steps": ahead, **medians, "faster": in_turn / medians["wall"]})
    print(table(rows))
    write_json(options.out, {"runs": runs, "medians": rows, "load": os.getloadavg()})


def measured(options: argparse.Namespace, ahead: int, seed: int) -> dict[str, float]:
    """Figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run = subprocess.Popen(command(options, ahead, seed, out), stdout=subprocess.DEVNULL)
        pinning = threading.Thread(target=keep_pinned, args=(run,))
        pinning.start()
        try:
            status = run.wait()
        finally:
            run.terminate()
            pinning.join()
        if status:
            raise SystemExit(f"the run with async_steps={ahead} ended with status {status}")
        rows = MetricsLog.read(out)
    steps = [row for row in rows if "loss" in row]
    measured = steps[options.warmup :]
    accuracies = [row["eval_accuracy"] for row in rows if "eval_accuracy" in row]
    ends = [row["time"] for row in steps[options.warmup - 1 :]]
    ends[-1] -= steps[-1].get("seconds_evaluate", 0.0)  # of what comes out: it is no part of a step
    parts = {
        name.removeprefix("seconds_"): statistics.median(row.get(name, 0.0) for row in measured)
        for name in SIDES
    }
    return {
        "s/step": statistics.median(b - a for a, b in itertools.pairwise(ends)),
        "wall": ends[-1] - ends[0],
        **parts,
        "staleness": statistics.median(row.get("staleness_mean", 0.0) for row in measured),
        "oldest": max(row.get("staleness_max", 0.0) for row in measured),
        "reward": statistics.mean(row["reward"] for row in measured),
        "before": accuracies[0],
        "after": accuracies[-1],
    }


def command(options: argparse.Namespace, ahead: int, seed: int, out: Path) -> list[str]:
    """Of the demo's RL, on one rank and one engine."""
    start = options.start
    return [
        *(sys.executable, "-m", "megarlhf", "rl", f"--config={ROOT / 'configs/demo/rl.yaml'}"),
        f"model.path={start / 'sft' / 'model'}",
        f"data.prompts=json@{start / 'task' / 'rl_train.jsonl'}",
        f"data.eval_prompts=json@{start / 'task' / 'heldout.jsonl'}",
        f"reward.function={ROOT / 'megarlhf/demo/reward.py'}",
        "model.parallel.tensor=1",
        "cluster.actor_ranks=1",
        "algorithm.max_logprob_gap=null",
        "algorithm.correction=icepop",
        "output.tensorboard=false",
        "train.save_every=0",
        f"train.eval_every={options.eval_every}",
        f"train.steps={options.steps}",
        f"train.seed={seed}",
        f"rollout.async_steps={ahead}",
        f"output.dir={out}",
        *options.settings,
    ]


def keep_pinned(run: subprocess.Popen) -> None:
    """Until it ends, hold the run's processes of `CORES` on their cores, with all their threads."""
    while run.poll() is None:
        for process in descendants(run.pid):
            for name, core in CORES.items():
                if read(process / "cmdline").startswith(name):
                    pin(process, core)
        time.sleep(PIN_EVERY_S)


def pin(process: Path, core: int) -> None:
    """Every thread of a process."""
    for thread in process.glob("task/[0-9]*"):
        try:
            os.sched_setaffinity(int(thread.name), {core})
        except ProcessLookupError:
            continue


def descendants(pid: int) -> list[Path]:
    """Folders in /proc of the processes below one."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = read(stat).rpartition(b")")[2].split()
        if len(fields) > 1:
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return [Path("/proc") / str(child) for child in found]


def read(file: Path) -> bytes:
    """Empty where the process has ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    main()
