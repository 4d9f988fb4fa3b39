"""Keeps long-running jobs alive: it watches, restarts and cleanly stops them, in async programs and in threads."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType, TracebackType
from typing import Any, Final

from ratekeeper.config.file import home_folder
from ratekeeper.config.resolution import configure, program_name
from ratekeeper.gate.events import Events
from ratekeeper.gate.gate import Gate
from ratekeeper.rules.secrets import redact
from ratekeeper.sessions.control import Command, Listener
from ratekeeper.sessions.history import Records
from ratekeeper.sessions.restarts import Restart
from ratekeeper.sessions.session import Session
from ratekeeper.sessions.stopping import Loop, in_thread, to_the_end

__all__ = ["Supervisor"]

_LOG: Final = logging.getLogger("ratekeeper")
_TERMINATED: Final = 128 + signal.SIGTERM


class Supervisor:
    """Keeps sessions alive, in ``async with`` or in ``with``.

    Leaving the block, Ctrl-C and SIGTERM stop all sessions in reverse order, each with its deadline. (SIGTERM only where the
    program has no handler of its own, and the block is entered in the main thread.)

    Args:
        gate: its events report what happens; None: the ``ratekeeper`` log alone.
        home: the state folder; None: the gate's, or the one that a `Gate` without arguments would have.
        name: this program's name in the sessions' ids; None: the name of its script.

    Raises:
        RuleError: the configuration file, which states the home, is wrong.
    """

    def __init__(
        self, gate: Gate | None = None, home: str | os.PathLike[str] | None = None, name: str | None = None
    ) -> None:
        self._events = Events() if gate is None else gate.events
        if home is None:  # as a gate resolves it
            home = configure(name=name).home if gate is None else gate.home
        self._records = Records(home_folder(home))
        self.name = name or program_name().rpartition("[")[0]
        self._sessions: dict[str, Session] = {}
        self._changes = threading.Condition()
        self._loop = Loop()
        self._async: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._listener: Listener | None = None
        self._terminated = False
        self._restore: Callable[[], object] | None = None

    def add(
        self, name: str, job: Any, *, health: Callable[[], Any] | None = None, settings: Restart | None = None
    ) -> Session:
        """Start a session and keep it alive.

        Args:
            name: its name; its id is ``NAME@PROGRAM``. The next program finds its history under this id.
            job: an object with ``start`` and ``stop`` (and optionally ``healthy``), each sync or async; or a function, async
                or for a thread. A function with a parameter receives its `Run`.
            health: called for a health check, sync or async; None or True: healthy.
            settings: how it is watched and restarted.

        Raises:
            RatekeeperError: a living program runs a session of this id.
            RuntimeError: outside of the ``with`` block.
        """
        if self._listener is None:
            raise RuntimeError("sessions are added inside of the supervisor's with block")
        record = self._listener.claim(f"{name}@{self.name}")
        session = Session(
            record, self._records, job, health, settings or Restart(), self._loop, self._events.say, self._tell_change,
            self._events.secrets,
        )  # fmt: skip
        self._sessions[record.id] = session
        return session

    def __getitem__(self, session: str) -> Session:
        """Return a session by its id or its name."""
        return self._sessions.get(session) or self._sessions[f"{session}@{self.name}"]

    def sessions(self) -> list[Session]:
        """Return all sessions, in the order in which they were added."""
        return list(self._sessions.values())

    def trigger(self, session: str) -> Future[str]:
        """Restart a session at once, even while it cools down, has stopped or has failed.

        Returns:
            A future that gets the session's state when it was started (`asyncio.wrap_future` to await it).
        """
        return self[session].trigger()

    def stop(self, session: str) -> Future[str]:
        """Stop one session; the others go on. The future gets its state when it has stopped."""
        return self[session].stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, in a thread, until every session has done its work, was stopped or has failed; returns whether all have."""
        with self._changes:
            return self._changes.wait_for(self._all_over, timeout)

    async def finished(self) -> None:
        """`wait` for async code."""
        assert self._async is not None, "finished() is for `async with`"
        while not self._all_over():
            await self._async[1].wait()
            self._async[1].clear()

    def _all_over(self) -> bool:
        return all(session.state in ("stopped", "failed") for session in self._sessions.values())

    def _tell_change(self) -> None:
        with self._changes:
            self._changes.notify_all()
        if self._async is not None and not self._async[0].is_closed():
            try:
                self._async[0].call_soon_threadsafe(self._async[1].set)
            except RuntimeError:  # closed meanwhile
                pass

    def _heed(self, session: str, command: Command) -> None:
        assert self._listener is not None
        listener = self._listener
        found = self._sessions.get(session)
        if found is not None:
            done = found.trigger() if command.do == "recover" else found.stop()
            done.add_done_callback(lambda _: listener.done(command))

    def _open(self) -> None:
        if self._listener is not None:
            raise RuntimeError("a supervisor is entered once at a time")
        self._listener = Listener(self._records, self._heed)

    def close(self) -> None:
        """Stop all sessions in reverse order. A session that fails to stop is logged; the rest are stopped."""
        for session in reversed(list(self._sessions.values())):
            begin = time.monotonic()
            try:
                session.close()
            except Exception as error:  # noqa: BLE001 - the others must be stopped
                _LOG.error("session %s: stopping failed: %s", session.id, redact(str(error), self._events.secrets))
            _LOG.debug("session %s was stopped in %.1f s", session.id, time.monotonic() - begin)
        if self._listener is not None:
            self._listener.close()
        self._loop.close()
        self._listener = None
        self._sessions.clear()

    def _on_sigterm(self, install: Callable[[], Callable[[], object]]) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._restore = install()

    def _end_signals(self) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None

    def __enter__(self) -> Supervisor:
        self._open()

        def terminate(signum: int, frame: FrameType | None) -> None:
            if not self._terminated:  # once: stopping is under way
                self._terminated = True
                raise SystemExit(_TERMINATED)

        def install() -> Callable[[], object]:
            signal.signal(signal.SIGTERM, terminate)
            return lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)

        self._on_sigterm(install)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            self._end_signals()

    async def __aenter__(self) -> Supervisor:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        self._loop = Loop(loop)
        self._async = (loop, asyncio.Event())
        self._open()

        def terminate() -> None:
            self._terminated = True
            if task is not None:
                task.cancel()

        def install() -> Callable[[], object]:
            loop.add_signal_handler(signal.SIGTERM, terminate)
            return lambda: loop.remove_signal_handler(signal.SIGTERM)

        self._on_sigterm(install)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await to_the_end(in_thread(self.close))
        finally:
            self._end_signals()
            if self._terminated:
                raise SystemExit(_TERMINATED) from None
