"""Round trips of one process: who wants one takes along all that is pending, and a helper thread sees to what is left."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.rules.reading import FAULTS
from ratekeeper.stores.redis.line import MICRO, Line, Load, Reply
from ratekeeper.stores.redis.province import NOTES, Province, Wish
from ratekeeper.stores.redis.slices import Slice

if TYPE_CHECKING:
    from ratekeeper.stores.redis.news import News

__all__ = ["Trips"]

_LOG: Final = logging.getLogger("ratekeeper")
_SOON: Final = 0.003
"""Seconds after which what ended is told; what ends meanwhile travels along."""
_BEATS: Final = ((SECOND // 4, 3 * SECOND // 4), (2 * SECOND, 5 * SECOND))
"""Signs of life of a process that is at work, and of one that rests: how often, and after which silence others hold its
share because it may have begun to use it, ns."""
_REST: Final = 2 * SECOND
"""A process that wanted nothing for so long rests, ns."""
_MARGIN: Final = SECOND // 4
"""So much later than others may think it does a process begin to use its share, ns."""
_PROBE: Final = 0.05
"""Seconds between two tries to reach a server that was lost."""
_REPEATS: Final = 8
_MOST: Final = 2_000
"""Items in one script call at most: while it runs, the server serves nobody else."""
_PENDING: Final = 100_000
"""So much is remembered for a server that is away; more is forgotten (their leases end by themselves)."""


class _Ride:
    """Wishes of a caller that waits for them; `error`: why they came to nothing."""

    __slots__ = ("error", "over", "wishes")

    def __init__(self, wishes: Sequence[Wish]) -> None:
        self.wishes = wishes
        self.over = False
        self.error: StoreUnavailable | None = None


class Trips:
    """The round trips of one store.

    Args:
        line: to the server.
        store: whose blocks and limits a stale reply renews; held weakly.
        given: see `RedisStore`.
    """

    def __init__(self, line: Line, store: News, *, given: bool) -> None:
        self.line = line
        self.member = ""
        self.connections = 0
        """How many connections were made: after each the server may be another."""
        self.broken = ""
        """Why the server cannot be reached, or empty."""
        self._store = weakref.proxy(store)
        self._given = given
        self._provinces: dict[str, Province] = {}
        self._lock = threading.RLock()
        self._reply: Reply | None = None
        self._poke = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._buried = 0

    # -- what is known ---------------------------------------------------------------------------------------------

    def province(self, namespace: str) -> Province:
        """What is known of a namespace."""
        return self._provinces.get(namespace) or self._provinces.setdefault(namespace, Province(namespace))

    def skew(self) -> tuple[int, int]:
        """Bounds of (the server's clock - this machine's), ns."""
        if self._given:
            return 0, 0
        skew = self.line.skew
        if not skew.at:
            self.line.learn_time()
        return skew.lo, skew.hi

    def sent(self, now: Instant) -> tuple[int, int, int]:
        """An instant on the server's clock, us: (steady, lo, hi)."""
        low, high = self.skew()
        mono = (now.mono + low) // MICRO
        return mono, mono + (now.lo - now.mono - high) // MICRO, mono - ((now.mono - now.hi + low) // MICRO)

    @property
    def counted(self) -> bool:
        """Whether the server ever told how many members there are."""
        return any(province.beat for province in self._provinces.values())

    def members(self) -> int:
        """How many members were heard of lately, where most were."""
        return max((province.members for province in self._provinces.values()), default=1)

    def blob(self, number: int) -> bytes:
        """Bytes of the reply whose results are being handed out."""
        assert self._reply is not None
        return bytes(self._reply.blobs[number])

    # -- going -----------------------------------------------------------------------------------------------------

    def tell(self, namespace: str, wish: Wish, at: Instant | None, *, now: bool = False) -> None:
        """Something for the next round trip.

        Args:
            namespace: the provider's.
            wish: what.
            at: the instant, if the caller knows one.
            now: somebody waits for its effect.
        """
        if self._given:
            self.go(namespace, [wish], at)
            return
        province = self.province(namespace)
        if at is not None:
            province.now = at
        with province.lock:
            if len(province.pending) < _PENDING:
                province.pending.append(wish)
        self.soon(at_once=now)

    def settled(self, whole: Slice, now: Instant) -> None:
        """One permit of a slice was spent at its reserved cost."""
        province = self.province(whole.namespace)
        with province.lock:
            province.plain[whole] = province.plain.get(whole, 0) + 1
        self.soon()

    def _pending(self, province: Province) -> list[Wish]:
        with province.lock:
            plain, province.plain = province.plain, {}
            pending, province.pending = province.pending, []
        return pending + [self._store.settled(whole, permits) for whole, permits in plain.items()]

    def soon(self, *, at_once: bool = False) -> None:
        """See that the helper thread looks soon."""
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._closed:
                    self._thread = threading.Thread(
                        target=_keep_telling, args=(weakref.ref(self), self._poke), name="ratekeeper-redis", daemon=True
                    )
                    self._thread.start()
        if at_once or not self._poke.is_set():
            self._poke.set()

    def go(self, namespace: str, wishes: Sequence[Wish], at: Instant | None) -> None:
        """A round trip for these, and for what is pending.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        province = self.province(namespace)
        mine = _Ride(wishes)
        with province.lock:
            if at is not None:
                province.now = at
            province.rides.append(mine)
        with self._lock:  # whoever gets it takes along all that wait for it
            if not mine.over:
                self._travel(province)
        if mine.error is not None:
            raise mine.error

    def _travel(self, province: Province) -> None:
        with province.lock:
            rides, province.rides = province.rides, []
        pending = self._pending(province)
        failed: StoreUnavailable | None = None
        try:
            while len(pending) > _MOST:
                self._once(province, pending[:_MOST])
                del pending[:_MOST]
            self._once(province, [*pending, *(wish for ride in rides for wish in ride.wishes)])
            self.broken = ""
        except StoreUnavailable as error:
            province.put_back(pending)
            self.broken, failed = str(error), error
            self.soon(at_once=True)
        except FAULTS as error:  # what was pending may be what cannot be understood: it is not told again
            failed = StoreUnavailable(f"{self.line.address}: an answer that cannot be read: {type(error).__name__}")
            self.broken = str(failed)
            self.soon(at_once=True)
        finally:
            for ride in rides:
                ride.over, ride.error = True, failed

    def _once(self, province: Province, wishes: Sequence[Wish]) -> None:
        """One script call, repeated until the server and this process know the same."""
        if not self._given:
            self.skew()
        lost, back = False, list[Wish]()
        for _ in range(_REPEATS):
            connections = self.connections
            load, header, done = self._pack(province, [*back, *wishes], lost)
            reply = self.line.carry(load, header)
            if header.get("hello"):
                province.greeted = connections
            province.away = False
            # Generations only grow, so this server has forgotten what was shut. What is known here goes before what it says.
            if reply.gen < province.gen and not back:
                back = self._store.shut_again(province.name)
            if reply.kind == "stale":
                province.gen = reply.gen
                self._store.take_in(province.name, reply.rest[0], reply.rest[1])
                continue
            if reply.kind == "lost":
                lost, province.epoch = True, reply.rest[1]
                continue
            self._take(province, load, reply, done)
            return
        raise StoreUnavailable(f"{self.line.address}: it and this process do not agree on what was spent")

    def _pack(self, province: Province, wishes: Sequence[Wish], lost: bool) -> tuple[Load, dict[str, Any], list[Wish]]:
        load = Load(province.name)
        done: list[Wish] = []
        if lost:  # a server without memory: first of all give it back what is known
            for key, (_, raw, _) in province.copies.items():
                load.items.append(["put", load.ledger(key), load.blob(raw)])
            wishes = [*map(self._store.regain, list(province.slices.values())), *wishes]
        wishes = [*self._doubts(province), *wishes]
        for wish in wishes:
            item = wish.write(load)
            if item:
                load.items.append(item)
                done.append(wish)
        mono = time.monotonic_ns()
        every, silence = _BEATS[mono - province.asked > _REST]
        if self.member and (lost or mono - province.beat > every or silence < province.silence):
            load.items.append(["beat", self.member, silence // MICRO])

            def counted(result: Any, _: Load) -> None:
                province.beat, province.silence, province.members = mono, silence, max(1, int(result))

            done.append(Wish(lambda _: [], counted))
        header: dict[str, Any] = {
            "gen": province.gen,
            "seen": [province.copies.get(key, (0,))[0] for key in load.names],
        }
        now = province.now or Instant(0, 0, 0)
        if self._given:
            header |= {
                "now": now.mono // MICRO,
                "dlo": (now.lo - now.mono) // MICRO,
                "dhi": -((now.mono - now.hi) // MICRO),
            }
        else:
            header["dlo"], header["dhi"] = self.line.offsets(now)
            header["members"] = province.members
            if province.greeted != self.connections:
                header["hello"] = True
            if province.away:
                header["away"] = True
            if lost:
                header["restored"] = True
            if province.epoch >= 0:
                header["epoch"] = province.epoch
        return load, header, done

    def _doubts(self, province: Province) -> list[Wish]:
        """What ledgers have learned of edges stands on the server's clock: if that jumped, they are told."""
        jumps = self.line.skew.jumps

        def doubted(_: Any, __: Load) -> None:
            province.jumps = jumps

        return [] if province.jumps == jumps else [Wish(lambda load: ["doubt", []], doubted)]

    def _take(self, province: Province, load: Load, reply: Reply, done: list[Wish]) -> None:
        """Take the results in and hand them out."""
        if reply.kind != "ok":
            raise StoreUnavailable(f"{self.line.address}: an answer that cannot be understood: {reply.kind!r}")
        province.gen = reply.gen
        results, written, province.epoch = reply.rest
        told = time.monotonic_ns()
        for i in range(0, len(written), 3):
            number, seq, blob = written[i : i + 3]
            province.copies[load.names[number - 1]] = seq, bytes(reply.blobs[blob]), told
        results = results[len(results) - len(done) :]  # those of `put` come first
        self._reply = reply
        for wish, result in zip(done, results, strict=True):
            if wish.done is not None:
                wish.done(result, load)

    # -- the helper thread -----------------------------------------------------------------------------------------

    def leave_alone(self) -> None:
        """This process goes on without the server."""
        for province in list(self._provinces.values()):
            province.away = True

    def held_from(self) -> int:
        """Steady ns from which on others hold the share of this process, should the server still serve them."""
        beats = [p.beat + p.silence + _MARGIN for p in self._provinces.values() if p.beat and p.name != NOTES]
        return max(beats, default=0)

    def refresh(self, namespace: str) -> None:
        """Blocks or limits of a namespace changed."""
        province = self._provinces.get(namespace)
        if province is not None:
            province.gen = -1
            self.soon(at_once=True)

    def flush(self) -> None:
        """Tell what is pending."""
        for province in list(self._provinces.values()):
            if province.pending or province.plain or province.gen < 0:
                try:
                    self.go(province.name, [], None)
                except StoreError:
                    return

    def look(self) -> float:
        """The helper thread is awake; returns seconds to sleep."""
        mono = time.monotonic_ns()
        store = self._store
        store.close_slices(mono)
        if self.broken:
            try:
                self.line.ask(lambda client: client.ping())
            except StoreError:
                return _PROBE
            self.broken = ""
            # Whoever went on with a safe share tells first what it spent: only then may it count as back.
            store.back()
        if self.member and mono - self._buried > _REST:
            self._buried = mono
            store.bury()
        for province in list(self._provinces.values()):
            due = self.member and mono - province.beat > _BEATS[mono - province.asked > _REST][0]
            if province.pending or province.plain or province.gen < 0 or due:
                try:
                    self.go(province.name, [], None)
                except StoreError:
                    return _PROBE
        at_work = any(mono - province.asked <= _REST for province in self._provinces.values())
        return _SOON if store.slices_open else _BEATS[not at_work][0] / SECOND

    def leave(self, member: str, *, own: bool = True) -> None:
        """A member takes its leave; not `own`: it is dead."""
        for province in list(self._provinces.values()):
            if not self.broken:
                try:
                    self.go(province.name, [Wish(lambda _: ["leave", member])], None)
                except StoreError:
                    return
        if own:
            self.member = ""

    def close(self) -> None:
        """Tell what is pending, stop the helper thread, let go of the line."""
        self._closed = True
        if not self.broken:
            self.flush()
        self._poke.set()
        self.line.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed


def _keep_telling(trips: weakref.ref[Trips], poke: threading.Event) -> None:
    """The helper thread."""
    seconds = _MARGIN / SECOND
    while True:
        if poke.wait(seconds):
            time.sleep(_SOON)
        here = trips()
        if here is None or here.closed:
            return
        poke.clear()
        try:
            seconds = here.look()
        except ReferenceError:
            return  # its store is gone
        except Exception:  # noqa: BLE001 - told, and tried again
            if here.closed:  # in the middle of a call: whatever redis-py makes of that
                return
            _LOG.warning("ratekeeper: the store could not be told what was spent; trying again", exc_info=True)
            seconds = _PROBE
        del here
