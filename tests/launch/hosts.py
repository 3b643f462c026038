"""Several hosts on this machine: network namespaces on a bridge where that is allowed."""

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.launch.processes import free_port


@dataclass(frozen=True)
class Host:
    """A host.

    Attributes:
        name: Its own name for itself in a cluster.
        address: IPv4.
        known_as: What other hosts call it: its name where names resolve, else its address.
        hostname: What the system calls it.
        port: Free there for a daemon.
        prefix: What comes before a command that shall run on it.
    """

    name: str
    address: str
    known_as: str
    hostname: str
    port: int
    prefix: tuple[str, ...] = ()


class Hosts:
    """Hosts with addresses and names of their own, or else loopback addresses of this machine.

    Args:
        folder: For their files.
        count: How many.
        names: Whether their names are known everywhere. If not, a name is a loopback address, as many
            machines make of their own: then nothing may depend on names.

    Attributes:
        all: The hosts.
        outside: This machine's address, as they reach it.
        why_loopback: None, or why they are loopback addresses.
    """

    def __init__(self, folder: Path, count: int, *, names: bool) -> None:
        self._hosts_file = folder / "hosts"
        self._spaces: list[str] = []
        self._bridge = ""
        self.why_loopback: str | None = None
        numbers = range(1, count + 1)
        try:
            if os.geteuid() != 0:
                raise NotAllowedError("network namespaces need root")
            self.all = self._namespaces(numbers, names)
        except NotAllowedError as error:
            self.close()
            self.why_loopback = f"on loopback addresses: {error}"
            self.outside = "127.0.0.1"
            self.all = [_loopback(number) for number in numbers]

    def close(self) -> None:
        """Remove what was made."""
        made = [("ip", "netns", "del", space) for space in self._spaces]
        if self._bridge:
            made.append(("ip", "link", "del", self._bridge))
        for words in made:
            subprocess.run(words, check=False, capture_output=True)
        self._spaces, self._bridge = [], ""

    def _namespaces(self, numbers: range, names: bool) -> list[Host]:
        numbers_of_nets = [(os.getpid() + step) % 250 for step in range(250)]
        taken = (_call("ip", "-4", "route", "show", f"10.77.{n}.0/24") for n in numbers_of_nets)
        number = next(
            (n for n, route in zip(numbers_of_nets, taken, strict=True) if not route), None
        )
        if number is None:
            raise NotAllowedError("no free network in 10.77.0.0/16")
        tag, net = f"{number}p{os.getpid()}", f"10.77.{number}"
        self._bridge = f"mb{tag}"
        _call("ip", "link", "add", self._bridge, "type", "bridge")
        self.outside = f"{net}.254"
        _call("ip", "addr", "add", f"{self.outside}/24", "dev", self._bridge)
        _call("ip", "link", "set", self._bridge, "up")
        lines = [f"{net if names else '127.0.0'}.{n if names else 1} n{n}\n" for n in numbers]
        self._hosts_file.write_text("127.0.0.1 localhost\n" + "".join(lines))
        return [self._namespace(f"n{n}", f"{net}.{n}", tag, names) for n in numbers]

    def _namespace(self, name: str, address: str, tag: str, names: bool) -> Host:
        space, outer = f"ml{tag}{name}", f"mv{tag}{name}"
        _call("ip", "netns", "add", space)
        self._spaces.append(space)
        _call("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        _call("ip", "link", "set", outer, "master", self._bridge, "up")
        inside = ("ip", "-n", space)
        _call(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
        _call(*inside, "link", "set", "eth0", "up")
        _call(*inside, "link", "set", "lo", "up")
        enter = f'mount --bind {self._hosts_file} /etc/hosts; hostname {name}; exec "$@"'
        prefix = (
            *("nsenter", f"--net=/run/netns/{space}"),
            *("unshare", "--mount", "--uts", "--propagation", "private"),
            *("sh", "-c", enter, "sh"),
        )
        _call(*prefix, "true")
        return Host(name, address, name if names else address, name, 17818, prefix)


class NotAllowedError(Exception):
    """This machine does not allow network namespaces."""


def _loopback(number: int) -> Host:
    address = f"127.0.0.1{number}"
    return Host(f"n{number}", address, address, socket.gethostname(), free_port())


def _call(*words: str) -> str:
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise NotAllowedError(f"no {words[0]} (make cluster-packages)") from error
    except subprocess.CalledProcessError as error:
        raise NotAllowedError(f"{' '.join(words)}: {error.stderr.strip()}") from error
