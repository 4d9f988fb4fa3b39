"""Where calls wait: lanes in this process, one timer, and a doorbell that other processes ring.

A call that may go at once never comes here. One that may not stands in a lane (`headgate.waiting`); a helper thread
sleeps until the first computed instant, or until somebody who freed units rings. asyncio tasks and threads wait alike.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from headgate.errors import Rejected, StoreError
from headgate.gate.ticket import Ticket, check, too_late
from headgate.gate.waits import Waits
from headgate.ledger.decide import Refusal
from headgate.ledger.limit import SECOND
from headgate.ledger.shares import AGED
from headgate.rules.call import Plan
from headgate.stores.records import Grant
from headgate.waiting.queue import Lane, Queue

if TYPE_CHECKING:
    from headgate.gate.gate import Gate

__all__ = ["WaitingRoom"]

_BATCH: Final = 64
"""So many heads are tried in one transaction, so that a long queue does not hold the store's lock for long."""
_IDLE: Final = 60.0


class WaitingRoom:
    """The waiting calls of one gate."""

    LONG: ClassVar[int] = 10 * SECOND
    """A wait longer than this is told, ns."""

    def __init__(self, gate: Gate) -> None:
        self._gate = weakref.proxy(gate)
        self._store = gate.store
        self._now = gate.times.now
        self._who = gate.who
        self._weight = gate.weight
        self._lock = threading.RLock()
        self._queue = Queue()
        self.waits = Waits(gate.store)
        self._thread: threading.Thread | None = None
        self._alarm: socket.socket | None = None
        self._closed = False
        self._long: list[tuple[Plan, Refusal]] = []
        self._wakes_at = 0

    # -- coming in -------------------------------------------------------------------------------------------------

    def ask(self, plan: Plan, klass: int, timeout: float, *, probe: bool = False) -> Grant | Ticket:
        """A permit now, or a ticket to wait with.

        Args:
            plan, klass: what is wanted, in which class.
            timeout: how long it may wait, s.
            probe: it may be had elsewhere: a refusal does not count as something that the class missed here.

        Raises:
            Rejected: it could not be served by its deadline, or never.
        """
        queue = self._queue
        no: Refusal | None = None
        if not queue.count or not queue.busy(plan.charges):
            namespace = plan.provider
            got = self._store.reserve(
                namespace, plan.charges, plan.scopes, self._who[klass], self._now(namespace), weight=self._weight
            )
            if isinstance(got, Grant):
                return got
            # Where somebody must settle first, that may have happened by the time we stand in the lane, and nobody would
            # tell us: then the lane is tried again.
            no = None if got.unknown and got.kind == "limit" else got
        now = time.monotonic_ns()
        ticket = Ticket(plan, klass, now, now + int(timeout * SECOND))
        with self._lock:
            if self._closed:
                raise Rejected("the gate is closed")
            if no is not None:
                try:
                    check(ticket, no, now)
                except Rejected:
                    self._missed([] if probe else [(ticket, no)])
                    raise
            lane = queue.add(ticket)
            if no is not None and lane.head() is ticket:
                lane.opens, lane.why = no.opens, no
            elif lane.head() is ticket:
                self._serve(now)
                if ticket.error is not None:
                    raise ticket.error
                if ticket.grant is not None:
                    return ticket.grant
            try:
                if isinstance(lane.why, Refusal) and not lane.why.unknown:
                    opens = queue.earliest(ticket, max(lane.opens, now))
                    check(ticket, lane.why._replace(opens=opens), now)
            except Rejected:
                queue.remove(ticket)
                self._missed([] if probe else [(ticket, lane.why)])
                raise
            self._set_alarm()
        return ticket

    def _missed(self, calls: Iterable[tuple[Ticket, Refusal | None]]) -> None:
        """Calls were refused because they cannot be served in time: let the store know that they were wanted."""
        sums: dict[tuple[str, int], tuple[dict[str, int], dict[str, int]]] = {}
        for ticket, no in calls:
            if no is None or no.kind != "limit" or no.never:
                continue
            missed, left = self._queue.missed(ticket, no)
            units, _ = sums.setdefault((ticket.plan.provider, ticket.klass), ({}, left))
            for key, more in missed.items():
                units[key] = units.get(key, 0) + more
        for (provider, klass), (units, left) in sums.items():
            self._store.withdraw(units, self._who[klass], self._now(provider), units, left)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait(self, ticket: Ticket) -> Grant:
        """Block this thread until the ticket is served. Raises Rejected."""
        with self._lock:
            if ticket.waiting:
                ticket.event = threading.Event()
        try:
            if ticket.event is not None:
                ticket.event.wait()
        except BaseException:
            self._abandon(ticket)
            raise
        return self._result(ticket)

    async def wait_async(self, ticket: Ticket) -> Grant:
        """Await the ticket. Raises Rejected."""
        with self._lock:
            if ticket.waiting:
                ticket.loop = asyncio.get_running_loop()
                ticket.future = ticket.loop.create_future()
        if ticket.future is not None:
            try:
                await ticket.future
            except BaseException:
                self._abandon(ticket)
                raise
        return self._result(ticket)

    def _result(self, ticket: Ticket) -> Grant:
        if ticket.grant is None:
            raise ticket.error or Rejected("the gate was closed")
        self.waits.add(ticket.klass % AGED, time.monotonic_ns() - ticket.arrived)
        return ticket.grant

    def _abandon(self, ticket: Ticket) -> None:
        """Its caller was cancelled: leave the lane, or give the permit back."""
        with self._lock:
            waiting, lane = ticket.waiting, ticket.lane
            self._queue.remove(ticket)
        if ticket.grant is not None:
            self._gate.settling.refunded(ticket.grant)
        elif waiting and lane is not None and lane.head() is None:
            # Nobody of this process waits in that lane any more.
            left = self._queue.backlog(lane)
            self._store.withdraw(lane.keys, self._who[lane.klass], self._now(ticket.plan.provider), left=left)

    # -- serving ---------------------------------------------------------------------------------------------------

    def freed(self, keys: Iterable[str]) -> None:
        """Units came back on these ledgers in this process."""
        if self._queue.count:
            with self._lock:
                if self._queue.freed(keys):
                    self._serve(time.monotonic_ns())

    def look(self) -> None:
        """Something changed that may let anybody pass: try all heads."""
        if self._queue.count:
            with self._lock:
                self._queue.look()
                self._serve(time.monotonic_ns())

    def _expire(self, now: int) -> list[Ticket]:
        """Take out the calls whose deadline has passed."""
        gone = []
        for waiter in self._queue.expired(now):
            assert isinstance(waiter, Ticket)
            waiter.error = too_late(waiter)
            gone.append(waiter)
        if gone:
            self._missed([(each, each.lane.why if each.lane is not None else None) for each in gone])
        return gone

    def _serve(self, now: int) -> None:
        """Try the heads that are due; hand out what was granted."""
        done = self._expire(now)
        more = True
        while more:
            more = False
            granted: list[tuple[Ticket, Grant]] = []
            try:
                with self._store.batch():
                    for tries, lane in enumerate(self._queue.due(now)):
                        if tries >= _BATCH:
                            more = True
                            break
                        self._try(lane, now, granted, done)
            except StoreError:
                # What was granted was not written: the calls go back to their places and are tried on the safe share.
                for ticket, _ in reversed(granted):
                    self._queue.restore(ticket)
                more = bool(granted)
                continue
            for ticket, grant in granted:
                ticket.grant = grant
                done.append(ticket)
        self._deliver(done)
        self._set_alarm()
        self._tell(now)

    def _tell(self, now: int) -> None:
        """Say who waits for long; to handlers of a program's own, so not inside a transaction."""
        long, self._long = self._long, []
        for plan, no in long:
            self._gate.events.say_wait(plan, no, now)

    def _try(self, lane: Lane, now: int, granted: list[tuple[Ticket, Grant]], done: list[Ticket]) -> None:
        head = lane.head()
        assert isinstance(head, Ticket)
        queue = self._queue
        plan = head.plan
        got = self._store.reserve(
            plan.provider,
            plan.charges,
            plan.scopes,
            self._who[lane.standing(now)],
            self._now(plan.provider),
            backlog=queue.backlog(lane),
            ahead=queue.ahead(lane, now),
            weight=self._weight,
        )
        if isinstance(got, Grant):
            queue.served(head, now)
            granted.append((head, got))
            return
        lane.opens, lane.why = max(got.opens, now + 1), got
        try:
            check(head, got, now)
        except Rejected as error:
            queue.remove(head)
            self._missed([(head, got)])
            lane.opens = 0
            head.error = error
            done.append(head)
            return
        if got.opens - now > self.LONG:
            self._long.append((head.plan, got))

    @staticmethod
    def _deliver(done: list[Ticket]) -> None:
        """Wake the callers; tasks of one loop together."""
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for ticket in done:
            if ticket.event is not None:
                ticket.event.set()
            elif ticket.loop is not None and ticket.future is not None:
                loops.setdefault(ticket.loop, []).append(ticket.future)
        for loop, futures in loops.items():
            try:
                loop.call_soon_threadsafe(_wake_all, futures)
            except RuntimeError:
                pass  # the loop is closed and its tasks are gone; their permits end with their lease

    # -- the timer -------------------------------------------------------------------------------------------------

    def _set_alarm(self) -> None:
        """See that the helper thread wakes in time; the lock is held."""
        instant = self._queue.next_instant()
        if instant is None:
            return
        if self._thread is None:
            inner, outer = socket.socketpair()
            inner.setblocking(False)
            outer.setblocking(False)
            self._alarm = outer
            self._wakes_at = 0
            self._thread = threading.Thread(
                target=_keep_time, args=(weakref.ref(self), inner, self._gate.bell), name="headgate", daemon=True
            )
            self._thread.start()
        elif instant < self._wakes_at and self._alarm is not None:
            self._wakes_at = instant
            try:
                self._alarm.send(b"t")
            except OSError:
                pass  # its buffer is full: it will wake

    def tick(self, rung: bool) -> float:
        """The helper thread is awake. Serve what is due; returns seconds to sleep."""
        with self._lock:
            if rung:
                self._queue.look()
            now = time.monotonic_ns()
            if self._queue.count:
                self._serve(now)
            instant = self._queue.next_instant()
            self._wakes_at = instant if instant is not None else now + int(_IDLE * SECOND)
            return max(0.0, (self._wakes_at - time.monotonic_ns()) / SECOND)

    @property
    def count(self) -> int:
        """How many calls wait."""
        return self._queue.count

    def close(self) -> None:
        """Refuse everybody who waits and stop the helper thread."""
        with self._lock:
            self._closed = True
            waiters = self._queue.drain()
            for waiter in waiters:
                assert isinstance(waiter, Ticket)
                waiter.error = Rejected("the gate was closed")
            self._deliver([w for w in waiters if isinstance(w, Ticket)])
            alarm, self._alarm = self._alarm, None
            thread, self._thread = self._thread, None
        self.waits.share()
        if alarm is not None:
            alarm.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)


def _wake_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _keep_time(room: weakref.ref[WaitingRoom], alarm: socket.socket, bell: socket.socket | None) -> None:
    """The helper thread: sleep until the next instant, or until somebody rings."""
    poll = select.poll()
    poll.register(alarm, select.POLLIN)
    if bell is not None:
        poll.register(bell, select.POLLIN)
    seconds, rung = 0.0, False
    try:
        while True:
            here = room()
            if here is None:
                return
            seconds = here.tick(rung)
            del here  # a gate that nobody holds any more may go
            rung = False
            for number, _ in poll.poll(min(seconds, _IDLE) * 1000):
                if number == alarm.fileno():
                    if not _drain(alarm):
                        return
                elif bell is not None:
                    rung = _drain(bell) or rung
    except (OSError, ReferenceError, ValueError):
        return  # closed under us
    finally:
        alarm.close()


def _drain(channel: socket.socket) -> bool:
    """Read everything that waits; False if the other end is closed (stream), or only empty datagrams came."""
    full = False
    while True:
        try:
            got: Any = channel.recv(64)
        except BlockingIOError:
            return full
        if not got and channel.type == socket.SOCK_STREAM:
            return False
        full = full or bool(got)
