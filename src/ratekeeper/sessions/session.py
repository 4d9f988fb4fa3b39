"""One supervised session: its thread starts the job, watches it, stops it, waits, and starts it again."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from ratekeeper.sessions.history import Record, Records
from ratekeeper.sessions.job import Run, Vitals, failure_of, shown, takes_one
from ratekeeper.sessions.restarts import Failure, Pause, Progress, Recovery, Restart, after_failure, remaining, worked
from ratekeeper.sessions.stopping import Loop, Work, halt

__all__ = ["Session"]

_LOG: Final = logging.getLogger("ratekeeper")


class _Order(NamedTuple):
    do: str
    done: Future[str]


class Session:
    """A job that a thread keeps alive.

    Args:
        record: its record.
        records: where the record is kept.
        job: an object with ``start`` and ``stop``, or a function; coroutines run on `loop`, the rest in threads.
        health: called for a check: healthy if it returns None or True; False, a text or an error is a problem.
        settings: how it is watched and restarted.
        loop: for coroutines.
        say: reports an event to people: its kind, its sentence and its fields.
        changed: called after every change of state.
        secrets: what no record and no event may quote.
    """

    def __init__(
        self,
        record: Record,
        records: Records,
        job: Any,
        health: Callable[[], Any] | None,
        settings: Restart,
        loop: Loop,
        say: Callable[..., object],
        changed: Callable[[], None],
        secrets: Iterable[str] = (),
    ) -> None:
        self._secrets = secrets
        self.id = record.id
        self.record = self._taken_up(record)
        self.settings = settings
        self._records = records
        self._job = job
        self._parts = hasattr(job, "start") and hasattr(job, "stop")
        self._check = health or (getattr(job, "healthy", None) if self._parts else None)
        self._loop = loop
        self._say = say
        self._changed = changed
        self._wake_socket = threading.Condition()
        self._orders: deque[_Order] = deque()
        self._rung = False
        self._closed = False
        self._work: Work | None = None
        self._pending: Recovery | None = None
        self._row = 0.0  # when the first failure of the row happened
        self._thread = threading.Thread(target=self._run_thread, name=f"ratekeeper-session-{self.id}", daemon=True)
        self._thread.start()

    @staticmethod
    def _taken_up(record: Record) -> Record:
        """Convert the previous program's record for this one: a wait goes on, a session that was given up gets another
        chance."""
        now = time.time()
        if record.state == "failed":
            return replace(record, state="healthy", since=now, progress=Progress())
        if not remaining(record.progress, now):
            return replace(record, state="healthy", since=now)
        return replace(record, state="cooldown" if record.state == "cooldown" else "recovering")

    @property
    def state(self) -> str:
        """``healthy``, ``abnormal``, ``recovering``, ``cooldown``, ``stopped`` or ``failed``."""
        return self.record.state

    def trigger(self) -> Future[str]:
        """Restart it at once, whatever its state; the future gets its state once that is done."""
        return self._order("recover")

    def stop(self) -> Future[str]:
        """Stop it until `trigger`; the future gets its state once that is done."""
        return self._order("stop")

    def close(self) -> None:
        """Stop it for good; returns when it has stopped, or after its deadlines."""
        self._order("close")
        self._thread.join(2 * self.settings.stop_within + self.settings.check_timeout + 5.0)
        if self._thread.is_alive():
            _LOG.error("session %s does not stop; the program goes on without waiting for it", self.id)

    def _order(self, do: str) -> Future[str]:
        done: Future[str] = Future()
        with self._wake_socket:
            if self._closed:
                done.set_result(self.state)
            else:
                self._orders.append(_Order(do, done))
                self._wake_socket.notify()
        return done

    def _wake(self) -> None:
        with self._wake_socket:
            self._rung = True
            self._wake_socket.notify()

    def _next(self, timeout: float | None) -> _Order | None:
        """Return the next order; None after `timeout` seconds, or when the state of the work changed."""
        with self._wake_socket:
            self._wake_socket.wait_for(lambda: self._orders or self._rung, timeout)
            self._rung = False
            return self._orders.popleft() if self._orders else None

    def _rest(self, seconds: float | None) -> _Order | None:
        """Wait for `seconds` seconds, or for an order."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return None
            order = self._next(left)
            if order is not None:
                return order

    def _keep(self, state: str, **changes: Any) -> None:
        since = self.record.since if state == self.record.state else time.time()
        self.record = replace(self.record, state=state, since=since, **changes)
        self._records.write(self.record)
        self._changed()

    def _run_thread(self) -> None:
        try:
            self._main()
        except Exception as error:  # noqa: BLE001 - a fault of ours: callers that wait for the session must learn of it
            why = shown(f"an error in Ratekeeper: {type(error).__name__}: {error}", self._secrets)
            self.record = replace(self.record, state="failed", why=why)
            self._changed()
            self._say("session failed", f"session {self.id} is watched no longer: {self.record.why}", session=self.id)
            with self._wake_socket:
                self._closed = True
            self._settle(self._orders)

    def _main(self) -> None:
        order: _Order | None = None
        left = remaining(self.record.progress, time.time())
        if left:
            self._say("session recovering", f"session {self.id} goes on waiting, {left:.0f} s", session=self.id)
            order = self._rest(left)
        while True:
            if order is not None and order.do != "recover":
                order = self._stopped(order)
            if order is not None and order.do == "close":
                break
            came = self._live(order)
            if isinstance(came, Failure):
                order = self._failed(came)
            elif isinstance(came, _Order):
                order = came
            else:
                order = self._ended()

    def _stopped(self, order: _Order) -> _Order:
        """Record a stop by an operator or with the program. A wait under way stays on record: the next program continues
        it."""
        closing = order.do == "close"
        problem = self._halt()
        progress = self.record.progress if closing else Progress(starts=self.record.progress.starts)
        state = "cooldown" if closing and self.record.state == "cooldown" else "stopped"
        self._keep("failed" if closing and self.record.state == "failed" else state, progress=progress)
        self._say(
            "session stopped", f"session {self.id} stopped{f', but {problem}' if problem else ''}", session=self.id
        )
        self._answer(order)
        return order if closing else self._idle()

    def _idle(self) -> _Order:
        order = self._rest(None)
        assert order is not None
        return order

    def _answer(self, order: _Order) -> None:
        if order.do == "close":
            with self._wake_socket:
                self._closed = True
        self._settle([order, *self._orders] if self._closed else [order])

    def _settle(self, orders: Iterable[_Order]) -> None:
        for each in orders:
            if each.done.set_running_or_notify_cancel():  # the caller of the order may have gone
                each.done.set_result(self.state)

    def _ended(self) -> _Order:
        self._halt()
        self._keep("stopped", progress=Progress(starts=self.record.progress.starts))
        self._say("session stopped", f"session {self.id} has done its work", session=self.id)
        return self._idle()

    def _live(self, order: _Order | None) -> Failure | _Order | None:
        """Start the job and watch it until it fails (`Failure`), has done its work (None), or an order arrives."""
        if order is not None:
            self._by_hand()
        if self._work is not None and not self._work.done:
            if order is not None:
                self._answer(order)
            return Failure("hanging", "it still runs and cannot be stopped, and two at once must not be")
        run, began = Run(self._wake), time.monotonic()
        self._begin(run)
        again = self._pending is not None or self.record.progress.attempts > 0 or self.record.progress.cooldowns > 0
        self._keep("recovering" if again else "healthy")
        if order is not None:
            self._answer(order)
        came = self._watch(run, began)
        run.stopping.set()
        return came

    def _by_hand(self) -> None:
        problem, now = self._halt(), time.time()
        if self.state == "stopped":  # nothing had failed
            self._pending, self._row = None, 0.0
            return
        attempt, self._row = self.record.progress.attempts, self._row or now
        self._pending = Recovery(now, "by hand", problem or "", 0.0, now - self._row, attempt, ok=False)
        self._say("session recovering", f"session {self.id} is started again by hand", session=self.id)

    def _begin(self, run: Run) -> None:
        call = self._job.start if self._parts else self._job
        self._run = run
        self._work = Work(call, *((run,) if takes_one(call) else ()), loop=self._loop, on_end=self._wake)

    def _watch(self, run: Run, began: float) -> Failure | _Order | None:
        vitals, settings, work, checks = Vitals(began, began), self.settings, self._work, self._check is not None
        assert work is not None
        while True:
            if work.done and (work.error or work.cancelled or not self._parts):
                return self._outcome(work)
            vitals, now = run.tell(vitals), time.monotonic()
            failure = vitals.verdict(settings, now)
            if failure is not None:
                return failure
            if checks and now >= vitals.check_due(settings, began):
                vitals = self._checked(vitals)
                continue
            unproven = self.state == "recovering"
            if unproven and vitals.proven(settings, began, now, checks):
                self._recovered()
                unproven = False
            look = vitals.next_look(settings, began, checks)
            if unproven and now < began + settings.proven:
                look = min(look, began + settings.proven)
            order = self._next(None if look == math.inf else max(0.0, look - now))
            if order is not None:
                return order

    def _checked(self, vitals: Vitals) -> Vitals:
        assert self._check is not None
        check = Work(self._check, loop=self._loop)
        if not check.wait(self.settings.check_timeout):
            check.cancel()
            return vitals.after(f"no answer in {self.settings.check_timeout:g} s", time.monotonic())
        if check.error is not None:
            failure = failure_of(check.error, self._secrets)
            return vitals.after(failure.reason, time.monotonic(), failure.excused)
        bad = check.result is False or isinstance(check.result, str)
        return vitals.after(
            (shown(str(check.result), self._secrets) if check.result else "not healthy") if bad else None,
            time.monotonic(),
        )

    def _outcome(self, work: Work) -> Failure | None:
        if work.error is not None:
            return failure_of(work.error, self._secrets)
        if work.cancelled:
            return Failure("cancelled", "somebody cancelled it")
        return Failure("ended", "it returned") if self.settings.end_is_failure else None

    def _recovered(self) -> None:
        done, history = self._pending, self.record.history
        if done is not None:
            history = (*history, replace(done, ok=True))
        self._pending, self._row = None, 0.0
        self._keep("healthy", history=history, progress=Progress(starts=self.record.progress.starts))
        text = f" from: {done.kind}, {done.took:.1f} s after it fell over, at attempt {done.attempt}" if done else ""
        self._say("session recovered", f"session {self.id} recovered{text}", session=self.id)

    def _failed(self, failure: Failure) -> _Order | None:
        now = time.time()
        history = self.record.history
        if self._pending is not None:
            history = (*history, self._pending)  # that start was no recovery
        self._row = self._row or now
        self._keep("abnormal", why=failure.reason, history=history)
        self._say("session abnormal", f"session {self.id}: {failure.reason}", session=self.id, cause=failure.kind)
        problem = self._halt()
        pause = after_failure(self.settings, self.record.progress, history, failure, time.time(), random.random())
        self._keep(pause.state, progress=pause.progress)
        if pause.state == "failed":
            self._pending = None
            self._say("session failed", f"session {self.id} is given up: {failure.reason}", session=self.id)
            return self._idle()
        self._announce(pause, failure, problem)
        begin = time.time()
        order = self._rest(pause.delay)
        waited = time.time() - begin if order is not None else pause.delay
        at = time.time()
        attempt = pause.progress.attempts
        self._pending = Recovery(now, failure.kind, failure.reason, waited, at - self._row, attempt, ok=False)
        if order is None or order.do != "close":  # else the next program waits out the rest
            self._keep(self.state, progress=replace(self.record.progress, until=0.0, length=0.0))
        return order

    def _announce(self, pause: Pause, failure: Failure, problem: str | None) -> None:
        settings, progress = self.settings, pause.progress
        known = worked(self.record.history, failure.kind)
        why = "cooldown" if pause.state == "cooldown" else f"attempt {progress.attempts} of {settings.attempts}"
        if failure.excused:
            why = "held by a block, which costs no attempt"
        text = f"session {self.id} is started again in {pause.delay:.1f} s ({why})"
        text += f"; {known:.1f} s worked before" if known and not failure.excused else ""
        self._say(
            "session recovering",
            text + (f"; {problem}" if problem else ""),
            session=self.id,
            delay=round(pause.delay, 3),
            attempt=progress.attempts,
        )

    def _halt(self) -> str | None:
        """Stop the running job; returns what went wrong. A coroutine is cancelled, a thread is asked to stop."""
        work, within = self._work, self.settings.stop_within
        if work is None:
            return None
        self._run.stopping.set()
        problem = halt(self._job, within, self._loop) if self._parts else None
        problem = problem and shown(problem, self._secrets)
        if not self._parts or problem:
            work.cancel()
        if not work.wait(within):
            work.cancel()
            if not work.wait(0.2):
                return problem or f"it still runs {within:g} s after it was told to stop"
        self._work = None
        return problem
