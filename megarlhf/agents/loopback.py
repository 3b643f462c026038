"""Where the endpoint listens, and how programs get there."""

from collections.abc import Mapping

HOST = "127.0.0.1"


def direct(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables with which no HTTP client takes a proxy to the endpoint."""
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY")
    hosts = f"{exempt},{HOST}" if exempt else HOST
    return {**environment, "no_proxy": hosts, "NO_PROXY": hosts}
