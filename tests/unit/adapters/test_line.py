"""One websocket as the gate sees it: what it holds, and until when. Bitget's rules know every kind of limit that there is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest

from ratekeeper import Gate
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._line import Line, dialling
from ratekeeper.adapters.websockets import handshake
from ratekeeper.errors import Blocked, DeadlineExceeded
from ratekeeper.gate.steps import drive, drive_async

URL = "ws://127.0.0.1:9/v2/ws/public"
InFlight = Callable[[str], int]


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate of its own, that takes a closed port for Bitget."""
    with Gate("memory://", hosts="127.0.0.1:9=bitget", max_wait=0.05) as made:
        yield made


@pytest.fixture
def held(gate: Gate) -> InFlight:
    """Units in flight on a limit."""
    return lambda limit: sum(view.inflight for view in gate.read().ledgers if f"/{limit}/" in view.key)


def dialled(gate: Gate) -> Line:
    """A line that has leave to dial."""
    outbound = handshake(URL)
    assert outbound is not None
    line = drive(dialling(Governor(gate), outbound, lambda: OSError, is_async=False))
    assert isinstance(line, Line)
    return line


def connected(gate: Gate) -> Line:
    """A line whose handshake succeeded."""
    line = dialled(gate)
    drive(line.opened(is_async=False))
    return line


def topics(verb: str, *names: str) -> str:
    """A message that subscribes, or ends subscriptions."""
    return json.dumps({
        "op": verb, "args": [{"instType": "USDT-FUTURES", "channel": "ticker", "instId": name} for name in names]
    })  # fmt: skip


def send(line: Line, message: str | None) -> None:
    """Wait until it may be sent."""
    drive(line.sending(message, is_async=False))


def test_a_dial_is_spent_and_its_place_is_held(gate: Gate, held: InFlight) -> None:
    """With the handshake the dial counts as made; the place among the connections comes back at the end, once."""
    line = dialled(gate)
    assert (held("ws-connects-5m"), held("ws-connections")) == (1, 1)
    drive(line.opened(is_async=False))
    assert (held("ws-connects-5m"), held("ws-connections")) == (0, 1)
    line.renew()
    line.close()
    line.close()
    assert held("ws-connections") == 0
    assert not line.holds


@pytest.mark.parametrize("answer", [None, (403, {}, b"")], ids=["no answer", "refused"])
def test_a_dial_that_failed_holds_nothing(
    gate: Gate, held: InFlight, answer: tuple[int, dict[str, str], bytes]
) -> None:
    """Whether it got an answer or none."""
    dialled(gate).failed(ConnectionRefusedError("nobody is there"), answer)
    assert (held("ws-connects-5m"), held("ws-connections")) == (0, 0)


def test_a_name_is_used_again(gate: Gate) -> None:
    """Of two that are open at once each has its own; the next gets that of one that is closed, or was never opened."""
    first, second = connected(gate), dialled(gate)
    assert first.name != second.name
    second.failed(TimeoutError(), None)
    assert dialled(gate).name == second.name


def test_subscriptions_hold_slots_until_they_end(gate: Gate, held: InFlight) -> None:
    """A message that subscribes to three holds three, until all of them are given up or the connection ends."""
    line = connected(gate)
    send(line, topics("subscribe", "BTCUSDT", "ETHUSDT", "SOLUSDT"))
    send(line, topics("subscribe", "XRPUSDT"))
    assert held("ws-channels") == 4
    send(line, topics("unsubscribe", "XRPUSDT", "BTCUSDT"))
    assert held("ws-channels") == 3
    send(line, topics("unsubscribe", "ETHUSDT", "SOLUSDT"))
    assert held("ws-channels") == 0
    send(line, topics("subscribe", "XRPUSDT"))
    line.close()
    assert held("ws-channels") == 0


def test_messages_beyond_the_limit_wait(gate: Gate) -> None:
    """Ten a second, of which one is set aside for answers to pings: the tenth message would have to wait."""
    line = connected(gate)
    for _ in range(9):
        send(line, "ping")
    with pytest.raises(DeadlineExceeded):
        send(line, "ping")


def test_a_pause_holds_messages_and_no_pings(gate: Gate) -> None:
    """Also no message once the connection is closed: it will not be sent."""
    line = connected(gate)
    gate.block("bitget@127.0.0.1:9", None)
    with pytest.raises(Blocked):
        send(line, "ping")
    send(line, None)
    line.close()
    send(line, "ping")


def test_the_gate_gives_all_back_at_its_end(gate: Gate, held: InFlight) -> None:
    """A program that ends with open connections leaves their places to the next one."""
    lines = [connected(gate) for _ in range(3)]
    assert held("ws-connections") == 3
    gate.leases.close()
    assert held("ws-connections") == 0
    assert not any(line.holds for line in lines)


def test_the_same_in_tasks(gate: Gate, held: InFlight) -> None:
    """One logic for both kinds."""

    async def main() -> None:
        outbound = handshake(URL)
        assert outbound is not None
        line = await drive_async(dialling(Governor(gate), outbound, lambda: OSError, is_async=True))
        assert line is not None
        await drive_async(line.opened(is_async=True))
        await drive_async(line.sending(topics("subscribe", "BTCUSDT"), is_async=True))
        assert (held("ws-connections"), held("ws-channels")) == (1, 1)
        line.close()

    asyncio.run(main())
    assert (held("ws-connections"), held("ws-channels")) == (0, 0)
