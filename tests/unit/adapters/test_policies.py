"""What the policies do around real calls of real clients: the same for all of them."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import httpx
import httpx2
import pytest
import requests
from tests.support.ahead import ahead

from ratekeeper import (
    Batch,
    Blocked,
    Breaker,
    BreakerOpen,
    Cache,
    Event,
    Gate,
    OutcomeUnknown,
    Policies,
    RetriesExhausted,
    Retry,
)
from ratekeeper.adapters.aiohttp import Middleware
from ratekeeper.adapters.httpx import AsyncTransport, Transport
from ratekeeper.adapters.requests import Adapter
from ratekeeper.errors import CallFailed, Rejected, SignatureWouldExpire
from ratekeeper.gate.steps import drive
from ratekeeper.rules.call import Request
from ratekeeper.stores import records

RULES = Path(__file__).parents[2] / "support" / "testland.toml"
QUICK = Retry(first=0.02)


class Seen(NamedTuple):
    """An answer as a program sees it."""

    status: int
    headers: dict[str, str]
    body: Any


Ask = Callable[..., Seen]
"""(method, url, headers=…, data=…) -> what a program sees."""


def _httpx(library: Any) -> Callable[[Gate], Ask]:
    def bound(gate: Gate) -> Ask:
        def ask(method: str, url: str, **options: Any) -> Seen:
            with library.Client(transport=Transport(gate=gate, verify=False), timeout=1.0) as client:
                answer = client.request(method, url, **options)
                return Seen(answer.status_code, _lower(answer.headers), json.loads(answer.text))

        return ask

    return bound


def _httpx_async(library: Any) -> Callable[[Gate], Ask]:
    def bound(gate: Gate) -> Ask:
        async def ask(method: str, url: str, **options: Any) -> Seen:
            async with library.AsyncClient(transport=AsyncTransport(gate=gate, verify=False), timeout=1.0) as client:
                answer = await client.request(method, url, **options)
                return Seen(answer.status_code, _lower(answer.headers), answer.json())

        return _blocking(ask)

    return bound


def _aiohttp(gate: Gate) -> Ask:
    async def ask(method: str, url: str, **options: Any) -> Seen:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=1.0)
        async with (
            aiohttp.ClientSession(middlewares=(Middleware(gate),), timeout=timeout) as session,
            session.request(method, url, **options) as answer,
        ):
            return Seen(answer.status, _lower(answer.headers), await answer.json())

    return _blocking(ask)


def _requests(gate: Gate) -> Ask:
    def ask(method: str, url: str, **options: Any) -> Seen:
        with requests.Session() as session:
            session.mount("http://", Adapter(gate=gate))
            answer = session.request(method, url, timeout=1.0, **options)
            return Seen(answer.status_code, _lower(answer.headers), answer.json())

    return ask


def _blocking(ask: Callable[..., Awaitable[Seen]]) -> Ask:
    return lambda *args, **options: asyncio.run(ask(*args, **options))  # type: ignore[arg-type]


def _lower(headers: Any) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in headers.items()}


CLIENTS: dict[str, tuple[Callable[[Gate], Ask], type[Exception], type[Exception]]] = {
    "httpx": (_httpx(httpx), httpx.TransportError, httpx.ReadTimeout),
    "httpx async": (_httpx_async(httpx), httpx.TransportError, httpx.ReadTimeout),
    "httpx2": (_httpx(httpx2), httpx2.TransportError, httpx2.ReadTimeout),
    "httpx2 async": (_httpx_async(httpx2), httpx2.TransportError, httpx2.ReadTimeout),
    "aiohttp": (_aiohttp, aiohttp.ClientError, aiohttp.SocketTimeoutError),
    "requests": (_requests, requests.RequestException, requests.ReadTimeout),
}
"""A client, its base error, and its error for an answer that does not come."""


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Any:
    """Each client in turn."""
    return CLIENTS[request.param]


@pytest.fixture
def made(origin: Any) -> Iterator[Callable[..., Gate]]:
    """Makes gates with policies."""
    gates: list[Gate] = []

    def make(rules: Path = RULES, **policies: Any) -> Gate:
        said = Policies(**policies)
        gates.append(Gate("memory://", hosts={origin.place: "testland"}, rules=[rules], max_wait=5, policies=said))
        return gates[-1]

    yield make
    for gate in gates:
        gate.close()


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """The rules of Testland, should its errors come as HTTP 200 too."""
    path = tmp_path / "testland.toml"
    path.write_text(RULES.read_text().replace("\n[sources]", "errors_under = [200]\n\n[sources]", 1))
    return path


def events(gate: Gate, kind: str) -> list[Any]:
    """Collects the events of one kind."""
    found: list[Any] = []
    gate.on(lambda event: found.append(event) if event.kind == kind else None)
    return found


# -- retry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["fail-once", "reset-once"])
def test_a_read_survives(client: Any, made: Any, origin: Any, do: str) -> None:
    """A 503 or a lost connection is made good by one more try, which is charged and told."""
    gate = made(retry=QUICK)
    told = events(gate, "retry")
    answer = client[0](gate)("GET", f"{origin.url}/priced?do={do}")
    assert answer.status == 200
    assert origin.paths() == ["/priced", "/priced"]
    assert [event.fields["attempt"] for event in told] == [2]
    used = [view.used + view.inflight for view in gate.read().ledgers if "/requests-1d/" in view.key]
    assert used == [2]


def test_it_ends_with_the_whole_story(client: Any, made: Any, origin: Any) -> None:
    """After so many tries one error, of ours and of the client's family, tells all of them."""
    gate = made(retry=Retry(attempts=3, first=0.02))
    with pytest.raises(RetriesExhausted) as caught:
        client[0](gate)("GET", f"{origin.url}/priced?do=trouble")
    assert isinstance(caught.value, client[1])
    assert len(caught.value.tries) == 3
    assert str(caught.value).startswith("GET /priced failed: 1. overloaded: HTTP 503")
    assert "3 tries are all it gets" in str(caught.value)
    assert len(origin.paths()) == 3


def test_a_refused_request_is_the_callers_to_see(client: Any, made: Any, origin: Any) -> None:
    """What no retry mends is not repeated: the answer comes back as it is."""
    answer = client[0](made(retry=QUICK))("GET", f"{origin.url}/priced?do=zipped-refusal")
    assert (answer.status, answer.body["code"]) == (400, -1102)
    assert len(origin.paths()) == 1


@pytest.mark.parametrize("policies", [{"retry": QUICK}, {}])
def test_an_order_without_an_answer_is_unknown(client: Any, made: Any, origin: Any, policies: Any) -> None:
    """It is sent once, whether or not there are policies, and the error says what to ask for."""
    with pytest.raises(OutcomeUnknown) as caught:
        client[0](made(**policies))("POST", f"{origin.url}/form?do=reset", data={"amount": "1", "id": "a1"})
    assert isinstance(caught.value, client[1])
    assert caught.value.ask == "GET /fate?id=a1"
    assert len(origin.paths()) == 1


SAID = [
    (200, {"success": False, "msg": "service error"}),
    (400, {"code": "45001", "msg": "unknown error"}),
    (500, {"message": "系统异常"}),
    (400, {"msg": "System busy, please try again later"}),
]


@pytest.mark.parametrize("says", SAID, ids=range(len(SAID)))
def test_an_order_that_met_trouble_inside_is_unknown(
    client: Any, made: Any, origin: Any, loose: Path, says: Any
) -> None:
    """Nobody listed the answer, but its words do not tell what became of the order: it is not sent again."""
    origin.says = says
    gate = made(loose, retry=QUICK)
    told = events(gate, "unlisted refusal")
    ask = client[0](gate)
    for _ in range(2):
        with pytest.raises(OutcomeUnknown) as caught:
            ask("POST", f"{origin.url}/form?do=say", data={"amount": "1", "id": "a1"})
        assert isinstance(caught.value, client[1])
        assert caught.value.ask == "GET /fate?id=a1"
    assert len(origin.paths()) == 2
    assert len(told) == (0 if says[0] == 500 else 1)


def test_an_unlisted_refusal_is_sent_again_later(client: Any, made: Any, origin: Any, loose: Path) -> None:
    """An order that is refused for its rate was surely not carried out: the limits are held, and then it goes again."""
    origin.says = (200, {"success": False, "msg": "请求过于频繁"})
    gate = made(loose, retry=Retry(attempts=2, first=0.3))
    told = events(gate, "unlisted refusal")
    with pytest.raises(RetriesExhausted) as caught:
        client[0](gate)("POST", f"{origin.url}/few?do=say")
    assert [each.partition(":")[0] for each in caught.value.tries] == ["throttled"]
    assert len(origin.paths()) == 1
    assert [(event.fields["outcome"], event.fields["route"]) for event in told] == [("throttled", "POST /few")]


def test_a_firewall_shuts_every_route(client: Any, made: Any, origin: Any) -> None:
    """Its page on one route stops the traffic on all of them, and what is kept is served meanwhile."""
    origin.says = (403, b"<html><title>Attention Required! | Cloudflare</title></html>")
    gate = made(cache=Cache(ttl={"testland GET /balance": 0.001}))
    ask = client[0](gate)
    kept = ask("GET", f"{origin.url}/balance", headers={"x-key": "k"}).body
    with pytest.raises(ValueError):  # the page is no JSON
        ask("GET", f"{origin.url}/priced?do=say")
    arrived = len(origin.paths())
    (block,) = [state for state in gate.store.blocks.states() if state.kind == "ban"]
    assert (block.scope.partition("/")[2], block.length) == ("ip:default", 10_000_000_000)
    answer = ask("GET", f"{origin.url}/balance", headers={"x-key": "k"})
    assert (answer.body, answer.headers["x-ratekeeper-answer"]) == (kept, "stale")
    with pytest.raises(client[1]) as caught:
        ask("POST", f"{origin.url}/few")
    assert isinstance(caught.value, Blocked)
    assert len(origin.paths()) == arrived


def test_a_timeout_is_still_a_timeout(client: Any, made: Any, origin: Any) -> None:
    """Programs that catch their client's own timeout keep working."""
    with pytest.raises(OutcomeUnknown) as caught:
        client[0](made(retry=QUICK))("POST", f"{origin.url}/form?do=hang", data={"amount": "1"})
    assert isinstance(caught.value, client[2])
    assert caught.value.ask == ""


def test_an_order_with_a_key_that_makes_it_safe_is_sent_again(client: Any, made: Any, origin: Any) -> None:
    """Where the provider promises to carry out one only."""
    data = {"amount": "1", "token": "t1"}
    assert client[0](made(retry=QUICK))("POST", f"{origin.url}/form?do=reset-once", data=data).status == 200
    assert len(origin.paths()) == 2


def test_hints_are_obeyed(client: Any, made: Any, origin: Any) -> None:
    """Retry-After goes before the backoff, to the instant."""
    origin.hints = {"Retry_After": "0.3"}
    gate = made(retry=Retry(first=0.001))
    begun = time.monotonic()
    told = events(gate, "retry")
    gate.on(lambda event: setattr(origin, "trouble", False))
    assert client[0](gate)("GET", f"{origin.url}/priced?do=trouble").status == 200
    assert time.monotonic() - begun >= 0.3
    assert 0.2 < told[0].fields["delay"] <= 0.3


@pytest.mark.parametrize("status", ["403", "503"])
def test_what_is_told_is_what_follows(client: Any, made: Any, origin: Any, status: str) -> None:
    """The delay of an event is the one that follows, also where a limit or a ban makes it; so is the one in the story."""
    origin.hints = {"Retry_After": "0.3"}
    gate = made(retry=Retry(attempts=2))
    told = events(gate, "retry")
    with pytest.raises(RetriesExhausted) as caught:
        client[0](gate)("GET", f"{origin.url}/priced?do=status&status={status}")
    first, second = [arrival.at for arrival in origin.arrivals if arrival.path == "/priced"]
    assert second - first >= 0.3
    assert -0.2 < second - first - told[0].fields["delay"] < 1.0
    assert f"made again in {told[0].fields['delay']:.2f} s" in told[0].message
    waited = float(caught.value.tries[0].rpartition("(again after ")[2].removesuffix(" s)"))
    assert 0.1 <= waited <= second - first + 0.2


# -- signed by hand ----------------------------------------------------------------------------------------------


def signed(do: str, age: float = 0.0, window: float = 20.0) -> str:
    """The query of a request that a program signed `age` seconds ago for `window` seconds."""
    now = int((time.time() - age) * 1000)
    return f"do={do}&timestamp={now}&recvWindow={int(window * 1000)}&signature=s"


def test_nothing_is_sent_after_its_signature_has_expired(client: Any, made: Any, origin: Any) -> None:
    """Also when no wait is needed: the error is of the client's family and names window and remedy; all is given back."""
    gate = made(retry=QUICK)
    with pytest.raises(SignatureWouldExpire, match=r"valid for 20 s and expired .*recvWindow") as caught:
        client[0](gate)("GET", f"{origin.url}/priced?{signed('ok', age=25)}")
    assert isinstance(caught.value, client[1])
    assert origin.paths() == []
    assert not [view for view in gate.read().ledgers if "/requests-1d/" in view.key and view.used + view.inflight]


def test_a_signed_call_is_not_repeated_too_late(client: Any, made: Any, origin: Any) -> None:
    """What the last attempt brought comes back as it is, at once: the answer still to be read, or the client's own error."""
    gate = made(retry=Retry(attempts=5, backoff=(30.0,), deadline=100))
    told = events(gate, "gave up")
    begun = time.monotonic()
    answer = client[0](gate)("GET", f"{origin.url}/priced?{signed('trouble')}")
    assert (answer.status, answer.body) == (503, {"msg": "overloaded"})
    assert origin.paths() == ["/priced"]
    with pytest.raises(client[2]) as caught:
        client[0](gate)("GET", f"{origin.url}/priced?{signed('hang')}")
    assert not isinstance(caught.value, CallFailed | Rejected)
    assert time.monotonic() - begun < 20
    assert [event.message.endswith("when its signature is not valid any more") for event in told] == [True, True]


def test_a_signed_call_gets_its_last_answer_if_no_permit_comes_in_time(client: Any, made: Any, origin: Any) -> None:
    """The pause between two attempts fits, but the limit has no room before the signature expires."""
    gate = made(retry=Retry(attempts=5, backoff=(0.01,), deadline=100))
    plan = gate.plan(gate.match(origin.place), Request("GET", "/priced"))
    rest = records.Ask(plan.provider, (plan.charges[0]._replace(cost=999),), plan.scopes, (1, 0))

    def spend(event: Event) -> None:
        for held in gate.store.blocks.states():  # the overload holds the limit for a moment
            gate.unblock(held.scope)
        gate.store.reserve(rest, gate.times.now(plan.provider))

    gate.on(spend)
    answer = client[0](gate)("GET", f"{origin.url}/priced?{signed('trouble')}")
    assert (answer.status, answer.body) == (503, {"msg": "overloaded"})
    assert origin.paths() == ["/priced"]


def test_a_follower_does_not_send_what_has_expired_meanwhile(made: Any, origin: Any) -> None:
    """The leader's call fails, and by then the signatures of those who waited for its answer have expired."""
    gate = made(cache=Cache(market=60.0))
    ahead(gate, lambda: 60.0 if origin.arrivals else 0.0)
    ask = _httpx(httpx)(gate)
    url = f"{origin.url}/priced?{signed('hang')}"
    with ThreadPoolExecutor(3) as pool:
        errors = [each.exception() for each in [pool.submit(ask, "GET", url) for _ in range(3)]]
    assert origin.paths() == ["/priced"]
    assert sorted(type(error).__name__ for error in errors) == ["ReadTimeout", *["SignatureWouldExpire"] * 2]


def test_calls_of_one_key_leave_in_the_order_of_their_nonces(client: Any, made: Any, origin: Any) -> None:
    """One must wait for the account, so an order with a later nonce waits for it; one of another key does not."""
    gate = made()
    ask = client[0](gate)
    ask("GET", f"{origin.url}/balance?nonce=1", headers={"x-key": "a"})
    account = f"{gate.match(origin.place).namespace}/class:account"
    gate.block(account, 4)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, "GET", f"{origin.url}/balance?nonce=2", headers={"x-key": "a"})
        while not gate.room.count:
            time.sleep(0.01)
        second = pool.submit(ask, "POST", f"{origin.url}/form?nonce=3", headers={"x-key": "a"})
        other = pool.submit(ask, "POST", f"{origin.url}/form?nonce=1", headers={"x-key": "b"})
        assert other.result().status == 200
        gate.unblock(account)
        assert [each.result().status for each in (first, second)] == [200] * 2
    assert [(arrival.headers["x-key"], arrival.params["nonce"]) for arrival in origin.arrivals] == [
        ("a", "1"), ("b", "1"), ("a", "2"), ("a", "3"),
    ]  # fmt: skip


def test_a_nonce_is_used_once(client: Any, made: Any, origin: Any) -> None:
    """So a call that brought an answer or a timeout is not repeated, and one whose nonce is too low is not sent."""
    ask = client[0](made(retry=QUICK))
    key = {"x-key": "a"}
    assert ask("GET", f"{origin.url}/priced?do=trouble&nonce=5", headers=key).status == 503
    with pytest.raises(client[2]):
        ask("GET", f"{origin.url}/priced?do=hang&nonce=6", headers=key)
    with pytest.raises(SignatureWouldExpire, match="overtaken") as caught:
        ask("GET", f"{origin.url}/priced?nonce=4", headers=key)
    assert isinstance(caught.value, client[1])
    assert origin.paths() == ["/priced"] * 2


# -- attempts that take too long -----------------------------------------------------------------------------------


def test_an_attempt_has_a_time_of_its_own(client: Any, made: Any, origin: Any) -> None:
    """What is not answered in time is cut off and made again; the story names the exception, the time and the host."""
    gate = made(retry=Retry(attempts=2, first=0.01, attempt_timeout=0.4))
    begun = time.monotonic()
    with pytest.raises(RetriesExhausted) as caught:
        client[0](gate)("GET", f"{origin.url}/priced?do=hang&secret=abcdefghijklmnopqrstuvwxyz")
    assert 0.8 <= time.monotonic() - begun < 1.9  # the client's own timeout, of a second each, would take longer
    assert isinstance(caught.value, client[1])
    assert origin.paths() == ["/priced", "/priced"]
    for line in caught.value.tries:
        assert re.match(r"unknown: \w+\.\w*Time\w*", line), line
        assert re.search(rf"\(read timeout after 0\.[4-9] s, {origin.place}\)", line), line
    assert "GET /priced" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_order_that_was_cut_off_is_not_repeated(client: Any, made: Any, origin: Any) -> None:
    """It was sent, and nobody knows what became of it."""
    gate = made(retry=Retry(first=0.01, attempt_timeout=0.3))
    with pytest.raises(OutcomeUnknown) as caught:
        client[0](gate)("POST", f"{origin.url}/form?do=hang")
    assert isinstance(caught.value, client[1])
    assert origin.paths() == ["/form"]


def test_an_exact_ladder_is_kept(client: Any, made: Any, origin: Any) -> None:
    """Backoffs as they are written."""
    gate = made(retry=Retry(attempts=4, backoff=(0.3, 0.1, 0.2)))
    told = events(gate, "retry")
    with pytest.raises(RetriesExhausted):
        client[0](gate)("GET", f"{origin.url}/priced?do=trouble")
    assert [event.fields["delay"] for event in told] == [0.3, 0.1, 0.2]
    at = [arrival.at for arrival in origin.arrivals if arrival.path == "/priced"]
    assert all(later - earlier >= wait for earlier, later, wait in zip(at, at[1:], (0.3, 0.1, 0.2), strict=False))


def test_nothing_is_repeated_beyond_the_budget(client: Any, made: Any, origin: Any) -> None:
    """In an outage retries stop being made: trouble is not met with more traffic."""
    ask = client[0](made(retry=Retry(first=0.0, attempts=6, budget=0.0, reserve=0.001)))
    for _ in range(10):
        with pytest.raises(RetriesExhausted):
            ask("GET", f"{origin.url}/priced?do=trouble")
    assert len(origin.paths()) == 10 + 10


# -- breaker -----------------------------------------------------------------------------------------------------


def test_a_breaker_spares_a_provider_in_trouble(client: Any, made: Any, origin: Any) -> None:
    """After enough failures nothing is sent; then one probe; when it succeeds all pass again."""
    gate = made(breaker=Breaker(failures=3, cooldown=0.4))
    ask = client[0](gate)
    url = f"{origin.url}/priced?do=trouble"
    assert [ask("GET", url).status for _ in range(3)] == [503] * 3
    with pytest.raises(BreakerOpen) as caught:
        ask("GET", url)
    assert isinstance(caught.value, client[1])
    assert len(origin.paths()) == 3
    assert ask("POST", f"{origin.url}/form", data={"amount": "1"}).status == 200, "orders have a breaker of their own"
    time.sleep(0.45)
    assert ask("GET", url).status == 503, "the probe"
    with pytest.raises(BreakerOpen):
        ask("GET", url)
    origin.trouble = False
    time.sleep(0.85)
    assert [ask("GET", url).status for _ in range(3)] == [200] * 3


def test_being_throttled_opens_no_breaker(client: Any, made: Any, origin: Any) -> None:
    """It says nothing of the provider's health."""
    gate = made(breaker=Breaker(failures=1))
    assert client[0](gate)("GET", f"{origin.url}/few?do=refuse").status == 429
    assert not [block for block in gate.read().blocks if block.kind == "breaker"]


# -- cache -------------------------------------------------------------------------------------------------------


def test_an_answer_is_given_again(client: Any, made: Any, origin: Any) -> None:
    """The second time it comes from the shelf, with its age; nothing is sent and nothing is charged."""
    gate = made(cache=Cache(market=60.0))
    ask = client[0](gate)
    first, again = (ask("GET", f"{origin.url}/rate?symbol=A") for _ in range(2))
    assert first.body == again.body
    assert (first.headers["x-ratekeeper-answer"], again.headers["x-ratekeeper-answer"]) == ("fresh", "hit")
    assert 0 <= float(again.headers["x-ratekeeper-age"]) < 60
    assert again.headers["x-place"] == "here"
    assert ask("GET", f"{origin.url}/rate?symbol=B").body != first.body
    assert origin.paths() == ["/rate", "/rate"]
    assert [view.used for view in gate.read().ledgers if "/requests-1d/" in view.key] == [6]


def test_it_is_asked_for_anew_in_time(client: Any, made: Any, origin: Any) -> None:
    """An answer is never given that is older than it may be."""
    ask = client[0](made(cache=Cache(ttl={"testland GET /rate": 0.3})))
    assert ask("GET", f"{origin.url}/rate?symbol=A").body["data"]["nth"] == 1
    time.sleep(0.35)
    assert ask("GET", f"{origin.url}/rate?symbol=A").body["data"]["nth"] == 2


def test_what_a_signature_adds_makes_no_other_question(client: Any, made: Any, origin: Any) -> None:
    """Timestamps differ from call to call; what is asked for does not."""
    ask = client[0](made(cache=True))
    for stamp in range(2):
        now = int(time.time() * 1000) + stamp
        ask("GET", f"{origin.url}/balance?timestamp={now}&signature=s{stamp}", headers={"x-key": "k1"})
    assert origin.paths() == ["/balance"]


def test_accounts_never_share(client: Any, made: Any, origin: Any) -> None:
    """Each account has its own answer, and who shows no key gets none from the shelf."""
    ask = client[0](made(cache=True))
    found = [
        ask("GET", f"{origin.url}/balance", headers={"x-key": key}).body["nth"] for key in ("k1", "k2", "k1", "k2")
    ]
    assert found == [1, 2, 1, 2]
    assert [ask("GET", f"{origin.url}/balance").body["nth"] for _ in range(2)] == [3, 4]


def test_an_order_makes_the_account_s_answers_old(client: Any, made: Any, origin: Any) -> None:
    """Only that account's: its balance is asked for anew."""
    ask = client[0](made(cache=True))
    url = f"{origin.url}/balance"
    assert [ask("GET", url, headers={"x-key": key}).body["nth"] for key in ("k1", "k2")] == [1, 2]
    ask("POST", f"{origin.url}/form", data={"amount": "1"}, headers={"x-key": "k1"})
    assert [ask("GET", url, headers={"x-key": key}).body["nth"] for key in ("k1", "k2")] == [4, 2]


def test_a_stale_answer_is_better_than_none(client: Any, made: Any, origin: Any) -> None:
    """Labelled, with its age: if the provider fails, and while a ban forbids to ask."""
    gate = made(cache=Cache(ttl={"testland GET /priced": 0.05}))
    told = events(gate, "cache stale")
    ask = client[0](gate)
    origin.trouble = False
    url = f"{origin.url}/priced?do=trouble"
    assert ask("GET", url).status == 200
    origin.trouble = True
    time.sleep(0.06)
    stale = ask("GET", url)
    assert (stale.status, stale.headers["x-ratekeeper-answer"]) == (200, "stale")
    assert float(stale.headers["x-ratekeeper-age"]) >= 0.06
    sent = len(origin.paths())
    gate.block(f"testland@{origin.place}/ip:default", 60, "ban", "for this test")
    assert ask("GET", url).headers["x-ratekeeper-answer"] == "stale"
    assert len(origin.paths()) == sent
    assert len(told) == 2


def test_a_stale_answer_serves_when_the_breaker_opens_between_two_tries(client: Any, made: Any, origin: Any) -> None:
    """The first try fails and opens the breaker, the second may not be made: that is an answer in vain like any other."""
    policies = {"cache": Cache(ttl={"testland GET /priced": 0.05}), "retry": QUICK}
    ask = client[0](made(breaker=Breaker(failures=1, cooldown=60.0), **policies))
    origin.trouble = False
    url = f"{origin.url}/priced?do=trouble"
    assert ask("GET", url).status == 200
    origin.trouble = True
    time.sleep(0.06)
    assert ask("GET", url).headers["x-ratekeeper-answer"] == "stale"
    assert len(origin.paths()) == 2


def test_mistakes_are_not_kept(client: Any, made: Any, origin: Any) -> None:
    """An unknown symbol is told each time, by the provider."""
    ask = client[0](made(cache=True))
    assert [ask("GET", f"{origin.url}/rate?symbol=Z").status for _ in range(2)] == [400, 400]
    assert len(origin.paths()) == 2


def test_many_who_ask_at_once_ask_once(client: Any, made: Any, origin: Any) -> None:
    """One flight: the others share its answer."""
    ask = client[0](made(cache=Cache(market=60.0)))
    start = threading.Barrier(8)
    found: list[Seen] = []

    def one() -> None:
        start.wait(5)
        found.append(ask("GET", f"{origin.url}/rate?symbol=A"))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert origin.paths() == ["/rate"]
    assert {seen.body["data"]["nth"] for seen in found} == {1}
    assert len(found) == 8


def test_what_is_urgent_waits_for_nobody_else_s_call(made: Any, origin: Any) -> None:
    """A call of low class may stand in the queue for long: one of high class for the same goes by itself."""
    gate = made(cache=True)
    lead = gate.pipeline.cache._single_flight
    key = gate.provider("testland").handling.key
    call = Request("GET", "/rate", {"symbol": "A"})
    flight = drive(lead.join(key(call, gate.plan("testland", call)), is_async=False))
    begun = time.monotonic()
    got = gate.call(
        "testland", "GET", "/rate", lambda permit: (200, {}, b"{}"), params={"symbol": "A"}, priority="high"
    )
    assert got.status == 200
    assert time.monotonic() - begun < 5
    flight.finish()


# -- batch -------------------------------------------------------------------------------------------------------


def test_single_calls_are_made_as_one(client: Any, made: Any, origin: Any) -> None:
    """Each gets what it asked for; a name that the answer does not hold is asked for by itself."""
    gate = made(batch=Batch(window=1.0))  # on a busy machine five clients are not made in a moment
    told = events(gate, "batched")
    ask = client[0](gate)
    start = threading.Barrier(5)
    found: dict[str, Seen] = {}

    def one(symbol: str) -> None:
        start.wait(5)
        found[symbol] = ask("GET", f"{origin.url}/rate?symbol={symbol}")

    threads = [threading.Thread(target=one, args=(symbol,)) for symbol in "ABCDZ"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert {symbol: seen.body["data"]["symbol"] for symbol, seen in found.items() if symbol != "Z"} == {
        symbol: symbol for symbol in "ABCD"
    }
    assert {found[symbol].headers["x-ratekeeper-answer"] for symbol in "ABCD"} == {"batched"}
    assert (found["Z"].status, found["Z"].body["code"]) == (400, -1121)
    assert sorted(origin.paths()) == ["/rate", "/rates"]
    assert [event.fields["calls"] for event in told] == [5]


def test_one_alone_is_not_made_dearer(client: Any, made: Any, origin: Any) -> None:
    """One for all costs more than a single call: it is made as it is."""
    assert client[0](made(batch=True))("GET", f"{origin.url}/rate?symbol=A").status == 200
    assert origin.paths() == ["/rate"]


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_no_secret_comes_back(library: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a client's error nor an answer that quotes its request leaves a secret in errors, events, log or files."""
    quoting = [False]

    def serve(request: Any) -> Any:
        if quoting:
            return library.Response(200, json={"asked": str(request.url), "key": request.headers["x-key"], "code": 0})
        raise library.ReadError(f"{request.url} broke; {request.headers['x-key']}")

    found: list[str] = []
    url = "https://testland.invalid/balance?apiKey=q%2F1"
    policies = Policies(retry=QUICK, cache=Cache())
    with (
        caplog.at_level("DEBUG", "ratekeeper"),
        Gate(home=tmp_path, rules=[RULES], policies=policies, learn=False) as gate,
        library.Client(
            transport=Transport(library.MockTransport(serve), gate=gate), headers={"x-key": "h-2"}
        ) as client,
    ):
        gate.on(lambda event: found.append(f"{event}"))
        client.get(url), client.get(url)
        assert not list(tmp_path.glob("answers/*"))  # it is not kept
        quoting.clear()
        with pytest.raises(RetriesExhausted) as caught:
            client.get(url)
        found += [str(caught.value), repr(caught.value.tries), caplog.text, str(gate.read())]
    found += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert "broke; [...]" in found[0]
    for secret in ("q/1", "q%2F1", "h-2"):
        assert not [text for text in found if secret in text]
