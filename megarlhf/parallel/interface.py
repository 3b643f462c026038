"""Which network interface Gloo uses: the one by which this machine reaches the others.

Left to itself it takes the address of the machine's own name, which need not resolve, and is the
loopback address on many machines.
"""

import fcntl
import os
import socket
import struct

_GET_ADDRESS = 0x8915  # SIOCGIFADDR
_VARIABLE = "GLOO_SOCKET_IFNAME"


def use_route_to(host: str) -> None:
    """Let Gloo use the interface by which ``host`` is reached, unless the user has named one.

    Args:
        host: Name or address of a machine of the run. Where it is not found all stays as it is.
    """
    if _VARIABLE in os.environ:
        return
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 1))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return
    name = interface_of(own)
    if name is not None:
        os.environ[_VARIABLE] = name


def interface_of(address: str) -> str | None:
    """The interface that has an IPv4 address of this machine; None if that is no first address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(probe, _GET_ADDRESS, request)
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
