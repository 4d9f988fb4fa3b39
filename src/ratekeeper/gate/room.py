"""The waiting room of a gate: lanes, one timer, and a wake-up socket (long because one lock guards all of it).

A call that can go at once does not wait here. Any other call waits in a lane (`ratekeeper.waiting`). A helper thread sleeps
until the first computed instant, or until a process that freed units signals it. Tasks and threads wait alike.
"""

from __future__ import annotations

import _thread
import asyncio
import functools
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, TypeVar

from ratekeeper.errors import Blocked, RatekeeperError, Rejected, StoreError
from ratekeeper.gate.context import Context
from ratekeeper.gate.override import PRIORITY_SCOPES
from ratekeeper.gate.settling import Settling
from ratekeeper.gate.ticket import Ticket, check, too_late
from ratekeeper.gate.timekeeper import IDLE, keep_time
from ratekeeper.gate.waits import Waits
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND
from ratekeeper.ledger.shares import AGED
from ratekeeper.rules.call import Plan
from ratekeeper.stores.records import Ask, Grant
from ratekeeper.stores.threads import Helper, green
from ratekeeper.waiting.queue import Lane, Queue

__all__ = ["WaitingRoom", "unbroken"]

_BATCH: Final = 64
"""One transaction tries at most this many heads, so that a long queue does not hold the store's lock for long."""
_LOOK: Final = 2.0
"""A waiting call looks by itself this often, s, because the helper thread may have died or hang."""
_LATE: Final = SECOND
"""A waiting call does the helper thread's work if that is overdue by this, ns."""
_ASKS: Final = 4096
"""The room keeps the store requests of at most this many plans."""


M = TypeVar("M", bound=Callable[..., Any])


def unbroken(method: M) -> M:
    """Wrap a method so that it holds the room's lock and repairs the queue after an exception. A signal handler may raise
    one between any two instructions."""

    @functools.wraps(method)
    def run(self: WaitingRoom, *values: Any, **options: Any) -> Any:
        try:
            with self._lock:
                if self._torn:
                    self._mend()
                try:
                    return method(self, *values, **options)
                except Rejected:
                    raise
                except BaseException:
                    self._mend()
                    raise
        finally:
            if self._long or self._shut:
                self._tell()

    return run  # type: ignore[return-value]


class WaitingRoom:
    """The waiting calls of one gate."""

    LONG: ClassVar[int] = 10 * SECOND
    """The gate reports a wait longer than this, ns."""
    GRACE: ClassVar[float] = 0.05
    """A call looks this many seconds after its deadline. The helper thread has refused it by then, unless it is dead or still
    waits for the store."""

    def __init__(self, context: Context, settling: Settling) -> None:
        self._context = context
        self.settling = settling
        self.depths, self.egress = context.depths, context.egress
        self._times = context.times
        self._store = context.store
        self.handed = context.store.handed
        self._events = context.events
        self._now = context.times.now
        self._who = context.who
        self._weight = context.weight
        self._lock = threading.RLock()
        self._queue = Queue()
        self._standing: dict[int, Ticket] = {}
        self._torn = False
        self._asks: dict[tuple[Plan, int], Ask] = {}
        self.waits = Waits(context.store, context.worker)
        self._thread: Helper | None = None
        self._ends: tuple[socket.socket, socket.socket] | None = None
        """A pair of sockets: the helper thread reads one, the other wakes it."""
        self._closed = False
        self._green = green()
        self._long: list[tuple[Plan, Refusal]] = []
        self._shut: list[tuple[Plan, Refusal]] = []
        self._wakes_at = 0
        context.attend(self)

    # -- coming in -------------------------------------------------------------------------------------------------

    def ask(
        self, plan: Plan, priority: int, timeout: float, block_wait: float, *, probe: bool = False
    ) -> Grant | Ticket:
        """Return a grant now, or a ticket to wait with.

        Args:
            plan, priority: of the call.
            timeout: how long the call may wait, s.
            block_wait: a block that ends later than this from now refuses the call, s.
            probe: another address may serve the call, so a refusal does not count as unmet demand of its priority here.

        Raises:
            Rejected: the store cannot serve the call by its deadline, or never.
        """
        queue = self._queue
        no: Refusal | None = None
        if not queue.count or not queue.busy(plan.charges):
            namespace = plan.provider
            got = self._store.reserve(
                self._asks.get((plan, priority)) or self._asking(plan, priority), self._now(namespace)
            )
            if isinstance(got, Grant):
                return got
            # If another call must settle first, it may have settled before this one stood in the lane, and no signal would
            # follow: then try the lane again.
            no = None if got.unknown and got.kind == "limit" else got
        now = time.monotonic_ns()
        ticket = Ticket(plan, priority, now, timeout, block_wait)
        if no is not None:
            try:
                self._check(ticket, no, now)
            except Rejected:
                self._missed([] if probe else [(ticket, no)])
                self._tell()
                raise
        try:
            return self._stand(ticket, no, now, probe)
        except BaseException:
            self.abandon(ticket)
            raise

    def _asking(self, plan: Plan, priority: int) -> Ask:
        """Return the store request for a call of that plan with no call ahead; keep it for the next."""
        if len(self._asks) > _ASKS:
            self._asks.clear()
        scopes = (*plan.scopes, plan.provider + PRIORITY_SCOPES[priority % AGED])
        found = self._asks[plan, priority] = Ask(plan.provider, plan.charges, scopes, self._who[priority], self._weight)
        return found

    @unbroken
    def _stand(self, ticket: Ticket, no: Refusal | None, now: int, probe: bool) -> Grant | Ticket:
        """Put a call into its lane: a refused one (`no`), or one that was not tried yet."""
        if self._closed:
            raise Rejected("the gate is closed")
        queue = self._queue
        self._standing[id(ticket)] = ticket
        lane = queue.add(ticket)
        if no is not None and lane.head() is ticket:
            lane.available_at, lane.why = no.available_at, no
        elif lane.head() is ticket:
            self._serve(now)
            if ticket.error is not None:
                raise ticket.error
            if ticket.grant is not None:
                del self._standing[id(ticket)]
                return ticket.grant
        self._join(lane, ticket, now, probe)
        self._set_alarm()
        return ticket

    def _join(self, lane: Lane, ticket: Ticket, now: int, probe: bool) -> None:
        """Refuse a new call if the refusal that holds its lane lasts too long for it. Raises Rejected."""
        why = lane.why
        if not isinstance(why, Refusal) or (why.unknown and why.kind == "limit"):
            return
        try:
            available_at = (
                max(lane.available_at, now)
                if why.unknown
                else self._queue.earliest(ticket, max(lane.available_at, now))
            )
            self._check(ticket, why._replace(available_at=available_at), now)
        except Rejected:
            self._queue.remove(ticket)
            self._missed([] if probe else [(ticket, why)])
            raise

    def _check(self, ticket: Ticket, no: Refusal, now: int) -> None:
        """Call `check`, and report refused calls once per block. Raises Rejected."""
        no = self._stated(ticket, no, now)
        try:
            check(ticket, no, now)
        except Blocked:
            if ticket.deadline > ticket.arrived:  # else a trial without waiting, as for each of several addresses
                self._shut.append((ticket.plan, no))
            raise

    def _stated(self, ticket: Ticket, no: Refusal, now: int) -> Refusal:
        """Return a refusal with the end of the block. An unreachable store states only when to ask again."""
        if no.kind == "limit" or not no.unknown:
            return no
        return self._store.blocks.against(ticket.scopes, ticket.charges, now) or no

    def _missed(self, calls: Iterable[tuple[Ticket, Refusal | None]]) -> None:
        """Tell the store the demand of calls that were refused because they cannot be served in time."""
        sums: dict[tuple[str, int], tuple[dict[str, int], dict[str, int]]] = {}
        for ticket, no in calls:
            if no is None or no.kind != "limit" or no.never:
                continue
            missed, left = self._queue.missed(ticket, no)
            units, _ = sums.setdefault((ticket.plan.provider, ticket.priority), ({}, left))
            for key, more in missed.items():
                units[key] = units.get(key, 0) + more
        for (provider, priority), (units, left) in sums.items():
            self._store.withdraw(units, self._who[priority], self._now(provider), units, left)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait(self, ticket: Ticket) -> Grant:
        """Block this thread until the ticket is served, or its deadline has passed. Raises Rejected."""
        try:
            self.same_threads()
            with self._lock:
                if ticket.waiting:
                    lock = _thread.allocate_lock()
                    lock.acquire()
                    ticket.lock = lock
            while ticket.lock is not None and not ticket.lock.acquire(True, self._patience(ticket)):
                if self._overdue(ticket):
                    break
        except BaseException:
            self.abandon(ticket)
            raise
        return self._result(ticket)

    async def wait_async(self, ticket: Ticket) -> Grant:
        """Await the ticket, until its deadline at most. Raises Rejected."""
        try:
            with self._lock:
                if ticket.waiting:
                    ticket.loop = asyncio.get_running_loop()
                    ticket.future = ticket.loop.create_future()
            if ticket.future is not None:
                self._watch(ticket)
                try:
                    await ticket.future
                finally:
                    if ticket.watch is not None:
                        ticket.watch.cancel()
        except BaseException:
            self.abandon(ticket)
            raise
        return self._result(ticket)

    def _patience(self, ticket: Ticket) -> float:
        """Return the seconds after which a waiting call looks by itself."""
        return min(_LOOK, max(0.0, (ticket.deadline - time.monotonic_ns()) / SECOND) + self.GRACE)

    def _watch(self, ticket: Ticket) -> None:
        """Let a waiting task look by itself after a while, whatever becomes of that look."""
        if ticket.future is None or ticket.loop is None or ticket.future.done() or id(ticket) not in self._standing:
            return
        ticket.watch = ticket.loop.call_later(self._patience(ticket), self._watch, ticket)
        if self._overdue(ticket):
            ticket.future.set_result(None)

    @unbroken
    def _overdue(self, ticket: Ticket) -> bool:
        """Do what the helper thread should have done: refuse the call at its deadline, start a new thread, serve. Return
        whether the call is over."""
        if not ticket.over:
            now = time.monotonic_ns()
            late = now - int(self.GRACE * SECOND)
            if late >= ticket.deadline:
                self._expire(late)
            instant = self._queue.next_instant()
            if instant is not None and now - instant > _LATE:
                self._serve(now)
            self._set_alarm()
        return ticket.over

    def same_threads(self) -> None:
        """Raises RatekeeperError: threads became greenlets after this gate was made, and its locks would stop them all."""
        library = green()
        if library != self._green:
            raise RatekeeperError(
                f"{library} replaced the standard library's threads after this gate was made: patch in the first line of the"
                " program"
            )

    def _result(self, ticket: Ticket) -> Grant:
        self._standing.pop(id(ticket), None)
        if ticket.grant is None:
            raise ticket.error or Rejected("the gate was closed")
        self.waits.add(ticket.priority % AGED, time.monotonic_ns() - ticket.arrived)
        return ticket.grant

    @unbroken
    def _leave(self, ticket: Ticket) -> bool:
        """Remove a call from its lane. Return whether it was waiting."""
        waiting = ticket.waiting
        self._standing.pop(id(ticket), None)
        self._queue.remove(ticket)
        return waiting

    def _mend(self) -> None:
        """Rebuild the queue from all waiting calls after an exception, perhaps in the middle of a change."""
        self._torn = True
        standing = list(self._standing.values())
        self._queue = Queue.of([t for t in standing if t.grant is None and t.error is None], self._queue.tickets)
        self._deliver([t for t in standing if t.grant is not None or t.error is not None])
        self._torn = False
        self._set_alarm()

    def abandon(self, ticket: Ticket) -> None:
        """Leave the lane, or refund the permit: the caller was cancelled."""
        waiting = self._leave(ticket)
        if ticket.grant is not None:
            self.settling.refunded(ticket.grant)
            ticket.grant = None
        elif waiting:
            self._withdraw(ticket)

    def _withdraw(self, ticket: Ticket) -> None:
        """Tell the store if no call of this process waits any more in the lane that a call has left."""
        lane = ticket.lane
        if lane is not None and lane.head() is None and self._times.knows(ticket.plan.provider):
            left = self._queue.backlog(lane)
            self._store.withdraw(lane.keys, self._who[lane.priority], self._now(ticket.plan.provider), left=left)

    def refuse(self, ticket: Ticket, error: Rejected) -> None:
        """Refuse a call that still waits, for a reason of its caller's, in any thread."""
        if self._refuse(ticket, error):
            self._withdraw(ticket)

    @unbroken
    def _refuse(self, ticket: Ticket, error: Rejected) -> bool:
        waiting = ticket.waiting
        if waiting:
            self._queue.remove(ticket)
            ticket.error = error
            self._deliver([ticket])
        return waiting

    # -- serving ---------------------------------------------------------------------------------------------------

    def released(self, keys: Iterable[str]) -> None:
        """Serve waiting calls: units came back on these ledgers in this process."""
        if self._queue.count:
            self._served_after(lambda queue: queue.released(keys))

    def look(self) -> None:
        """Try all heads: a change may let any call pass."""
        if self._queue.count:
            self._served_after(_all_due)

    @unbroken
    def _served_after(self, change: Callable[[Queue], bool]) -> None:
        if change(self._queue):
            self._serve(time.monotonic_ns())

    def _expire(self, now: int) -> list[Ticket]:
        """Remove and return the calls whose deadline has passed."""
        gone = []
        for waiter in self._queue.expired(now):
            assert isinstance(waiter, Ticket)
            waiter.error = too_late(waiter)
            gone.append(waiter)
        if gone:
            self._missed([(each, each.lane.why if each.lane is not None else None) for each in gone])
            self._deliver(gone)
        return gone

    def _serve(self, now: int) -> None:
        """Try the heads that are due; hand out the grants."""
        self._expire(now)
        done: list[Ticket] = []
        granted: list[tuple[Ticket, Grant]] = []
        try:
            while self._serve_some(now, granted, done):
                granted.clear()
        except BaseException:
            self._return(granted)
            raise
        finally:
            self.handed[_thread.get_ident()] = None
        self._deliver(done)
        self._set_alarm()

    def _serve_some(self, now: int, granted: list[tuple[Ticket, Grant]], done: list[Ticket]) -> bool:
        """Run one transaction. Return whether more heads are due."""
        try:
            more = self._store.transact(lambda: self._try_due(now, granted, done))
        except StoreError:
            # The grants were not written: the calls return to their places, and the fallback store is tried.
            for ticket, _ in reversed(granted):
                self._queue.restore(ticket)
            return bool(granted)
        for ticket, grant in granted:
            ticket.grant = grant
            done.append(ticket)
        return more

    def _return(self, granted: list[tuple[Ticket, Grant]]) -> None:
        """Refund the permits that an exception kept from their calls. The store does nothing if it has rolled them back."""
        lost = self.handed.get(_thread.get_ident())
        kept = {id(ticket.grant) for ticket, _ in granted}
        for grant in [*(grant for _, grant in granted), *([lost] if lost is not None else [])]:
            if id(grant) not in kept:
                kept.add(id(grant))
                self._store.refund(grant, self._now(grant.namespace))

    def _tell(self) -> None:
        """Report long waits and refusals. It calls the program's handlers, so it runs without the lock."""
        now = time.monotonic_ns()
        long, self._long = self._long, []
        for plan, no in long:
            self._events.say_wait(plan, no, now)
        shut, self._shut = self._shut, []
        for plan, no in shut:
            self._events.say_shut(plan, no, now)

    def _try_due(self, now: int, granted: list[tuple[Ticket, Grant]], done: list[Ticket]) -> bool:
        """Try the heads that are due, in one transaction. Return whether more are due."""
        for tries, lane in enumerate(self._queue.due(now)):
            if tries >= _BATCH:
                return True
            self._try(lane, now, granted, done)
        return False

    def _try(self, lane: Lane, now: int, granted: list[tuple[Ticket, Grant]], done: list[Ticket]) -> None:
        head = lane.head()
        assert isinstance(head, Ticket)
        queue = self._queue
        plan = head.plan
        who, backlog, ahead = self._who[lane.standing(now)], queue.backlog(lane), queue.ahead(lane, now)
        ask = Ask(plan.provider, plan.charges, head.scopes, who, self._weight, backlog, ahead)
        got = self._store.reserve(ask, self._now(plan.provider))
        if isinstance(got, Grant):
            queue.served(head, now)
            granted.append((head, got))
            return
        lane.available_at, lane.why = max(got.available_at, now + 1), got
        self._turn_away(lane, got, now, done)

    def _turn_away(self, lane: Lane, no: Refusal, now: int, done: list[Ticket]) -> None:
        """Refuse the head of a lane if it cannot be served in time. A block holds the whole lane, so every call that does
        not wait for its end is refused now."""
        head = lane.head()
        if head is None:
            return
        assert isinstance(head, Ticket)
        no = self._stated(head, no, now)
        refused: Ticket | None = None
        for waiter in [head] if no.kind == "limit" else list(lane.waiters):
            assert isinstance(waiter, Ticket)
            if not waiter.waiting:
                continue
            try:
                check(waiter, no, now)
            except Rejected as error:
                self._queue.remove(waiter)
                self._missed([(waiter, no)])
                waiter.error = error
                done.append(waiter)
                refused = waiter
        if refused is not None and no.kind == "limit":
            lane.available_at = 0
        elif refused is not None:
            self._shut.append((refused.plan, no))
        elif no.available_at - now > self.LONG:
            self._long.append((head.plan, no))

    @staticmethod
    def _deliver(done: list[Ticket]) -> None:
        """Wake the callers; all tasks of one loop together."""
        loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for ticket in done:
            if ticket.lock is not None:
                if ticket.lock.locked():
                    ticket.lock.release()
            elif ticket.loop is not None and ticket.future is not None:
                loops.setdefault(ticket.loop, []).append(ticket.future)
        for loop, futures in loops.items():
            try:
                loop.call_soon_threadsafe(_wake_all, futures)
            except RuntimeError:
                pass  # the loop is closed and its tasks are gone; their permits end with their leases

    # -- the timer -------------------------------------------------------------------------------------------------

    def _set_alarm(self) -> None:
        """Make the helper thread wake in time. The caller holds the lock."""
        instant = self._queue.next_instant()
        if instant is None:
            return
        if self._thread is None or not self._thread.is_alive():
            self._close_alarm()
            inner, outer = self._ends = socket.socketpair()
            inner.setblocking(False)
            outer.setblocking(False)
            self._wakes_at = 0
            try:
                self._thread = Helper(
                    keep_time, weakref.ref(self), inner, self._context.wake_socket,
                    name="waiting calls", died=self._events.reporter(),
                )  # fmt: skip
            except RuntimeError:  # the system has no thread left: waiting calls look by themselves
                self._close_alarm()
        elif instant < self._wakes_at and self._ends is not None:
            self._wakes_at = instant
            try:
                self._ends[1].send(b"t")
            except OSError:
                pass  # the buffer is full, so the helper thread wakes anyway

    @unbroken
    def tick(self, rung: bool) -> float:
        """Serve the heads that are due; return seconds to sleep. The helper thread calls it."""
        if rung:
            self._queue.look()
        now = time.monotonic_ns()
        if self._queue.count:
            self._serve(now)
        instant = self._queue.next_instant()
        self._wakes_at = instant if instant is not None else now + int(IDLE * SECOND)
        return max(0.0, (self._wakes_at - time.monotonic_ns()) / SECOND)

    @property
    def count(self) -> int:
        """The number of waiting calls."""
        return self._queue.count

    def close(self) -> None:
        """Refuse all waiting calls and stop the helper thread."""
        with self._lock:
            self._closed = True
            waiters = self._queue.drain()
            for waiter in waiters:
                assert isinstance(waiter, Ticket)
                waiter.error = Rejected("the gate was closed")
            self._deliver([w for w in waiters if isinstance(w, Ticket)])
            thread, self._thread = self._thread, None
            if self._ends is not None:
                self._ends[1].close()
        self.waits.share()
        if thread is not None:
            thread.join(timeout=5)
        self._close_alarm()

    def _close_alarm(self) -> None:
        for end in self._ends or ():
            end.close()
        self._ends = None


def _all_due(queue: Queue) -> bool:
    queue.look()
    return True


def _wake_all(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
