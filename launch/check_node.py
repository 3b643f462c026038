"""Is this node fit for the run? check_node.py --shared FOLDER ADDRESS..., a task a node of a Slurm job.

Prints one line, tab-separated: the node's number, its name with what it has, and what all nodes must
agree on. What is wrong goes to standard error, and the status is 1. Only the standard library, but for
a try of the GPUs.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "megatron-core", "ray", "transformers")
LEAST_SHARED_MEMORY = 256 << 20  # Ray's objects and NCCL; Docker's 64 MiB is the usual mistake
LEAST_TEMPORARY = 1 << 30
HANGS_AFTER_S = 120
FOREIGN_GPU_MEMORY_MIB = 1024  # more than a driver's own: another process computes there


def main(folder: str, addresses: list[str]) -> int:
    """Check everything, and say all that is wrong at once."""
    sys.path.insert(0, os.getcwd())  # as python -m does
    number = int(os.environ.get("SLURM_NODEID", "0"))
    name = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    gpus, wrong = check_gpus()
    versions, missing = installed()
    wrong += missing
    wrong += check_address(addresses[number])
    wrong += check_folders(folder)
    for line in wrong:
        print(f"node {name}: {line}", file=sys.stderr)
    has = f"{name} ({addresses[number]}): {os.cpu_count()} CPUs, {gpus} GPUs;"
    print(f"{number}\t{has}\t{gpus} GPUs, {versions}")
    return 1 if wrong else 0


def installed() -> tuple[str, list[str]]:
    """The versions that all nodes must have, and what is missing."""
    found, missing = [f"Python {sys.version.split()[0]}"], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(f"{package} is not installed for {sys.executable}")
    if importlib.util.find_spec("megarlhf") is None:
        missing.append(f"megarlhf is not installed for {sys.executable}, nor in {Path.cwd()}")
    return ", ".join(found), missing


def check_address(address: str) -> list[str]:
    """Whether the address that the others use is this node's."""
    try:
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError as error:
        return [f"its address {address} is not its own ({error.strerror}): see NodeAddr in Slurm"]
    return []


def check_folders(shared: str) -> list[str]:
    """Whether the job's folder is seen here, and temporary files and shared memory have room."""
    wrong = []
    if not Path(shared).is_dir():
        wrong.append(f"does not see {shared}: the folder must be on a file system of all nodes")
    temporary = tempfile.gettempdir()
    for folder, least in ((temporary, LEAST_TEMPORARY), ("/dev/shm", LEAST_SHARED_MEMORY)):
        free = shutil.disk_usage(folder).free
        if free < least or not os.access(folder, os.W_OK):
            wrong.append(
                f"{folder} has {free >> 20} MiB free, less than {least >> 20}, or is read-only"
            )
    return wrong


def check_gpus() -> tuple[int, list[str]]:
    """How many GPUs the node has and what is wrong with them."""
    asked = os.environ.get("SLURM_GPUS_ON_NODE")
    if shutil.which("nvidia-smi") is None:
        return 0, [f"has no nvidia-smi, but the job has {asked} GPUs on it"] if asked else []
    fields = "index,memory.used,ecc.errors.uncorrected.volatile.total"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    answer = answer_of(query)
    if answer is None:
        return 0, [f"a GPU hangs: nvidia-smi has not answered in {HANGS_AFTER_S} s"]
    if answer.returncode:
        return 0, [f"nvidia-smi fails: {answer.stdout.strip() or answer.stderr.strip()}"]
    rows = [[word.strip() for word in line.split(",")] for line in answer.stdout.splitlines()]
    if any(len(row) != 3 for row in rows):
        return 0, [f"nvidia-smi does not tell its GPUs: {answer.stdout.strip()}"]
    wrong = []
    for index, used, errors in rows:
        if used.isdigit() and int(used) > FOREIGN_GPU_MEMORY_MIB:
            wrong.append(f"GPU {index} has {used} MiB in use by another process")
        if errors.isdigit() and int(errors):  # "[N/A]" where the GPU does not count them
            wrong.append(f"GPU {index} has {errors} uncorrected memory errors: reset it")
    count = int(asked or len(rows))
    if count > len(rows):
        wrong.append(f"has {len(rows)} GPUs in order, the job was given {count}")
    return count, wrong or try_gpus(count)


def try_gpus(count: int) -> list[str]:
    """Let torch compute on each: a GPU that the driver lists may still hang or be lost."""
    if importlib.util.find_spec("torch") is None:
        return []  # said already
    code = (
        "import torch\n"
        f"assert torch.cuda.device_count() == {count}, f'torch sees {{torch.cuda.device_count()}}'\n"
        f"for i in range({count}):\n"
        "    x = torch.ones(256, 256, device=i)\n"
        "    assert (x @ x).sum().item() == 256**3, f'GPU {i} computes wrongly'\n"
    )
    done = answer_of([sys.executable, "-c", code])
    if done is None:
        return [f"a GPU hangs: a small product was not done in {HANGS_AFTER_S} s"]
    return [f"its GPUs fail: {done.stderr.strip().splitlines()[-1]}"] if done.returncode else []


def answer_of(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """What a program ends with, or None if it hangs: in a driver even a kill may have to wait."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=HANGS_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2], sys.argv[3:]))
