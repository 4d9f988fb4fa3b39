"""A whole call of one's own making: ``gate.call``, with what the policies do around it, also between processes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratekeeper import (
    Blocked,
    Breaker,
    BreakerOpen,
    DeadlineExceeded,
    Gate,
    OutcomeUnknown,
    Permit,
    Policies,
    Rejected,
    RetriesExhausted,
    Retry,
)
from ratekeeper.gate.steps import drive, drive_async, pausing, waiting
from ratekeeper.stores.threads import Parked

RULES = Path(__file__).parents[2] / "support" / "testland.toml"
Make = Callable[..., Gate]
OK = (200, {}, b"{}")
TROUBLE = (503, {}, b"busy")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes gates that share one folder."""
    gates: list[Gate] = []

    def made(store: str = "memory://", **policies: Any) -> Gate:
        options = {"home": tmp_path, "hosts": {}, "rules": [RULES], "max_wait": 5, "learn": False}
        gates.append(Gate(store, policies=Policies(**policies), **options))  # type: ignore[arg-type]
        return gates[-1]

    yield made
    for gate in gates:
        gate.close()


class Sender:
    """Answers as it is told, in turn; then the last again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.permits: list[Permit] = []

    def __call__(self, permit: Permit) -> Any:
        """One attempt."""
        self.permits.append(permit)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def later(self, permit: Permit) -> Any:
        """The same, awaited."""
        await asyncio.sleep(0)
        return self(permit)


def test_each_attempt_has_its_own_permit(make: Make) -> None:
    """What fails is made again with a new one, and both are charged."""
    gate, sender = make(retry=Retry(first=0.0)), Sender(TROUBLE, OK)
    got = gate.call("testland", "GET", "/priced", sender, params={"limit": 50})
    assert (got.status, got.body, str(got.service)) == (200, b"{}", "fresh")
    assert len({id(permit) for permit in sender.permits}) == 2
    assert [view.used for view in gate.read().ledgers] == [14]


def test_the_same_in_a_task(make: Make) -> None:
    """`call_async` awaits what is sent."""
    gate, sender = make(retry=Retry(first=0.0)), Sender(TROUBLE, ConnectionResetError(), OK)
    got = asyncio.run(gate.call_async("testland", "GET", "/priced", sender.later))
    assert got.status == 200
    assert len(sender.permits) == 3


def test_without_policies_it_is_one_attempt(make: Make) -> None:
    """The answer, or the error, as it comes."""
    gate = make()
    assert gate.call("testland", "GET", "/priced", Sender(TROUBLE)).status == 503
    with pytest.raises(ConnectionResetError):
        gate.call("testland", "GET", "/priced", Sender(ConnectionResetError()))


@pytest.mark.parametrize(
    ("error", "unknown", "left"),
    [(ConnectionRefusedError(), False, 0), (socket.gaierror(-2, "no such host"), False, 0), (TimeoutError(), True, 2)],
)
def test_an_order_is_repeated_only_if_it_was_surely_not_sent(
    make: Make, error: Exception, unknown: bool, left: int
) -> None:
    """No connection: again, and what was held comes back. A timeout: its fate is unknown, and it stays charged."""
    gate, sender = make(retry=Retry(first=0.0)), Sender(error, OK)
    if unknown:
        with pytest.raises(OutcomeUnknown) as caught:
            gate.call("testland", "POST", "/form", sender, params={"id": "a1"})
        assert caught.value.ask == "GET /fate?id=a1"
        assert caught.value.__cause__ is error
    else:
        assert gate.call("testland", "POST", "/form", sender, params={"id": "a1"}).status == 200
    assert len(sender.permits) == (1 if unknown else 2)
    assert [view.inflight for view in gate.read().ledgers] == [left]


def test_a_bug_in_the_sender_is_not_retried(make: Make) -> None:
    """It is nobody's network trouble."""
    sender = Sender(KeyError("symbol"))
    with pytest.raises(KeyError):
        make(retry=True, breaker=Breaker(failures=1)).call("testland", "GET", "/priced", sender)
    assert len(sender.permits) == 1


def test_a_retry_that_cannot_leave_tells_both(make: Make) -> None:
    """The first try's trouble, and why there is no second."""
    gate = make(retry=Retry(first=0.0, deadline=0.3))

    def send(_permit: Permit) -> Any:
        gate.block("testland/ip:default", 30)
        return TROUBLE

    told: list[str] = []
    gate.on(lambda event: told.append(event.kind))
    with pytest.raises(
        RetriesExhausted, match=r"1\. overloaded: HTTP 503: busy\. testland/ip:default is shut"
    ) as caught:
        gate.call("testland", "GET", "/priced", send)
    assert isinstance(caught.value.__cause__, Blocked)
    assert told.count("gave up") == 1


def test_what_was_not_sent_at_all_is_rejected(make: Make) -> None:
    """A deadline in the queue is no failure of the provider."""
    gate, sender = make(retry=True, breaker=Breaker(failures=1)), Sender(OK)
    for _ in range(2):
        gate.call("testland", "GET", "/few", sender)
    with pytest.raises(DeadlineExceeded):
        gate.call("testland", "GET", "/few", sender, timeout=0)
    assert not gate.read().blocks


def test_a_breaker_is_shared(make: Make) -> None:
    """What one process meets with, the other is spared; one probe at a time, of all of them, feels whether it is over."""
    settings = Breaker(failures=4, cooldown=0.3)
    one, other = make("host://", breaker=settings), make("host://", breaker=settings)
    for gate in (one, other, one, other):
        assert gate.call("testland", "GET", "/priced", Sender(TROUBLE)).status == 503
    for gate in (one, other):
        with pytest.raises(BreakerOpen, match=r"class:market is open for .* the provider is in trouble"):
            gate.call("testland", "GET", "/priced", Sender(OK))
    threading.Event().wait(0.35)
    held, probing = threading.Event(), threading.Event()

    def probe(permit: Permit) -> Any:
        probing.set()
        held.wait(5)
        return OK

    thread = threading.Thread(target=one.call, args=("testland", "GET", "/priced", probe))
    thread.start()
    assert probing.wait(5)
    with pytest.raises(BreakerOpen, match="a probe is under way"):
        other.call("testland", "GET", "/priced", Sender(OK))
    held.set()
    thread.join(5)
    assert other.call("testland", "GET", "/priced", Sender(OK)).status == 200
    assert not [block for block in other.read().blocks if block.kind in ("breaker", "probing")]


def test_who_comes_later_takes_part(make: Make) -> None:
    """A program that begins when a breaker wants probing knows it before its first call, which is the probe."""
    settings = Breaker(failures=1, cooldown=0.05)
    make("host://", breaker=settings).call("testland", "GET", "/priced", Sender(TROUBLE))
    threading.Event().wait(0.06)
    late = make("host://", breaker=settings)
    assert late.call("testland", "GET", "/priced", Sender(OK)).status == 200
    assert not [block for block in late.read().blocks if block.kind in ("breaker", "probing")]


def test_cancels_open_no_breaker(make: Make) -> None:
    """However many of them fail: they pass every breaker, and there is none of their own."""
    gate = make(breaker=Breaker(failures=2))
    for _ in range(5):
        assert gate.call("binance-usdm", "DELETE", "/fapi/v1/order", Sender(TROUBLE)).status == 503
    assert not [block for block in gate.read().blocks if block.kind in ("breaker", "probing")]


@pytest.mark.parametrize("seconds", [0, -5, float("nan"), float("inf")])
def test_a_length_of_nothing_is_refused(make: Make, seconds: float) -> None:
    """A pause that would be none, or last for ever by mistake."""
    gate = make()
    with pytest.raises(ValueError, match="more than 0 seconds"):
        gate.block("testland", seconds)
    assert not gate.read().blocks


def test_a_probe_that_is_not_sent_leaves_its_place(make: Make) -> None:
    """One cancelled in the queue does not keep others from feeling."""
    gate = make(breaker=Breaker(failures=1, cooldown=0.05))
    gate.call("testland", "GET", "/priced", Sender(TROUBLE))
    threading.Event().wait(0.06)
    gate.block("testland/ip:default", 30)
    with pytest.raises(Rejected):
        gate.call("testland", "GET", "/priced", Sender(OK), timeout=0)
    gate.unblock("testland/ip:default")
    assert gate.call("testland", "GET", "/priced", Sender(OK)).status == 200


def test_a_cancelled_call_lets_go(make: Make) -> None:
    """While it waits for its retry as well: nothing is left behind."""

    async def main() -> None:
        gate = make(retry=Retry(first=60.0, longest=60.0, deadline=900.0))
        task = asyncio.create_task(gate.call_async("testland", "GET", "/priced", Sender(TROUBLE).later))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [view.inflight for view in gate.read().ledgers] == [0]

    asyncio.run(main())


# -- steps -------------------------------------------------------------------------------------------------------


def test_flows_run_in_threads_and_tasks() -> None:
    """The same steps; what is yielded is called, or awaited."""

    def flow(is_async: bool) -> Any:
        got = yield waiting(lambda: "thread", None, is_async=is_async)
        yield pausing(0.0, is_async=is_async)
        return got

    assert drive(flow(False)) == "thread"
    assert asyncio.run(drive_async(flow(True))) == "thread"


def test_parked_wakes_threads_and_tasks() -> None:
    """All who wait, once; who comes later does not wait at all."""
    parked = Parked()
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(parked.wait(5))) for _ in range(3)]
    for thread in threads:
        thread.start()

    async def main() -> list[bool]:
        waits = [asyncio.create_task(parked.wait_async(5)) for _ in range(3)]
        gone = asyncio.create_task(parked.wait_async(5))
        await asyncio.sleep(0.01)
        gone.cancel()
        threading.Timer(0.01, parked.release).start()
        return await asyncio.gather(*waits)

    assert asyncio.run(main()) == [True] * 3
    for thread in threads:
        thread.join(5)
    assert found == [True] * 3
    assert parked.wait(0)
    assert asyncio.run(Parked().wait_async(0.01)) is False


@pytest.mark.parametrize("is_async", [False, True])
def test_an_attempt_is_cut_off(make: Make, is_async: bool) -> None:
    """A function that does not come back is left alone; a read is made again, an order is not."""
    gate = make(retry=Retry(attempts=2, backoff=(0,), attempt_timeout=0.2))
    ended = threading.Event()
    sent: list[Permit] = []

    def send(permit: Permit) -> Any:
        sent.append(permit)
        ended.wait(20)
        return OK

    async def send_async(permit: Permit) -> Any:
        sent.append(permit)
        await asyncio.sleep(20)

    def call(*what: str) -> Any:
        if is_async:
            return asyncio.run(gate.call_async("testland", *what, send_async))
        return gate.call("testland", *what, send)

    try:
        with pytest.raises(RetriesExhausted) as caught:
            call("GET", "/rate")
        assert len(sent) == 2
        assert caught.value.tries[-1].startswith("unknown: TimeoutError: no answer within 0.2 s (read timeout after ")
        with pytest.raises(OutcomeUnknown):
            call("POST", "/form")
        assert len(sent) == 3
    finally:
        ended.set()
    assert all(not permit.held for permit in sent)


def test_an_attempt_in_time_is_as_ever(make: Make) -> None:
    """Its answer and its own errors come through the thread that makes it."""
    gate = make(retry=Retry(attempts=1, attempt_timeout=5))
    assert gate.call("testland", "GET", "/rate", lambda permit: OK).status == 200

    def wrong(permit: Permit) -> Any:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        gate.call("testland", "GET", "/rate", wrong)


@pytest.mark.parametrize("store", ["memory://", "host://"])
def test_who_is_elected_while_an_answer_is_kept_does_not_ask_again(make: Make, store: str) -> None:
    """Between a look that finds nothing and the election of who asks, another has asked, kept the answer and stepped down."""
    gate = make(store, cache=True)
    other = make(store, cache=True) if store == "host://" else gate
    sender, params = Sender(OK), {"symbol": "A"}
    flights = gate.pipeline.cache._single_flight  # type: ignore[union-attr]
    join, struck = flights.join, []

    def late(key: bytes, **options: bool) -> Any:
        if not struck:
            struck.append(key)
            other.call("testland", "GET", "/rate", sender, params=params)
        return join(key, **options)

    flights.join = late  # type: ignore[method-assign]
    got = gate.call("testland", "GET", "/rate", sender, params=params)
    assert (got.service, got.body) == ("hit", b"{}")
    assert len(sender.permits) == 1
