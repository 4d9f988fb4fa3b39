"""Records that machines share whose steady clocks have nothing in common: claims, bans, health and echo."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from tests.support.tidy import TidyServer

from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.policy.shared import Bans, Claim, age, banned, claimed, held
from ratekeeper.pools.address import Address
from ratekeeper.pools.echo import Echo
from ratekeeper.pools.health import WARNINGS, AddressHealth
from ratekeeper.stores.fallback import FallbackStore
from ratekeeper.stores.memory import MemoryStore
from ratekeeper.stores.redis.store import RedisStore

PLACE = "shop/egress:a"
DAY = 86_400 * SECOND
DOUBT = SECOND // 500


class Machine(MemoryStore):
    """One machine's view of a store: its own steady clock is `ahead` of the store's by so much, give or take `DOUBT`."""

    def __init__(self, shared: MemoryStore, ahead: int) -> None:
        super().__init__()
        self._notes = shared._notes
        self.ahead = ahead

    def skew(self) -> tuple[int, int]:
        return -self.ahead - DOUBT, -self.ahead + DOUBT


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steady clock of the machine that is looked at: change its only entry to go to another one, or to wait."""
    now = [10 * DAY]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    return now


def test_warnings_of_two_machines_add_up(clock: list[int]) -> None:
    """One booted yesterday, the other a month ago: their warnings are one count, forgotten ten minutes after the last."""
    shared = MemoryStore()
    store, other = Machine(shared, 0), Machine(shared, 30 * DAY)
    assert AddressHealth(store).warned(PLACE) == (1, 0)
    clock[0] += 30 * DAY + 60 * SECOND  # a minute later, on the other machine
    assert AddressHealth(other).warnings(PLACE) == 1
    assert AddressHealth(other).warned(PLACE) == (2, 0)
    clock[0] += 590 * SECOND - 30 * DAY  # back on the first
    assert AddressHealth(store).warnings(PLACE) == 2
    clock[0] += 20 * SECOND
    assert AddressHealth(store).warnings(PLACE) == 0


def test_rests_grow_across_machines(clock: list[int]) -> None:
    """A second rest is twice as long, whichever machine met the trouble before."""
    shared = MemoryStore()
    store, other = Machine(shared, 0), Machine(shared, -5 * DAY)
    rests = [AddressHealth(store).warned(PLACE)[1] for _ in range(WARNINGS)]
    clock[0] -= 5 * DAY - 100 * SECOND
    rests += [AddressHealth(other).warned(PLACE)[1] for _ in range(WARNINGS)]
    assert [length // SECOND for length in rests if length] == [60, 120]


def test_a_note_of_another_clock_is_forgotten(clock: list[int]) -> None:
    """The machine was booted again: what its old clock dates into the future does not hold for ever."""
    store = MemoryStore()
    AddressHealth(store).warned(PLACE)
    clock[0] = DAY
    assert AddressHealth(store).warnings(PLACE) == 0


def test_a_stamp_is_never_younger_than_it_is(clock: list[int]) -> None:
    """The doubt about the other clock only makes notes older, by twice its width on each side."""
    shared = MemoryStore()
    at = Machine(shared, 3 * DAY).present().lo
    clock[0] += 7 * SECOND - 3 * DAY
    assert age(at, Machine(shared, 0).present()) == 7 * SECOND + 2 * DOUBT


def test_a_claim_is_held_for_as_long_as_in_doubt() -> None:
    """Until it is surely over on the store's clock; what is garbled, or of a clock that began anew, holds nobody."""
    now = Instant(100 * SECOND, 1000 * SECOND, 1001 * SECOND)
    ours, told = claimed(None, now, 110 * SECOND)
    assert ours == told == Claim(1011 * SECOND)
    assert held(ours, now) == 111 * SECOND
    assert claimed(ours, now, 120 * SECOND) == (ours, 111 * SECOND)
    over = Instant(111 * SECOND, 1011 * SECOND, 1012 * SECOND)
    assert held(ours, over) == held(None, now) == held(Claim(1 << 62), now) == held(Claim(-5), now) == 0
    assert claimed(ours, over, 120 * SECOND)[1] == Claim(1021 * SECOND)


def test_bans_grow_until_they_are_forgotten() -> None:
    """So many that are remembered, so many steps; calls that left before the last was met have met the same one."""

    def at(seconds: int) -> Instant:
        return Instant(seconds * SECOND, (seconds + 500) * SECOND, (seconds + 500) * SECOND)

    def length(earlier: int) -> int:
        return min(60 << min(earlier, 20), 240) * SECOND

    bans, spans = None, []
    for now in (100, 200, 300, 350):
        bans, span = banned(bans, at(now), (now - 1) * SECOND, length)
        spans.append(span // SECOND)
    assert spans == [60, 120, 240, 240]
    assert banned(bans, at(351), 349 * SECOND, length) == (bans, 0)
    assert banned(bans, at(5000), 4999 * SECOND, length)[1] == 60 * SECOND
    garbled = Bans(1 << 61, (3, -7, 1 << 61))
    assert banned(garbled, at(100), 99 * SECOND, length)[1] in {60 * SECOND, 120 * SECOND}


def test_a_store_out_of_reach_is_no_error(clock: list[int]) -> None:
    """Whoever counts a warning while the store is away is not hindered."""

    away = RedisStore("redis://127.0.0.1:1")
    assert away.skew() == (0, 0)
    assert AddressHealth(FallbackStore(away, lambda kind, text: None)).warned(PLACE) == (1, 0)
    away.close()


class _Where(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """The caller's address."""
        self.server.asked += 1  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())


@contextmanager
def asking() -> Iterator[TidyServer]:
    """A real echo that counts."""
    server = TidyServer(("127.0.0.1", 0), _Where)
    server.asked = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_an_echo_said_holds_for_an_hour_on_every_machine(clock: list[int]) -> None:
    """The other machine takes what the first has heard, for what is left of the hour, and asks again after it."""
    shared, address = MemoryStore(), Address("a", bind="127.0.0.2")
    with asking() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        Echo(url, Machine(shared, 0), print).ask(address)
        clock[0] += 30 * DAY + 3000 * SECOND
        there = Echo(url, Machine(shared, 30 * DAY), print)
        there.ask(address)
        assert (server.asked, there.known(address)) == (1, "127.0.0.2")  # type: ignore[attr-defined]
        clock[0] += 590 * SECOND
        assert there.fresh(address)
        clock[0] += 20 * SECOND
        there.ask(address)
        assert server.asked == 2  # type: ignore[attr-defined]
