"""A real Slurm on this machine: nodes in network namespaces of their own where that is allowed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SETTINGS = """
ClusterName=megarlhf
SlurmctldHost={host}({controller})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldLogFile={folder}/slurmctld.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PartitionName=main Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Node:
    """A node: its address, and what comes before a command that shall run on it."""

    name: str
    address: str
    hostname: str
    port: int
    prefix: tuple[str, ...] = ()


def why_not() -> str | None:
    """Why this machine cannot have a Slurm, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (make cluster-packages)"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


class Network:
    """Hosts: network namespaces on a bridge with real addresses, or else loopback addresses."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._numbers = range(1, count + 1)
        self._number = os.getpid() % 250
        self._bridge = f"mlbr{os.getpid()}"
        self._spaces: list[str] = []
        self.controller = "127.0.0.1"
        try:
            self.nodes = self._namespaces()
            self.real = True
        except subprocess.CalledProcessError:
            self.close()
            self.nodes = [
                Node(f"n{n}", f"127.0.0.1{n}", socket.gethostname(), free_port())
                for n in self._numbers
            ]
            self.controller, self.real = "127.0.0.1", False

    def close(self) -> None:
        """Remove what was made."""
        for space in self._spaces:
            _call("ip", "netns", "del", space, check=False)
        _call("ip", "link", "del", self._bridge, check=False)
        self._spaces = []

    def _namespaces(self) -> list[Node]:
        net = f"10.77.{self._number}"
        _call("ip", "link", "add", self._bridge, "type", "bridge")
        _call("ip", "addr", "add", f"{net}.254/24", "dev", self._bridge)
        _call("ip", "link", "set", self._bridge, "up")
        self.controller = f"{net}.254"
        hosts = self._folder / "hosts"
        names = [f"n{n}" for n in self._numbers]
        # As on many machines, a node's own name is a loopback address: nothing may depend on names.
        hosts.write_text(f"127.0.0.1 localhost {' '.join(names)}\n")
        return [self._namespace(name, f"{net}.{n}", hosts) for n, name in enumerate(names, 1)]

    def _namespace(self, name: str, address: str, hosts: Path) -> Node:
        space, outer = f"ml{os.getpid()}{name}", f"mlv{os.getpid()}{name}"
        _call("ip", "netns", "add", space)
        self._spaces.append(space)
        _call("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        _call("ip", "link", "set", outer, "master", self._bridge, "up")
        inside = ("ip", "-n", space)
        _call(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
        _call(*inside, "link", "set", "eth0", "up")
        _call(*inside, "link", "set", "lo", "up")
        enter = f'mount --bind {hosts} /etc/hosts; hostname {name}; exec "$@"'
        prefix = (
            *("nsenter", f"--net=/run/netns/{space}"),
            *("unshare", "--mount", "--uts", "--propagation", "private"),
            *("sh", "-c", enter, "sh"),
        )
        _call(*prefix, "true")
        return Node(name, address, name, 17818, prefix)


class SlurmCluster:
    """Slurm's daemons; a context manager that ends them, and every job.

    Args:
        folder: For their files.
        nodes: How many.

    Attributes:
        network: The nodes.
        environment: With which Slurm's commands find this cluster.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self._nodes = folder, nodes
        self._daemons: list[subprocess.Popen] = []
        # Gloo's interface is that of ranks which other tests had in this very process.
        ours = ("SLURM_", "RAY_", "GLOO_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        self.environment = kept | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> "SlurmCluster":
        self.network = Network(self.folder, self._nodes)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._daemons) > 2:  # the controller is up
            self.call("scancel", "--full", "--signal=KILL", "--user=root", check=False)
            self.call("scancel", "--user=root", check=False)
            until(lambda: not self.call("squeue", "--noheader", check=False), 20, "jobs do not end")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.network.close()

    def call(self, *words: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """A job's state, such as PENDING, RUNNING or COMPLETED."""
        return self._field(job, "JobState")

    def restarts(self, job: str) -> int:
        """How often a job was queued again."""
        return int(self._field(job, "Restarts"))

    def wait(self, job: str, seconds: float) -> str:
        """The state in which a job ended."""
        active = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
        until(lambda: self.state(job) not in active, seconds, f"job {job} does not end")
        return self.state(job)

    def _field(self, job: str, name: str) -> str:
        text = self.call("scontrol", "show", "job", job)
        return next(w for w in text.split() if w.startswith(f"{name}=")).split("=", 1)[1]

    def _start(self) -> None:
        folder, nodes = self.folder, self.network.nodes
        (folder / "state").mkdir()
        lines = SETTINGS.format(
            host=socket.gethostname(),
            controller=self.network.controller,
            port=free_port(),
            folder=folder,
        )
        for node in nodes:
            lines += (
                f"NodeName={node.name} NodeHostname={node.hostname} NodeAddr={node.address} "
                f"Port={node.port} CPUs=2 RealMemory=8000\n"
            )
        (folder / "slurm.conf").write_text(lines)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        names = ("key", "log", "pid", "seed")
        files = [f"--{name}-file={folder / 'munge'}.{name}" for name in names]
        socket_file = folder / "munge.socket"
        self._daemon("munged", "--foreground", "--force", f"--socket={socket_file}", *files)
        until(socket_file.exists, 10, "munged does not start")
        self._daemon("slurmctld", "-D", "-i")
        for node in nodes:
            self._daemon(*node.prefix, "slurmd", "-D", "-N", node.name)
        idle = f"idle {self._nodes}"
        until(lambda: self.call("sinfo", "-h", "-o", "%T %D", check=False) == idle, 40, "no nodes")

    def _daemon(self, *words: str) -> None:
        with (self.folder / "daemons.log").open("a") as log:
            self._daemons.append(
                subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)
            )


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def until(true: Callable[[], object], seconds: float, otherwise: str) -> None:
    """Wait; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def _call(*words: str, check: bool = True) -> None:
    subprocess.run(words, check=check, capture_output=True)


def processes_with(text: str) -> dict[int, str]:
    """The command lines of running processes that have `text` in them (zombies have none)."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        if text in line:
            found[int(file.parent.name)] = line
    return found
