"""The address of metrics and page: bound without asking any resolver."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from feedmono import log
from feedmono.config import HttpConfig
from feedmono.supervision.listener import Listener


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "[::1]"),
    ],
)
def test_an_address_is_bound_without_a_name_lookup(
    monkeypatch: pytest.MonkeyPatch, host: str, shown: str
) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")

    def look_up(*args: Any, **_: Any) -> Any:
        raise AssertionError(f"{args} is looked up")

    with monkeypatch.context() as without:
        without.setattr(socket, "getaddrinfo", look_up)
        listener = Listener(log.get())
        listener.bind(HttpConfig(enabled=True, host=host, port=0))
    assert listener.socket is not None
    port = listener.socket.getsockname()[1]
    assert listener.url == f"http://{shown}:{port}"
    with socket.create_connection((host, port), 20.0):
        pass
    listener.close()
    assert listener.url == ""
