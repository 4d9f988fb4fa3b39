"""What an echo answers."""

from __future__ import annotations

import socket
import threading

import pytest

from ratekeeper.pools import echo
from ratekeeper.pools.address import Address
from ratekeeper.pools.echo import Echo, public_address
from ratekeeper.stores.memory import MemoryStore


@pytest.mark.parametrize(
    "body",
    [
        b"203.0.113.7\n",
        b'"203.0.113.7"',
        b'{"ip": "203.0.113.7"}',
        b'{"origin": "203.0.113.7, 10.0.0.1"}',
        b'{"address": "203.0.113.7", "port": 1}',
    ],
)
def test_the_usual_dialects(body: bytes) -> None:
    """Plain text, and JSON under the names in use."""
    assert public_address(body) == "203.0.113.7"


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b'{"error": "no"}', b"{"])
def test_anything_else_is_no_address(body: bytes) -> None:
    """An echo that says something else is not believed."""
    with pytest.raises(ValueError):
        public_address(body)


def test_an_echo_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of which a byte comes now and then is not waited for until it is whole."""
    monkeypatch.setattr(echo, "_PATIENCE", 0.2)
    gone = threading.Event()
    said: list[str] = []

    def drip() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            try:
                while not gone.wait(0.01):
                    connection.sendall(b" ")
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip)
        thread.start()
        asked = Echo(
            f"http://127.0.0.1:{server.getsockname()[1]}/", MemoryStore(), lambda _, text, **__: said.append(text)
        )
        asked.ask(Address("main"))
        gone.set()
        thread.join(10)
    assert said == ["the echo says nothing about main (TimeoutError): its scope is 'main'"]
    assert asked.known(Address("main")) == ""
