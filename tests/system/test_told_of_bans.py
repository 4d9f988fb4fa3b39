"""A ban is told, not slept through: unchanged programs of every client, and programs that ask for the gate, in a long ban."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import ccxt
import httpx
import pytest
import requests

from ratekeeper import Blocked, Event, Gate, Policies, Retry
from ratekeeper.adapters.aiohttp import Middleware
from ratekeeper.adapters.aiohttp import govern as govern_session
from ratekeeper.adapters.ccxt import govern
from ratekeeper.adapters.httpx import Transport
from ratekeeper.adapters.requests import Adapter
from ratekeeper.testing import Emulator

pytestmark = pytest.mark.usefixtures("warm_programs")

RATEKEEPER = [sys.executable, "-m", "ratekeeper", "run", "--"]
BAN = 600.0
QUICK = 90.0
"""Seconds within which a program has ended that was told, on a loaded machine."""

HEAD = """
import json, os, time
URL, HOST = os.environ['URL'], os.environ['URL']
def tell(**found):
    print(json.dumps(found, default=str))
def answered(status, headers, body):
    headers = {name.lower(): value for name, value in dict(headers).items()}
    tell(status=status, after=headers.get('retry-after'), made=headers.get('x-ratekeeper-answer'), body=body)
"""

HTTP = {
    "httpx": """
        import httpx
        with httpx.Client() as client:
            got = client.get(URL + PATH)
        answered(got.status_code, got.headers, got.json())
        assert got.request.url.path == PATH
        try:
            got.raise_for_status()
            raise SystemExit('no error')
        except httpx.HTTPStatusError:
            pass
    """,
    "httpx-async": """
        import asyncio, httpx
        async def main():
            async with httpx.AsyncClient() as client:
                got = await client.get(URL + PATH)
                answered(got.status_code, got.headers, got.json())
        asyncio.run(main())
    """,
    "httpx2": """
        import httpx2
        with httpx2.Client() as client:
            got = client.get(URL + PATH)
        answered(got.status_code, got.headers, got.json())
    """,
    "requests": """
        import requests
        got = requests.get(URL + PATH)
        answered(got.status_code, got.headers, got.json())
        try:
            got.raise_for_status()
            raise SystemExit('no error')
        except requests.HTTPError as error:
            assert error.response is got
    """,
    "urllib3": """
        import urllib3
        got = urllib3.PoolManager().request('GET', URL + PATH)
        answered(got.status, got.headers, got.json())
    """,
    "aiohttp": """
        import aiohttp, asyncio
        async def main():
            async with aiohttp.ClientSession() as session:
                async with session.get(URL + PATH) as got:
                    answered(got.status, got.headers, await got.json())
                for options in ({'raise_for_status': True}, {}):
                    async with aiohttp.ClientSession(raise_for_status=not options) as strict:
                        try:
                            async with strict.get(URL + PATH, **options):
                                raise SystemExit('no error')
                        except aiohttp.ClientResponseError as error:
                            assert error.status == got.status and error.headers['Retry-After'], error
        asyncio.run(main())
    """,
}
"""What each prints of the answer it sees."""

USDM = {
    "ccxt": """
        import ccxt
        exchange = ccxt.binanceusdm()
        exchange.urls['api'] = {name: URL + '/fapi/v1' for name in exchange.urls['api']}
        try:
            exchange.fapiPublicGetKlines({'symbol': 'BTCUSDT', 'interval': '1m', 'maxRetriesOnFailure': 2})
        except ccxt.BaseError as error:
            tell(kind=type(error).__name__, text=str(error), headers=exchange.last_response_headers)
    """,
    "ccxt-async": """
        import asyncio, ccxt.async_support as ccxt
        async def main():
            exchange = ccxt.binanceusdm()
            exchange.urls['api'] = {name: URL + '/fapi/v1' for name in exchange.urls['api']}
            try:
                await exchange.fapiPublicGetKlines({'symbol': 'BTCUSDT', 'interval': '1m'})
            except ccxt.BaseError as error:
                tell(kind=type(error).__name__, text=str(error), headers=exchange.last_response_headers)
            await exchange.close()
        asyncio.run(main())
    """,
}

SPOT = {
    "python-binance": """
        from binance.client import Client
        from binance.exceptions import BinanceAPIException
        Client.API_URL = URL + '/api'
        client = Client('k1', 's1', ping=False)
        try:
            client.get_account()
        except BinanceAPIException as error:
            headers = error.response.headers
            tell(kind=type(error).__name__, status=error.status_code, code=error.code, text=error.message,
                 after=headers['Retry-After'])
    """,
    "python-binance-async": """
        import asyncio
        from binance.async_client import AsyncClient
        from binance.exceptions import BinanceAPIException
        AsyncClient.API_URL = URL + '/api'
        async def main():
            client = AsyncClient('k1', 's1')
            try:
                await client.get_account()
            except BinanceAPIException as error:
                tell(kind=type(error).__name__, status=error.status_code, code=error.code, text=error.message,
                     after=error.response.headers['Retry-After'])
            await client.close_connection()
        asyncio.run(main())
    """,
    "binance-connector": """
        from binance.spot import Spot
        from binance.error import ClientError
        try:
            Spot('k1', 's1', base_url=URL).account()
        except ClientError as error:
            tell(kind=type(error).__name__, status=error.status_code, code=error.error_code, text=error.error_message,
                 after=error.header['Retry-After'])
    """,
    "binance-sdk": """
        from binance_sdk_spot.spot import ConfigurationRestAPI, Spot
        client = Spot(ConfigurationRestAPI('k1', 's1', base_path=URL, timeout=10000))
        try:
            client.rest_api.get_account()
        except Exception as error:
            tell(kind=type(error).__name__, status=418, code=-1003, text=str(error), after=error.retry_after)
    """,
}


class Place:
    """An emulated exchange that bans this machine, and the environment of programs that call it."""

    def __init__(self, emulator: Emulator, home: Path) -> None:
        self.emulator = emulator
        self.home = home
        self.env = {
            **os.environ, "URL": emulator.url, "RATEKEEPER_HOSTS": emulator.hosts, "RATEKEEPER_HOME": str(home),
            "RATEKEEPER_STORE": "host://",
        }  # fmt: skip
        self.namespace = emulator.hosts.partition("=")[2] + "@" + emulator.hosts.partition("=")[0]

    def gate(self, **options: Any) -> Gate:
        """A gate on the same ledgers."""
        return Gate("host://", home=self.home, hosts=self.emulator.hosts, learn=False, **options)

    def start(self, source: str, **env: str) -> subprocess.Popen[str]:
        """A program under `ratekeeper run`."""
        file = self.home.parent / f"program-{len(list(self.home.parent.iterdir()))}.py"
        file.write_text(HEAD + textwrap.dedent(source))
        command = [*RATEKEEPER, sys.executable, "-W", "ignore", str(file)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env={**self.env, **env}, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    def arrived(self) -> int:
        """How many requests the exchange has seen."""
        return int(self.emulator.stats()["totals"]["arrivals"])


@contextmanager
def banned(provider: str, path: str, folder: Path) -> Iterator[Place]:
    """An exchange that has banned this machine for `BAN` seconds, and told one governed call so."""
    with Emulator(provider) as emulator:
        place = Place(emulator, folder / "home")
        emulator.ban(seconds=BAN - 2)  # its clock is not known to the second
        with place.gate() as gate, httpx.Client(transport=Transport(gate=gate)) as client:
            refused = client.get(emulator.url + path)
        assert refused.status_code in {403, 418}, refused.text
        yield place


def seen(programs: dict[str, subprocess.Popen[str]]) -> dict[str, list[dict[str, Any]]]:
    """What programs have told, by name; each has ended by itself."""
    found = {}
    try:
        for name, program in programs.items():
            out, err = program.communicate(timeout=QUICK)
            assert program.returncode == 0, f"{name}: {out} {err}"
            assert "ungoverned" not in err, err
            found[name] = [json.loads(line) for line in out.splitlines()]
            assert found[name], f"{name} told nothing: {err}"
    finally:
        for program in programs.values():
            program.kill()
            program.communicate()
    return found


@pytest.fixture(scope="module")
def usdm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Binance's futures have banned us."""
    with banned("binance-usdm", "/fapi/v1/time", tmp_path_factory.mktemp("usdm")) as place:
        yield place


@pytest.fixture(scope="module")
def spot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Binance spot has banned us."""
    with banned("binance-spot", "/api/v3/time", tmp_path_factory.mktemp("spot")) as place:
        yield place


def test_http_clients_see_the_answer_of_the_exchange(usdm: Place) -> None:
    """Each unchanged program gets a real answer of its library, 418 with the code, and how long to stay away; nothing is
    sent."""
    arrived = usdm.arrived()
    found = seen({name: usdm.start(f"PATH = '/fapi/v1/time'\n{textwrap.dedent(code)}") for name, code in HTTP.items()})
    for name, (answer, *_) in found.items():
        assert (answer["status"], answer["made"], answer["body"]["code"]) == (418, "refused", -1003), name
        assert "banned until" in answer["body"]["msg"], name
        assert 0 < int(answer["after"]) <= BAN, name
    assert usdm.arrived() == arrived


def test_ccxt_raises_what_it_makes_of_that_answer(usdm: Place) -> None:
    """Its own table says that 418 is a `DDoSProtection`; `maxRetriesOnFailure` does not repeat what was never sent."""
    arrived = usdm.arrived()
    for name, (told,) in seen({name: usdm.start(code) for name, code in USDM.items()}).items():
        assert told["kind"] == "DDoSProtection", name
        assert "418" in told["text"] and "banned until" in told["text"], name
        assert 0 < int(told["headers"]["Retry-After"]) <= BAN, name
    assert usdm.arrived() == arrived


def test_sdks_raise_their_own_errors(spot: Place) -> None:
    """The SDK reads the answer by itself: status 418, code -1003, and the headers of the answer."""
    arrived = spot.arrived()
    for name, (told,) in seen({name: spot.start(code) for name, code in SPOT.items()}).items():
        assert (told["status"], told["code"]) == (418, -1003), name
        assert "banned until" in told["text"], name
        assert 0 < int(told["after"]) <= BAN, name
    assert spot.arrived() == arrived


def test_bybit_and_okx_say_it_in_their_way(tmp_path: Path) -> None:
    """pybit meets Bybit's own 403; python-okx, whose exchange knows no ban, is told to slow down (429, 50011)."""
    bybit = """
        from pybit.unified_trading import HTTP
        from pybit.exceptions import FailedRequestError
        session = HTTP(api_key='k1', api_secret='s1', max_retries=1)
        session.endpoint = URL
        try:
            session.get_open_orders(category='linear')
        except FailedRequestError as error:
            tell(kind=type(error).__name__, status=error.status_code, text=str(error))
    """
    okx = """
        from okx.MarketData import MarketAPI
        api = MarketAPI('k1', 's1', 'p1', domain=URL)
        tell(**api.get_candlesticks(instId='BTC-USDT'))
    """
    with banned("bybit", "/v5/market/time", tmp_path) as one, Emulator("okx") as emulator:
        other = Place(emulator, tmp_path / "okx")
        with other.gate() as gate:
            gate.block(f"{other.namespace}/ip:default", BAN, "ban", "by the exchange")
        arrived = one.arrived(), other.arrived()
        found = seen({"bybit": one.start(bybit), "okx": other.start(okx)})
        assert (one.arrived(), other.arrived()) == arrived
    assert found["bybit"][0]["status"] == 403
    assert found["okx"][0]["code"] == "50011"


def test_a_program_ends_when_it_means_to(usdm: Place) -> None:
    """A loop that asks until its time is over is over then, and not at the end of the ban."""
    (told,) = seen(
        {
            "loop": usdm.start(
                """
                import httpx
                statuses = []
                with httpx.Client() as client:
                    end = time.monotonic() + 3
                    while not statuses or time.monotonic() < end:
                        statuses.append(client.get(URL + '/fapi/v1/time').status_code)
                        time.sleep(0.1)
                tell(statuses=sorted(set(statuses)), late=time.monotonic() - end)
                """
            )
        }
    )["loop"]
    assert told["statuses"] == [418]
    assert told["late"] < BAN / 3


def test_retries_do_not_hide_it(usdm: Place) -> None:
    """With every policy on the ban is told at once; it counts for no breaker and is not kept as an answer."""
    (told,) = seen(
        {
            "retry": usdm.start(
                """
                import httpx
                with httpx.Client() as client:
                    got = [client.get(URL + '/fapi/v1/klines', params={'symbol': 'BTCUSDT'}) for _ in range(8)]
                tell(statuses=[each.status_code for each in got], made=[each.headers['x-ratekeeper-answer'] for each in got])
                """,
                RATEKEEPER_POLICIES="all",
            )
        }
    )["retry"]
    assert told == {"statuses": [418] * 8, "made": ["refused"] * 8}
    with usdm.gate() as gate:
        assert {state.kind for state in gate.read().blocks} == {"ban"}


def test_programs_that_ask_for_the_gate_get_an_error_with_that_answer(usdm: Place) -> None:
    """It is `Blocked`, of the client's own family, and holds what the exchange would have answered."""
    events: list[Event] = []
    with usdm.gate() as gate:
        gate.on(events.append)
        url = f"{usdm.emulator.url}/fapi/v1/time"
        caught: list[Any] = []
        with httpx.Client(transport=Transport(gate=gate)) as client, pytest.raises(httpx.TransportError) as one:
            client.get(url)
        with requests.Session() as session:
            session.mount("http://", Adapter(gate=gate))
            with pytest.raises(requests.RequestException) as two:
                session.get(url)
        caught += [one.value, two.value, *asyncio.run(_aiohttp(gate, url))]
        exchange = govern(ccxt.binanceusdm(), gate=gate)
        exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], f"{usdm.emulator.url}/fapi/v1")
        with pytest.raises(ccxt.DDoSProtection) as three:
            exchange.fapiPublicGetTime()
    for error in caught:
        assert isinstance(error, Blocked)
        assert (error.kind, error.limit) == ("ban", "ban")
        assert error.scope == f"{usdm.namespace}/ip:default"
        assert error.seconds is not None and 0 < error.seconds <= BAN
        answer: Any = error.response
        assert getattr(answer, "status_code", getattr(answer, "status", 0)) == 418
        assert 0 < int(answer.headers["Retry-After"]) <= BAN
    assert isinstance(three.value, Blocked)
    assert [event.kind for event in events] == ["refusing"]
    assert events[0].fields["scope"] == f"{usdm.namespace}/ip:default"


async def _aiohttp(gate: Gate, url: str) -> list[Exception]:
    """The errors of a session with our middleware, and of one that was given to `govern`."""
    caught: list[Exception] = []
    for governed in (False, True):
        options = {} if governed else {"middlewares": (Middleware(gate),)}
        async with aiohttp.ClientSession(**options) as session:  # type: ignore[arg-type]
            if governed:
                govern_session(session, gate=gate)
            with pytest.raises(aiohttp.ClientError) as error:
                await session.get(url)
            caught.append(error.value)
    return caught


def test_who_asked_to_wait_waits(tmp_path: Path) -> None:
    """By the setting, in the environment or in code, or by an adapter that was made so; a short ban anyhow."""
    wait = """
        import httpx
        begun = time.monotonic()
        with httpx.Client() as client:
            tell(status=client.get(URL + '/fapi/v1/time').status_code, waited=time.monotonic() - begun)
    """
    with Emulator("binance-usdm") as emulator:
        place = Place(emulator, tmp_path / "home")
        with place.gate() as gate:
            gate.block(f"{place.namespace}/ip:default", 600, "ban", "by the exchange")  # longer than any program starts
            (quick,) = seen({"quick": place.start(wait, RATEKEEPER_MAX_BLOCK_WAIT="1")})["quick"]
            assert quick["status"] == 418
            gate.unblock(f"{place.namespace}/ip:default")
            gate.block(f"{place.namespace}/ip:default", 12, "ban", "by the exchange")
            found = seen(
                {
                    "asked": place.start(wait, RATEKEEPER_MAX_BLOCK_WAIT="inf"),
                    "short": place.start(wait),  # less than the default of 30 s
                }
            )
    assert [told["status"] for (told,) in found.values()] == [200, 200]


def test_a_pause_by_hand_is_told_at_once_too(usdm: Place, tmp_path: Path) -> None:
    """One without an end, and one that ends later than a moment: who paused it, and how to resume."""
    ask = """
        import httpx
        with httpx.Client() as client:
            got = client.get(URL + '/fapi/v1/time')
        answered(got.status_code, got.headers, got.json())
    """
    with Emulator("binance-usdm") as emulator:
        place = Place(emulator, tmp_path / "home")
        for options, after in (([], "60"), (["--seconds", "240"], "")):
            pause = [sys.executable, "-m", "ratekeeper", "pause", "everything", "--reason", "Ann is at lunch", *options]
            subprocess.run(pause, env=place.env, check=True, capture_output=True)
            (told,) = seen({"paused": place.start(ask)})["paused"]
            assert (told["status"], told["made"], told["body"]["code"]) == (429, "refused", -1003)
            assert "Ann is at lunch" in told["body"]["msg"] and "ratekeeper resume everything" in told["body"]["msg"]
            assert told["after"] == after or 100 < int(told["after"]) <= 240
            resume = [sys.executable, "-m", "ratekeeper", "resume", "everything"]
            subprocess.run(resume, env=place.env, check=True, capture_output=True)
        assert place.arrived() == 0


def test_who_waits_for_budget_is_told_when_the_ban_comes(tmp_path: Path) -> None:
    """In whatever process: the ban that one program meets ends the waits of another at once."""
    loop = """
        import httpx
        with httpx.Client() as client:
            got = client.get(URL + '/fapi/v1/klines', params={'symbol': 'BTCUSDT', 'interval': '1m', 'limit': 1500})
            print('full', flush=True)
            while got.status_code == 200:
                begun = time.monotonic()
                got = client.get(URL + '/fapi/v1/klines', params={'symbol': 'BTCUSDT', 'interval': '1m', 'limit': 1500})
            answered(got.status_code, got.headers, got.json())
            tell(waited=time.monotonic() - begun)
    """
    with Emulator("binance-usdm", limits={"weight-1m": (15, 600)}) as emulator:
        place = Place(emulator, tmp_path / "home")
        with place.start(loop) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "full\n"
            time.sleep(1.0)  # now it waits, for the rest of ten minutes
            assert program.poll() is None
            with place.gate() as gate:
                gate.block(f"{place.namespace}/ip:default", BAN, "ban", "by the exchange")
                try:
                    out, err = program.communicate(timeout=QUICK)
                finally:
                    program.kill()
    answer = json.loads(out.splitlines()[0])
    assert (answer["status"], answer["made"]) == (418, "refused"), err


def test_a_retry_that_may_wait_waits(tmp_path: Path) -> None:
    """A deadline that the program set is a wish to wait; without one it is told at once."""
    with Emulator("binance-usdm") as emulator:
        place = Place(emulator, tmp_path / "home")
        scope = f"{place.namespace}/ip:default"
        for deadline in (None, 20.0):
            retry = Policies(retry=Retry(deadline=deadline))
            with (
                place.gate(policies=retry, max_block_wait=0.5) as gate,
                httpx.Client(transport=Transport(gate=gate)) as client,
            ):
                gate.block(scope, 2, "ban", "by the exchange")
                if deadline is None:
                    with pytest.raises(Blocked):
                        client.get(f"{emulator.url}/fapi/v1/time")
                else:
                    assert client.get(f"{emulator.url}/fapi/v1/time").status_code == 200
