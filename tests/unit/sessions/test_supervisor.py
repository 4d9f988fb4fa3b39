"""Sessions in this process, with real loops and threads: every test waits for what happens, never for time to pass."""

from __future__ import annotations

import asyncio
import fcntl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ratekeeper import Gate
from ratekeeper.errors import Blocked, RatekeeperError
from ratekeeper.gate.events import Event
from ratekeeper.sessions import control
from ratekeeper.sessions.history import Record, Records
from ratekeeper.sessions.job import Run
from ratekeeper.sessions.restarts import Restart
from ratekeeper.sessions.session import Session
from ratekeeper.sessions.stopping import stop_all_async
from ratekeeper.sessions.supervisor import Supervisor

QUICK = Restart(first=0.01, longest=0.05, cooldown=0.05, proven=0.02, check_every=0.02, stop_within=0.3, most=1000)
PATIENCE = 10.0


def until(supervisor: Supervisor, holds: Callable[[], Any]) -> None:
    """Wait until something holds; every change of a session's state is a reason to look."""
    with supervisor._changes:
        assert supervisor._changes.wait_for(holds, PATIENCE)


def kept(home: Path, session: Session) -> Record:
    """A session as it is on disk."""
    return Records(home).read(session.id)


def test_thread_job_falls_over_and_recovers(tmp_path: Path) -> None:
    """A job that raises twice and then stays is healthy in the end, and the history says what happened."""
    lives: list[int] = []

    def job(run: Run) -> None:
        lives.append(len(lives))
        if len(lives) < 3:
            raise ConnectionError("the websocket was cut")
        while not run.wait(0.01):
            run.beat()

    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, settings=QUICK)
        until(supervisor, lambda: len(lives) == 3 and session.state == "healthy")
        found = kept(tmp_path, session)
        assert [(each.kind, each.attempt, each.ok) for each in found.history] == [
            ("ConnectionError", 1, False),
            ("ConnectionError", 2, True),
        ]
        assert found.why == "ConnectionError: the websocket was cut"
        assert found.progress.attempts == 0
    assert kept(tmp_path, session).state == "stopped"


def test_async_job_and_events(tmp_path: Path) -> None:
    """The same on the program's event loop; the gate's events tell it, and leaving the block cancels the job."""
    lives: list[str] = []

    async def job(run: Run) -> None:
        lives.append("began")
        if len(lives) == 1:
            raise OSError("gone")
        try:
            await asyncio.Event().wait()
        finally:
            lives.append("ended")

    async def main(gate: Gate) -> None:
        async with Supervisor(gate, name="bot") as supervisor:
            session = supervisor.add("grid", job, settings=QUICK)
            await asyncio.to_thread(until, supervisor, lambda: len(lives) == 2 and session.state == "healthy")

    said: list[Event] = []
    with Gate("memory://", home=tmp_path) as gate:
        gate.events.on(said.append)
        asyncio.run(main(gate))
    assert lives == ["began", "began", "ended"]
    assert [event.kind for event in said if event.kind.startswith("session")] == [
        "session abnormal",
        "session recovering",
        "session recovered",
        "session stopped",
    ]


def test_a_clean_return_is_the_end(tmp_path: Path) -> None:
    """A job that returns has done its work; with `end_is_failure` it is started again."""
    runs: list[str] = []

    async def once() -> None:
        runs.append("once")

    async def again() -> None:
        runs.append("again")
        if runs.count("again") < 3:
            return
        await asyncio.Event().wait()

    async def main() -> None:
        async with Supervisor(home=tmp_path, name="bot") as supervisor:
            supervisor.add("once", once, settings=QUICK)
            await asyncio.wait_for(supervisor.finished(), PATIENCE)
            settings = Restart(first=0.01, longest=0.01, proven=0.02, end_is_failure=True, stop_within=1.0)
            session = supervisor.add("again", again, settings=settings)
            await asyncio.to_thread(until, supervisor, lambda: runs.count("again") == 3 and session.state == "healthy")

    asyncio.run(main())
    assert runs == ["once", "again", "again", "again"]


@pytest.mark.parametrize("answer", [False, "no balance", RuntimeError("no balance"), None])
def test_failed_checks_restart_it(tmp_path: Path, answer: Any) -> None:
    """A check that says no, raises or hangs three times in a row has the session started again."""
    lives: list[Run] = []
    hang = threading.Event()

    def job(run: Run) -> None:
        lives.append(run)
        run.stopping.wait()

    def check() -> Any:
        if len(lives) > 1:
            return True
        if answer is None:
            hang.wait(PATIENCE)
        if isinstance(answer, Exception):
            raise answer
        return answer

    settings = Restart(first=0.01, proven=0.02, check_every=0.02, check_timeout=0.05, stop_within=1.0)
    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, health=check, settings=settings)
        until(supervisor, lambda: len(lives) == 2 and session.state == "healthy")
        assert lives[0].stopping.is_set()
        assert [each.kind for each in session.record.history] == ["check"]
        hang.set()


def test_a_stall_restarts_it(tmp_path: Path) -> None:
    """A job that does not beat any more is stopped and started again."""
    lives: list[Run] = []

    async def job(run: Run) -> None:
        lives.append(run)
        while len(lives) > 1:
            run.beat()
            await asyncio.sleep(0.01)
        await asyncio.Event().wait()

    settings = Restart(first=0.01, proven=0.05, stalled_after=0.2, stop_within=1.0)
    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, settings=settings)
        until(supervisor, lambda: len(lives) >= 2 and session.state == "healthy")
        assert session.record.history[0].kind == "stalled"


def test_too_many_errors_restart_it(tmp_path: Path) -> None:
    """Errors that the job survives, above its limit in a minute, have it started again."""
    lives: list[Run] = []

    def job(run: Run) -> None:
        lives.append(run)
        for _ in range(4 if len(lives) == 1 else 0):
            run.error()
        run.stopping.wait()

    with Supervisor(home=tmp_path, name="bot") as supervisor:
        settings = Restart(first=0.01, proven=0.02, errors_per_minute=3, stop_within=1.0)
        session = supervisor.add("grid", job, settings=settings)
        until(supervisor, lambda: len(lives) == 2 and session.state == "healthy")
        assert session.record.history[0].kind == "errors"


def test_bans_cost_no_attempt(tmp_path: Path) -> None:
    """A session that falls over bans, also from behind another error or in a group, is started again without counting."""
    lives: list[int] = []

    async def job() -> None:
        lives.append(0)
        banned = Blocked("banned", retry_at=time.time() + 0.02)
        if len(lives) % 3 == 0:
            raise ExceptionGroup("two", [banned, Blocked("banned", retry_at=0.0)])
        if len(lives) % 3 == 1:
            raise banned
        if len(lives) < 10:
            raise RuntimeError("the exchange said no") from banned
        await asyncio.Event().wait()

    with Supervisor(home=tmp_path, name="bot") as supervisor:
        settings = Restart(attempts=1, first=0.01, proven=0.02, cooldown=600.0, most=100, stop_within=1.0)
        session = supervisor.add("grid", job, settings=settings)
        until(supervisor, lambda: len(lives) > 9 and session.state == "healthy")
        assert session.record.progress.cooldowns == 0


def test_trigger_ends_a_cooldown(tmp_path: Path) -> None:
    """After its attempts it cools down; by hand it is started at once, and its success is remembered."""
    well = threading.Event()

    def job(run: Run) -> None:
        if not well.is_set():
            raise ValueError("wrong")
        run.stopping.wait()

    settings = Restart(attempts=2, first=0.01, cooldown=600.0, proven=0.02, stop_within=1.0)
    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, settings=settings)
        until(supervisor, lambda: session.state == "cooldown")
        well.set()
        assert supervisor.trigger("grid").result(PATIENCE) == "recovering"
        until(supervisor, lambda: session.state == "healthy")
        assert [(each.kind, each.ok) for each in session.record.history][-1] == ("by hand", True)
        assert supervisor.stop("grid@bot").result(PATIENCE) == "stopped"
        assert supervisor.wait(PATIENCE)
        assert session.trigger().result(PATIENCE) in ("healthy", "recovering")
        until(supervisor, lambda: session.state == "healthy")


def test_given_up_until_triggered(tmp_path: Path) -> None:
    """With `give_up` it stays failed, which `wait` takes for the end; by hand it gets another chance."""
    tries: list[int] = []

    def job(run: Run) -> None:
        tries.append(0)
        if len(tries) < 4:
            raise ValueError("wrong")
        run.stopping.wait()

    settings = Restart(attempts=1, give_up=0, first=0.01, proven=0.02, stop_within=1.0)
    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, settings=settings)
        assert supervisor.wait(PATIENCE)
        assert (session.state, len(tries)) == ("failed", 2)
        session.trigger().result(PATIENCE)
        until(supervisor, lambda: len(tries) == 3 and session.state == "failed")
        session.trigger().result(PATIENCE)
        until(supervisor, lambda: session.state == "healthy")


def test_never_two_at_once(tmp_path: Path) -> None:
    """A thread that does not stop is not started a second time beside itself, but once it has ended."""
    release, both = threading.Event(), threading.Semaphore(1)
    lives: list[bool] = []

    def job(run: Run) -> None:
        lives.append(both.acquire(blocking=False))
        try:
            if len(lives) == 1:
                release.wait(PATIENCE)  # does not look at run.stopping
            run.stopping.wait()
        finally:
            both.release()

    settings = Restart(first=0.01, longest=0.01, proven=0.02, stop_within=0.05, attempts=100, most=100)
    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, settings=settings)
        session.trigger().result(PATIENCE)
        until(supervisor, lambda: session.record.why.startswith("it still runs"))
        assert lives == [True]
        release.set()
        until(supervisor, lambda: session.state == "healthy" and len(lives) == 2)
        assert lives == [True, True]


def test_components_stop_in_reverse_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Objects whose stop is sync, async, raises, or hangs: all are stopped, last first, and what went wrong is logged."""
    stopped: list[str] = []
    hang = threading.Event()

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def start(self) -> None:
            pass

        def stop(self) -> Any:
            stopped.append(self.name)
            if self.name == "raises":
                raise TypeError("object NoneType can't be used in 'await' expression")
            if self.name == "hangs":
                hang.wait(PATIENCE)

    class AsyncPart(Part):
        async def start(self) -> None:  # type: ignore[override]
            pass

        async def stop(self) -> None:
            stopped.append(self.name)
            if self.name == "hangs async":
                await asyncio.Event().wait()

    async def main() -> None:
        async with Supervisor(home=tmp_path, name="bot") as supervisor:
            for part in (Part("first"), Part("raises"), AsyncPart("async"), Part("hangs"), AsyncPart("hangs async")):
                supervisor.add(part.name, part, settings=QUICK)

    with caplog.at_level("INFO", "ratekeeper"):
        asyncio.run(main())
    hang.set()
    assert stopped == ["hangs async", "hangs", "async", "raises", "first"]
    assert "object NoneType" in caplog.text
    assert caplog.text.count("its stop still hung") == 2


def test_progress_outlives_the_program(tmp_path: Path) -> None:
    """The next program goes on with the cooldown that the last one was in, and with its history."""
    lives: list[int] = []

    def job() -> None:
        lives.append(0)
        raise ValueError("wrong")

    settings = Restart(attempts=1, first=0.01, cooldown=600.0, stop_within=1.0)
    for program in range(2):
        with Supervisor(home=tmp_path, name="bot") as supervisor:
            session = supervisor.add("grid", job, settings=settings)
            until(supervisor, lambda: session.state == "cooldown")  # noqa: B023 - called at once
        assert len(lives) == 2, f"program {program} started it during the cooldown"
        assert kept(tmp_path, session).state == "cooldown"
    assert len(kept(tmp_path, session).history) == 1


def test_two_programs_cannot_run_one_session(tmp_path: Path) -> None:
    """A second session of the same id is refused while the first one's program lives."""

    def job(run: Run) -> None:
        run.stopping.wait()

    with Supervisor(home=tmp_path, name="bot") as one, Supervisor(home=tmp_path, name="bot") as two:
        one.add("grid", job, settings=QUICK)
        with pytest.raises(RatekeeperError, match="already run"):
            two.add("grid", job)
        with pytest.raises(RatekeeperError, match="already run"):
            one.add("grid", job)


def test_cancelled_while_it_stops(tmp_path: Path) -> None:
    """A task that is cancelled twice, also while the sessions stop, ends cancelled and leaves nothing running."""
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            ended.append("slow")

    async def main() -> None:
        began = asyncio.Event()

        async def body() -> None:
            async with Supervisor(home=tmp_path, name="bot") as supervisor:
                session = supervisor.add("grid", slow, settings=QUICK)
                while session.state != "healthy" or session._work is None or session._work._task is None:
                    await asyncio.sleep(0)
                began.set()
                await supervisor.finished()

        task = asyncio.create_task(body())
        await began.wait()
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["slow"]

    asyncio.run(main())


def test_a_secret_of_a_refused_request_is_not_kept(tmp_path: Path) -> None:
    """What the job quotes of an answer may quote the request: short secrets, too."""

    def job() -> None:
        with gate.permit("binance-usdm", "GET", "/fapi/v1/time", headers={"X-MBX-APIKEY": "k-1"}) as permit:
            permit.settle(401, {}, "bad key k-1")
        raise ValueError("they said: bad key k-1")

    with Gate("memory://", learn=False) as gate, Supervisor(gate, tmp_path) as supervisor:
        session = supervisor.add("bot", job, settings=QUICK)
        until(supervisor, lambda: session.record.why)
        assert session.record.why == "ValueError: they said: bad key [...]"


def test_no_secret_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What looks like a key in an error's text is neither on disk nor in the log."""
    secret = "k1" * 20

    def job() -> None:
        raise ValueError(f"signature {secret} refused")

    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, settings=Restart(attempts=1, first=0.01, give_up=0, stop_within=1.0))
        assert supervisor.wait(PATIENCE)
    assert "signature [...] refused" in kept(tmp_path, session).why
    assert secret not in caplog.text
    for path in (tmp_path / "sessions").glob("*.json"):
        assert secret not in path.read_text()


def test_disk_that_cannot_be_written(tmp_path: Path) -> None:
    """A history that cannot be read or kept does not keep a session from running."""
    records = Records(tmp_path)
    records.folder.mkdir()
    records.path("grid@bot").write_text("{torn")
    ran = threading.Event()
    with Supervisor(home=tmp_path, name="bot") as supervisor:
        records.path("grid@bot").unlink()
        records.path("grid@bot").mkdir()  # no file can take its place, whoever asks
        supervisor.add("grid", ran.set, settings=QUICK)
        assert ran.wait(PATIENCE)
        assert supervisor.wait(PATIENCE)


def test_its_home_is_the_one_that_a_gate_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gate the configuration file states the home; a variable and an argument go before it."""
    config = tmp_path / "config" / "ratekeeper.toml"
    config.parent.mkdir()
    config.write_text('home = "state"\n')
    monkeypatch.setenv("RATEKEEPER_CONFIG", str(config))
    given = tmp_path / "given"
    for variable, argument in ((None, None), ("told", None), ("told", given)):
        if variable is None:
            monkeypatch.delenv("RATEKEEPER_HOME")
        else:
            monkeypatch.setenv("RATEKEEPER_HOME", str(tmp_path / variable))
        with Gate("memory://", home=argument) as gate, Supervisor(home=argument, name="bot") as supervisor:
            supervisor.add("grid", lambda: None, settings=QUICK)
            assert supervisor.wait(PATIENCE)
            assert Records(gate.home).path("grid@bot").is_file()
    assert (tmp_path / "config" / "state" / "sessions").is_dir()


def test_a_cancelled_order_ends_no_session(tmp_path: Path) -> None:
    """Whoever waits for `trigger` may give up; the session is watched as before."""
    lives: list[Run] = []

    def job(run: Run) -> None:
        lives.append(run)
        run.stopping.wait()

    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, settings=QUICK)
        with session._wake_socket:  # so that the session has not taken it yet
            gone = session.trigger()
            assert gone.cancel()
        until(supervisor, lambda: len(lives) == 2 and session.state == "healthy")
        assert supervisor.stop("grid").result(PATIENCE) == "stopped"


def test_errors_that_cannot_be_written(tmp_path: Path) -> None:
    """An error whose text no file can hold is kept without those characters, and the session is started again."""
    lives: list[int] = []

    def job(run: Run) -> None:
        lives.append(0)
        if len(lives) == 1:
            raise ValueError("no file \udcff")
        run.stopping.wait()

    with Supervisor(home=tmp_path, name="bot") as supervisor:
        session = supervisor.add("grid", job, settings=QUICK)
        until(supervisor, lambda: len(lives) == 2 and session.state == "healthy")
        assert kept(tmp_path, session).why == "ValueError: no file ?"


def test_a_fault_of_ours_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that can be watched no longer has failed: who waits for it, or orders something, is told."""
    monkeypatch.setattr(Session, "_begin", lambda *_: 1 / 0)
    said: list[Event] = []
    with Gate("memory://", home=tmp_path) as gate:
        gate.events.on(said.append)
        with Supervisor(gate, name="bot") as supervisor:
            session = supervisor.add("grid", print, settings=QUICK)
            assert supervisor.wait(PATIENCE)
            session._thread.join(PATIENCE)
            assert session.trigger().result(PATIENCE) == "failed"
    assert [event.kind for event in said if event.kind.startswith("session")] == ["session failed"]


def test_stops_although_the_executor_hangs(tmp_path: Path) -> None:
    """Calls that hang in the event loop's executor keep neither the sessions nor other components from being stopped."""
    hang = threading.Event()
    stopped: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor = ThreadPoolExecutor(1)
        loop.set_default_executor(executor)
        loop.run_in_executor(None, hang.wait)
        async with asyncio.timeout(PATIENCE):
            async with Supervisor(home=tmp_path, name="bot") as supervisor:
                supervisor.add("grid", asyncio.Event().wait, settings=QUICK)
            stopped.append("sessions")
            await stop_all_async([lambda: stopped.append("component")])
        hang.set()

    try:
        asyncio.run(main())
    finally:
        hang.set()
    assert stopped == ["sessions", "component"]


def test_a_lock_that_is_never_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that was stopped while it held the sessions' lock holds up nobody for long, and that is said."""
    monkeypatch.setattr(control, "_PATIENCE", 0.05)
    with Supervisor(home=tmp_path, name="bot") as supervisor, (tmp_path / "sessions" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        supervisor.add("grid", lambda: None, settings=QUICK)
        assert supervisor.wait(PATIENCE)
    assert "is held by a program that has stopped" in caplog.text
