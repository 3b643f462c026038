"""A real Slurm on this machine: nodes in network namespaces of their own where that is allowed."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

from tests.launch.hosts import Hosts
from tests.launch.processes import free_port, until

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


def why_not() -> str | None:
    """Why this machine cannot have a Slurm, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (make cluster-packages)"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


class SlurmCluster:
    """Slurm's daemons; a context manager that ends them, and every job.

    Args:
        folder: For their files.
        nodes: How many.

    Attributes:
        hosts: The nodes.
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
        self.hosts = Hosts(self.folder, self._nodes, names=False)
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
        self.hosts.close()

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

    def seconds_of(self, job: str) -> int:
        """How long a job has run in this life."""
        words = self._field(job, "RunTime").replace("-", ":").split(":")
        return sum(
            int(word) * unit
            for word, unit in zip(reversed(words), (1, 60, 3600, 86400), strict=False)
        )

    def set_limit(self, job: str, minutes: int) -> None:
        """Change a job's time limit."""
        self.call("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def wait(self, job: str, seconds: float) -> str:
        """The state in which a job ended."""
        active = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
        until(lambda: self.state(job) not in active, seconds, f"job {job} does not end")
        return self.state(job)

    def _field(self, job: str, name: str) -> str:
        text = self.call("scontrol", "show", "job", job)
        return next(w for w in text.split() if w.startswith(f"{name}=")).split("=", 1)[1]

    def _start(self) -> None:
        folder, nodes = self.folder, self.hosts.all
        (folder / "state").mkdir()
        lines = SETTINGS.format(
            host=socket.gethostname(),
            controller=self.hosts.outside,
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
