"""websocket-client under Ratekeeper, against the emulator: what a connection holds, and that it comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import websocket

from ratekeeper import Gate
from ratekeeper.adapters.websocket_client import patch
from ratekeeper.errors import Rejected
from ratekeeper.testing import Emulator

PATH = "/v2/ws/public"


class Place:
    """Bitget, a gate for it, and a class of sockets that the gate governs."""

    def __init__(self, emulator: Emulator, gate: Gate) -> None:
        self.emulator = emulator
        self.gate = gate
        self.url = emulator.url.replace("http://", "ws://") + PATH
        self.kind: Any = type("Governed", (websocket.WebSocket,), {})  # the library's own stays as it is
        patch(SimpleNamespace(WebSocket=self.kind))  # type: ignore[arg-type]

    def connect(self, **options: Any) -> Any:
        """An open socket."""
        socket = self.kind()
        socket.connect(self.url, **options)
        return socket

    def held(self, limit: str = "ws-connections") -> int:
        """Units in flight."""
        return sum(view.inflight for view in self.gate.read().ledgers if f"/{limit}/" in view.key)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An emulator and a gate that end with the test; the gate is the process's own meanwhile."""
    with (
        Emulator("bitget", ws_interval=0.05) as emulator,
        Gate("memory://", hosts=emulator.hosts, max_wait=1.0) as gate,
    ):
        monkeypatch.setattr(Gate, "shared", classmethod(lambda _: gate))
        yield Place(emulator, gate)


def _by_client(_: Place, socket: Any) -> None:
    socket.close()


def _by_server(place: Place, socket: Any) -> None:
    place.emulator.cut("close")
    assert socket.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_CLOSE
    socket.shutdown()  # the library's `close` does nothing then


def _lost(place: Place, socket: Any) -> None:
    place.emulator.cut("abort")
    with pytest.raises((OSError, websocket.WebSocketException)):
        socket.recv()
    socket.shutdown()


def _with_the_gate(place: Place, socket: Any) -> None:
    place.gate.leases.close()
    socket.close()


@pytest.mark.parametrize(
    "end", [_by_client, _by_server, _lost, _with_the_gate], ids=lambda end: end.__name__.strip("_")
)
def test_it_holds_its_place_until_it_ends(place: Place, end: Callable[[Place, Any], None]) -> None:
    """The dial is spent with the handshake; the place comes back, whoever ends it."""
    socket = place.connect(header=["X-Bot: 1"])
    assert (place.held("ws-connects-5m"), place.held()) == (0, 1)
    end(place, socket)
    assert place.held() == 0


def test_a_refused_dial_is_told(place: Place) -> None:
    """It keeps no place, and the next one is not made: the gate knows, and says so in the library's own words too."""
    place.emulator.ban(seconds=60)
    with pytest.raises(websocket.WebSocketBadStatusException):
        place.connect(header={"X-Bot": "1"})
    with pytest.raises(websocket.WebSocketException) as caught:
        place.connect()
    assert isinstance(caught.value, Rejected)
    assert place.held() == 0
    assert place.emulator.stats()["routes"][f"WS-CONNECT {PATH}"] == 1


def test_nobody_there(place: Place) -> None:
    """A dial that found nobody costs nothing."""
    place.emulator.close()
    with pytest.raises(OSError, match="refused"):
        place.connect()
    assert (place.held("ws-connects-5m"), place.held()) == (0, 0)


def test_messages_wait_and_pings_go_first(place: Place) -> None:
    """Thirteen where ten a second are allowed: none is too many; both kinds of data are counted."""
    place.gate.max_wait = 30
    socket = place.connect()
    for number in range(13):
        socket.send("ping") if number % 2 else socket.send_binary(b"ping")
    socket.ping()
    socket.pong()
    assert [socket.recv() for _ in range(6)].count("pong") > 0
    socket.close()
    assert place.emulator.stats()["totals"]["sockets_closed"] == 0
