"""Whatever a server answers: a verb of the store does what it should or raises `StoreUnavailable`, and nothing else."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from tests.support.notes import noted, write
from tests.support.server import Server

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit, Window
from ratekeeper.stores.records import Ask, Grant, Settlement
from ratekeeper.stores.redis.protocol import NOTES, Command, command
from ratekeeper.stores.redis.store import RedisStore

NS = "shop"
ME = (11, 2)
CHARGES = (
    Charge(f"{NS}/weight/ip:a", Limit("weight", "weight", 10**9, 60 * SECOND), 2),
    Charge(f"{NS}/slots/ip:a", Limit("slots", "slots", 10**6, 0, Window.SLOTS), 1),
)
ODD: list[Any] = [None, True, -1, 2**63, 1.5, "x", b"\xff", b"", [], [[]], {}, {b"x": b"y"}]
ROUNDS = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests of this suite."""
    with Server(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def store(server: Server) -> Iterator[RedisStore]:
    """A store on the empty server, every verb of which is a round trip of its own."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
    made = RedisStore(server.url, given=True)
    yield made
    made.close()


def now(_: str = "") -> Instant:
    """The present."""
    mono = time.monotonic_ns()
    return Instant(mono, mono, mono)


def granted(store: RedisStore) -> Grant:
    """A permit."""
    got = store.reserve(Ask(NS, CHARGES, (NS,), ME), now())
    assert isinstance(got, Grant), got
    return got


def wrong(dice: random.Random, good: Any, depth: int = 0) -> Any:
    """What a server, or whatever answers in its place, may say instead."""
    if dice.random() < 0.1:
        return dice.choice([*ODD, redis.exceptions.ResponseError("odd")])
    if isinstance(good, list | tuple) and good and dice.random() < 0.9:
        items, at = list(good), dice.randrange(len(good))
        if dice.random() < 0.2:
            del items[at]
        elif dice.random() < 0.2:
            items.insert(at, dice.choice(ODD))
        else:
            items[at] = wrong(dice, items[at], depth + 1)
        return items
    if isinstance(good, dict) and good and dice.random() < 0.9:
        key = dice.choice(list(good))
        return {**good, key: wrong(dice, good[key])} if dice.random() < 0.5 else {**good, b"note:member:\xff": b"\xff"}
    if isinstance(good, set):
        return {*good, b"\xff"}
    if isinstance(good, bytes) and good:
        if dice.random() < 0.5:
            raw = bytearray(good)
            raw[dice.randrange(len(raw))] = dice.randrange(256)
            return bytes(raw) if dice.random() < 0.8 else bytes(raw[: dice.randrange(len(raw))])
        try:
            return msgspec.msgpack.encode(wrong(dice, msgspec.msgpack.decode(good), depth + 1))
        except (msgspec.DecodeError, TypeError, OverflowError, UnicodeDecodeError):
            pass
    return dice.choice(ODD)


class Liar:
    """redis-py's client, with answers that are garbled."""

    def __init__(self, real: Any, garble: Callable[[Any], Any]) -> None:
        self._real = real
        self._garble = garble

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._real, name)

        def lie(*arguments: Any, **options: Any) -> Any:
            told = command(*arguments, **options)
            told = self._garble(list(told) if name == "scan_iter" else told)
            if isinstance(told, Exception):
                raise told
            return told

        return lie


def reserve(store: RedisStore, _: Grant) -> object:
    """One permit."""
    return store.reserve(Ask(NS, CHARGES, (NS,), ME), now())


def reserve_all(store: RedisStore, _: Grant) -> object:
    """Permits of two lanes."""
    asks = [Ask(NS, CHARGES, (NS,), ME, lane=lane, most=2) for lane in (1, 2)]
    return store.reserve_all(asks, now)


VERBS: dict[str, Callable[[RedisStore, Grant], object]] = {
    "reserve": reserve,
    "reserve_all": reserve_all,
    "settle": lambda store, grant: store.settle(
        grant, now(), Settlement(used={CHARGES[0].key: 5}, full=(CHARGES[1].key,))
    ),
    "refund": lambda store, grant: store.refund(grant, now()),
    "hold": lambda store, grant: store.hold(grant, time.monotonic_ns() + 300 * SECOND),
    "withdraw": lambda store, _: store.withdraw([charge.key for charge in CHARGES], ME, now(), {CHARGES[0].key: 3}),
    "learn": lambda store, _: store.learn(NS, {"weight": (10**9 - time.monotonic_ns() % 1000, 60 * SECOND)}),
    "doubt": lambda store, _: store.doubt(NS, now()),
    "block": lambda store, _: store.block(f"{NS}/ip:z", SECOND, "ban", "why", time.monotonic_ns(), time.time_ns()),
    "unblock": lambda store, _: store.unblock(f"{NS}/ip:z"),
    "update": lambda store, _: write(store, "topic", b"%d" % time.monotonic_ns()),
    "get": lambda store, _: noted(store, "topic"),
    "read": lambda store, _: store.read(now),
    "join": lambda store, _: store.join(5, "me"),
    "leave": lambda store, _: store.leave(5),
    "wake": lambda store, _: store.wake([5]),
    "adopt": lambda store, grant: store.adopt(grant),
    "spent": lambda store, grant: store.spent(grant, {}, now()),
    "reattach": lambda store, grant: store.reattach("", 2, [grant], [lambda: write(store, "topic", b"x")]),
    "skew": lambda store, _: store.skew(),
    "peek": lambda store, _: store.peek(CHARGES[0].key, now()),
    "alive": lambda store, _: store.alive(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_and_a_garbled_answer(store: RedisStore, verb: str) -> None:
    """Any command's answer, any field of it; afterwards the store works as if nothing had been."""
    dice = random.Random(verb)
    granted(store)
    write(store, "topic", b"value")
    real = store.connection.redis
    failed = 0
    for _ in range(ROUNDS):
        grant = granted(store)
        space = store._client.namespace(NS)
        if dice.random() < 0.3:
            space.gen = -1  # it will be told of blocks and limits first
        left = dice.choice([0, 0, 1, 2])

        def garble(told: Any) -> Any:
            nonlocal left
            left -= 1
            return told if left >= 0 else wrong(dice, told)

        store.connection._redis = Liar(real, garble)
        try:
            VERBS[verb](store, grant)
        except StoreUnavailable:
            failed += 1
        finally:
            store.connection._redis = real
        store.blocks.load([], 0, 0)  # what it was made believe
        store._mirror.learned = {}
        for known in store._client._namespaces.values():
            known.copies.clear()
            known.records.clear()
            known.gen = known.epoch = -1
        store.unblock(f"{NS}/ip:z")
    assert failed or verb in {"skew", "peek", "alive", "wake", "leave"}
    assert store.settle(granted(store), now()).late is False
    assert store.read(now).ledgers


def test_copies_of_ledgers_that_are_garbled(store: RedisStore) -> None:
    """What the safe share is told of a ledger that cannot be read is that it cannot be used."""
    dice = random.Random(7)
    granted(store)
    copies = store._client.namespace(NS).copies
    seq, good, at = copies[CHARGES[0].key]
    failed = 0
    for _ in range(300):
        bad = wrong(dice, good)
        copies[CHARGES[0].key] = seq, bad, at
        try:
            store.peek(CHARGES[0].key, now())
        except StoreUnavailable:
            failed += 1
    assert failed > 100


@pytest.mark.parametrize("key", ["meta", "permits", "held", "blocks", "members", "ledgers", "L:shop/weight/ip:a"])
def test_another_program_writes_over_a_key(server: Server, key: str) -> None:
    """Something of another type, or with fields that are none: the store is out of reach until that is mended."""
    name = f"hg:{{{NS}}}:{key}"
    with redis.Redis(port=server.port) as client:
        for ruin in (
            lambda: client.set(name, b"\xff"),
            lambda: client.hset(name, mapping={b"\xff": b"\xff", "gen": b"x", "epoch": b"y"}),
            lambda: client.sadd(name, b"\xff", b"\x00"),
        ):
            client.flushall()
            store = RedisStore(server.url, given=True)
            grant = granted(store)
            client.delete(name)
            ruin()
            for verb in ("read", "reserve", "settle", "block", "unblock", "learn", "hold", "refund"):
                try:
                    VERBS[verb](store, grant)
                except StoreUnavailable:
                    pass
            store.close()
            client.flushall()
            store = RedisStore(server.url, given=True)
            assert not store.settle(granted(store), now()).late
            store.close()


def test_what_cannot_be_read_is_not_sent_again(server: Server) -> None:
    """A command whose answer is garbled would only be answered so again; all others of its request are told once more."""
    store = RedisStore(server.url)
    try:
        write(store, "topic", b"value")
        real, answers = store.connection.redis, 0

        def garble(told: Any) -> Any:
            nonlocal answers
            answers += 1
            kind, at, gen, results, *rest = msgspec.msgpack.decode(told[0])
            return [msgspec.msgpack.encode([kind, at, gen, ["junk", *results[1:]], *rest]), *told[1:]]

        done: list[Any] = []
        space = store._client.namespace(NOTES)
        with store._client._lock:
            store.connection._redis = Liar(real, garble)
            space.pending += [
                Command(lambda _: ["note", "a"]),
                Command(lambda _: ["note", "b"], done.append),
            ]
            with pytest.raises(StoreUnavailable, match="cannot be read"):
                noted(store, "topic")
            store.connection._redis = real
            assert answers == 1
            assert [one.doubted for one in space.pending] == [False]
        noted(store, "topic")
        assert done == [None]
    finally:
        store.close()


def test_what_cannot_be_sent_is_not_tried_again(server: Server) -> None:
    """A reason that is no text holds up nothing else, neither what is pending nor who asks next."""
    store = RedisStore(server.url)
    try:
        write(store, "topic", b"value")
        done: list[Any] = []
        space = store._client.namespace(NOTES)
        with store._client._lock:
            space.pending += [command("note", "\ud800"), command("note", "b", done=done.append)]
            with pytest.raises(StoreUnavailable, match="cannot be read"):
                noted(store, "topic")
        noted(store, "topic")
        assert done == [None]
    finally:
        store.close()


def test_an_answer_that_was_lost_is_made_up_for(server: Server) -> None:
    """A client without an answer tells the end of permits again: each unit counts once."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
    store = RedisStore(server.url)
    try:
        (grants,) = store.reserve_all([Ask(NS, CHARGES[:1], (NS,), ME, most=5)], now)
        assert not isinstance(grants, Refusal)
        real, space = store.connection.redis, store._client.namespace(NS)
        with store._client._lock:
            for grant in grants[:2]:
                store.settle(grant, now())

            def lose(told: Any) -> Any:
                raise redis.exceptions.TimeoutError("lost")

            store.connection._redis = Liar(real, lose)
            with pytest.raises(StoreUnavailable, match="lost"):
                store._client.call(NS, [])
            store.connection._redis = real
            assert len(space.pending) == 1
            for grant in grants[2:]:
                store.settle(grant, now())
            store._client.call(NS, [])
        (view,) = store.read(now).ledgers
        assert (view.used, view.inflight) == (10, 0)
    finally:
        store.close()


def test_a_server_forgets_a_batch_while_a_permit_leaves_it(server: Server) -> None:
    """It gets the batch back as it knew it, and then the ends: each unit counts once, wherever it is."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
        store = RedisStore(server.url)
        try:
            (grants,) = store.reserve_all([Ask(NS, CHARGES[:1], (NS,), ME, most=5)], now)
            assert not isinstance(grants, Refusal)
            with store._client._lock:
                for grant in grants[:2]:
                    store.settle(grant, now())
                assert store.hold(grants[2], time.monotonic_ns() + 300 * SECOND)
                client.flushall()
                store._client.call(NS, [])
            (view,) = store.read(now).ledgers
            assert (view.used, view.inflight) == (4, 6)
            for grant in grants[2:]:
                store.settle(grant, now())
            (view,) = store.read(now).ledgers
            assert (view.used, view.inflight) == (10, 0)
        finally:
            store.close()


class Noise:
    """Passes bytes between a program and a server, and changes one now and then on the way back."""

    def __init__(self, onward: int, seed: int) -> None:
        self._onward = onward
        self._dice = random.Random(seed)
        self.rate = 0.0
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        self._ends: list[socket.socket] = []
        self._passing: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            self._ends.append(near)
            try:
                away = socket.create_connection(("127.0.0.1", self._onward))
            except OSError:
                return
            self._ends.append(away)
            for ends in ((near, away, False), (away, near, True)):
                self._passing.append(threading.Thread(target=self._pass, args=ends, daemon=True))
                self._passing[-1].start()

    def _pass(self, source: socket.socket, target: socket.socket, noisy: bool) -> None:
        try:
            while chunk := source.recv(65536):
                if noisy and self._dice.random() < self.rate:
                    raw = bytearray(chunk)
                    raw[self._dice.randrange(min(len(raw), 40))] = self._dice.choice(b"$*:-+\r\n0159z\xff")
                    chunk = bytes(raw)
                target.sendall(chunk)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of everything."""
        # A listener must be shut down to wake its thread; only closed, the thread would accept one more connection.
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._passing:
            thread.join(10)
        for end in (self._door, *self._ends):
            end.close()


def test_a_line_that_garbles_bytes(server: Server) -> None:
    """Also what redis-py cannot read is `StoreUnavailable`, of every verb and of the helper threads; then all goes on."""
    with redis.Redis(port=server.port) as client:
        client.flushall()
    noise = Noise(server.port, 3)
    store = RedisStore(f"redis://127.0.0.1:{noise.port}?timeout=0.05")
    failed = 0

    def answers() -> None:
        end = time.monotonic() + 10
        while True:
            try:
                if isinstance(store.reserve(Ask(NS, CHARGES, (NS,), ME), now()), Grant):
                    return
            except StoreUnavailable:  # or merely late, on a busy machine
                pass
            assert time.monotonic() < end
            time.sleep(0.05)

    try:
        store.join(5, "me")
        answers()
        noise.rate = 0.5
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for verb, run in VERBS.items():
                if verb in {"join", "leave"}:
                    continue
                try:
                    run(store, Grant(1, NS, CHARGES, [0, 0], now(), ME, 0))
                except StoreUnavailable:
                    failed += 1
        noise.rate = 0.0
        store.blocks.load([], 0, 0)  # what it was made believe
        store._mirror.learned = {}
        for known in store._client._namespaces.values():
            known.gen = -1
        answers()
    finally:
        store.close()
        noise.close()
    assert failed


def test_messages_that_are_none(server: Server, tmp_path: Path) -> None:
    """Another program publishes on channels like ours: the listening thread goes on."""
    store = RedisStore(server.url)
    try:
        wake_socket = store.join(5, "me")
        assert wake_socket is not None
        wake_socket.settimeout(10)
        assert wake_socket.recv(10) == b"w"  # it listens
        with redis.Redis(port=server.port) as client:
            for channel, message in (
                (b"hg:\xff:bell", b"gen 1"),
                (b"hg:{\xff}:bell", b"gen x"),
                (b"hg:{a}:bell", b"\xff"),
            ):
                client.publish(channel, message)
            end = time.monotonic() + 10
            heard = b""
            while not heard:
                assert time.monotonic() < end
                client.publish("hg:{notes}:bell", f"wake {5:016x}")
                wake_socket.settimeout(0.2)
                try:
                    heard = wake_socket.recv(10)
                except TimeoutError:
                    pass
    finally:
        store.close()
