import os

import pytest

from megarlhf.parallel import interface


def test_an_address_has_its_interface():
    assert interface.interface_of("127.0.0.1") == "lo"
    assert interface.interface_of("192.0.2.1") is None  # of documentation: nobody's


@pytest.mark.parametrize(
    ("set_before", "host", "set_after"),
    [
        (None, "127.0.0.2", "lo"),  # reached by loopback, whose first address is another
        ("eth7", "127.0.0.1", "eth7"),
        (None, "no.such.host.invalid", None),
    ],
)
def test_gloo_takes_the_interface_of_the_route(monkeypatch, set_before, host, set_after):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    if set_before is not None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", set_before)
    interface.use_route_to(host)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == set_after
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
