"""Who does what may wait: at once, or in a few threads that keep the order of each topic."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ratekeeper.errors import StoreUnavailable
from ratekeeper.gate.steps import apart, drive, drive_async
from ratekeeper.stores import worker as module
from ratekeeper.stores.fallback import FallbackStore
from ratekeeper.stores.memory import MemoryStore
from ratekeeper.stores.redis.store import RedisStore
from ratekeeper.stores.worker import Background, Pending, Worker


@pytest.fixture
def background() -> Iterator[Background]:
    """A worker with threads of its own."""
    made = Background()
    yield made
    made.close(5)


def started(worker: Worker, topic: str, work: Callable[[], Any]) -> Pending[Any]:
    """Give it work of which the result is of later."""
    got = worker.start(topic, work)
    assert isinstance(got, Pending)
    return got


def failing() -> None:
    """Work that comes to nothing."""
    raise StoreUnavailable("away")


def test_each_store_has_its_worker() -> None:
    """One that answers at once has the caller's thread do it; one that is a network away has threads for it."""
    remote = RedisStore("redis://127.0.0.1:1")
    assert type(MemoryStore().worker()) is Worker
    assert isinstance(FallbackStore(remote, lambda kind, text: None).worker(), Background)
    remote.close()


def test_here_is_at_once() -> None:
    """The result is there, and what goes wrong is raised, before the call returns."""
    worker, done = Worker(), list[int]()
    assert worker.start("a", threading.get_ident) == threading.get_ident()
    worker.later("a", lambda: done.append(1))
    assert done == [1]
    with pytest.raises(StoreUnavailable):
        worker.later("a", failing)


def test_work_on_one_topic_keeps_its_order(background: Background) -> None:
    """And that on others does not wait for it."""
    gate, done = threading.Event(), list[int]()
    background.later("a", lambda: gate.wait(5))
    for nth in range(100):
        background.later("a", lambda nth=nth: done.append(nth))  # type: ignore[misc]
    last = started(background, "a", lambda: list(done))
    assert started(background, "b", lambda: 7).result(5) == 7
    assert done == []
    gate.set()
    assert last.result(5) == list(range(100))


def test_only_so_many_threads(background: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many topics there are; and they end when there is nothing to do."""
    monkeypatch.setattr(module, "_IDLE", 0.05)
    seen = {started(background, f"{nth}", threading.get_ident) for nth in range(50)}
    assert 1 <= len({each.result(5) for each in seen}) <= module._THREADS
    end = time.monotonic() + 5
    while not all(seat.ended for seat in background._threads):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert started(background, "again", lambda: 1).result(5) == 1


def test_what_nobody_waits_for_is_told_once(background: Background, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, if it comes to nothing; whoever waits is told himself."""
    with caplog.at_level(logging.WARNING, "ratekeeper"):
        with pytest.raises(StoreUnavailable, match="away"):
            started(background, "a", failing).result(5)
        assert not caplog.records
        for _ in range(3):
            background.later("a", failing)
        started(background, "a", lambda: None).result(5)
    assert [record.getMessage() for record in caplog.records] == [
        "ratekeeper: something could not be written into the store"
    ]


def test_too_much_is_refused(background: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is slow for long does not fill the memory."""
    monkeypatch.setattr(module, "_MOST", 3)
    gate = threading.Event()
    begun = threading.Event()
    background.later("a", lambda: (begun.set(), gate.wait(5)))
    assert begun.wait(5)
    kept = [started(background, "a", lambda: 1) for _ in range(3)]
    with pytest.raises(StoreUnavailable, match="too much"):
        started(background, "b", lambda: 1).result(0)
    gate.set()
    assert [each.result(5) for each in kept] == [1, 1, 1]


def test_closing_does_what_was_given(caplog: pytest.LogCaptureFixture) -> None:
    """But waits no longer than it may; what was not done by then, and what comes later, is refused without a word."""
    worker, done, gate = Background(), list[int](), threading.Event()
    worker.later("a", lambda: (time.sleep(0.05), done.append(1)))
    worker.close(5)
    assert done == [1]
    slow = Background()
    slow.later("a", lambda: gate.wait(5))
    left = started(slow, "a", lambda: 1)
    begun = time.monotonic()
    slow.close(0.05)
    assert time.monotonic() - begun < 2
    for each in (left, started(slow, "b", lambda: 1)):
        with pytest.raises(StoreUnavailable, match="closed"):
            each.result(1)
    slow.later("b", lambda: 1)
    gate.set()
    assert not caplog.records


def test_a_child_process_has_threads_of_its_own(background: Background) -> None:
    """What the parent had given is the parent's."""
    gate = threading.Event()
    background.later("a", lambda: gate.wait(5))
    child = os.fork()
    if not child:
        background.after_fork()
        os._exit(started(background, "a", lambda: 7).result(5))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    gate.set()


def test_a_flow_waits_without_its_loop(background: Background) -> None:
    """Threads and tasks have the result; a cancelled task takes along what was not begun."""
    gate, done = threading.Event(), list[int]()

    async def main() -> None:
        ticks = 0
        background.later("a", lambda: gate.wait(5))
        task = asyncio.ensure_future(drive_async(apart(background, "a", lambda: 7, 0, is_async=True)))
        hasty = asyncio.ensure_future(drive_async(apart(background, "a", lambda: done.append(1), None, is_async=True)))
        while ticks < 5:
            await asyncio.sleep(0.005)
            ticks += 1
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
        gate.set()
        assert await task == 7

    asyncio.run(main())
    assert drive(apart(background, "a", lambda: 8, 0, is_async=False)) == 8
    assert done == []
    assert drive(apart(background, "a", failing, None, is_async=False)) is None
    assert drive(apart(Worker(), "a", lambda: 9, 0, is_async=True)) == 9  # nothing to wait for


def test_one_that_is_forgotten_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads do not keep a worker for ever."""
    monkeypatch.setattr(module, "_IDLE", 0.02)
    worker = Background()
    started(worker, "a", lambda: 1).result(5)
    gone = weakref.ref(worker)
    del worker
    end = time.monotonic() + 5
    while gone() is not None:
        assert time.monotonic() < end
        time.sleep(0.01)
        gc.collect()


class GreenletExit(BaseException):
    """What gevent and eventlet raise in a greenlet that they end."""


def test_a_dead_thread_of_a_worker_is_replaced(background: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that died in the middle of its work: others go on with that topic."""
    monkeypatch.setattr(sys, "unraisablehook", lambda error: None)
    real, died = background._next, []

    def dies(topic: str) -> Any:
        if len(died) < module._THREADS:
            died.append(topic)
            raise GreenletExit
        return real(topic)

    monkeypatch.setattr(background, "_next", dies)
    first = started(background, "a", lambda: 1)
    for nth in range(10 * module._THREADS):
        for seat in background._threads:
            if seat.helper is not None:
                seat.helper.join(0.05)
        started(background, f"b{nth}", lambda: 2)
    assert len(died) == module._THREADS
    assert first.result(5) == 1


def test_a_result_has_a_deadline(background: Background) -> None:
    """However long the store takes; what was not begun by then is not done any more."""
    gate, done = threading.Event(), list[int]()
    background.later("a", lambda: gate.wait(5))
    late = started(background, "a", lambda: done.append(1))
    with pytest.raises(StoreUnavailable, match=r"within 0\.01 s"):
        late.result(0.01)
    gate.set()
    assert started(background, "a", lambda: list(done)).result(5) == []
