"""`ratekeeper run`: unchanged programs of every exchange SDK, in processes of their own, share and saturate a budget."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from tests.support.stood import Stood

from ratekeeper.testing import Emulator

pytestmark = pytest.mark.usefixtures("warm_programs")

RATEKEEPER = [sys.executable, "-m", "ratekeeper", "run", "--"]
QUIET = ["-W", "ignore"]
"""The SDKs leave clients open and import what is deprecated; what Ratekeeper warns of is logged."""

HEAD = """
import os, threading, time
URL, SECONDS = os.environ['URL'], float(os.environ['SECONDS'])
def saturate(call):
    made = []
    end = time.monotonic() + SECONDS
    def work():
        while time.monotonic() < end:
            call()
            made.append(1)
    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    print(len(made))
"""

RECEIVE = 1000
"""Milliseconds that the programs let a signature live: less than a window, so a call signed before its wait would fail."""

BINANCE = {
    "python-binance": """
        from binance.client import Client
        Client.API_URL, Client.REQUEST_RECVWINDOW = URL + '/api', RECEIVE
        client = Client('k1', 's1')
        saturate(lambda: client.get_account()['balances'])
    """,
    "python-binance-async": """
        import asyncio
        from binance.async_client import AsyncClient
        AsyncClient.API_URL, AsyncClient.REQUEST_RECVWINDOW = URL + '/api', RECEIVE
        made = 0
        async def work(client, end):
            global made
            while time.monotonic() < end:
                (await client.get_account())['balances']
                made += 1
        async def main():
            client = await AsyncClient.create('k1', 's1')
            end = time.monotonic() + SECONDS
            await asyncio.gather(*(work(client, end) for _ in range(2)))
            await client.close_connection()
        asyncio.run(main())
        print(made)
    """,
    "binance-connector": """
        from binance.spot import Spot
        client = Spot('k1', 's1', base_url=URL)
        saturate(lambda: client.account(recvWindow=RECEIVE)['balances'])
    """,
    "binance-sdk": """
        from binance_sdk_spot.spot import ConfigurationRestAPI, Spot
        client = Spot(ConfigurationRestAPI('k1', 's1', base_path=URL, timeout=10000))
        saturate(lambda: client.rest_api.get_account(recv_window=RECEIVE).data().balances)
    """,
}

OTHERS = {
    "bybit": """
        from pybit.unified_trading import HTTP
        session = HTTP(api_key='k1', api_secret='s1', recv_window=RECEIVE, max_retries=1)
        session.endpoint = URL
        saturate(lambda: session.get_open_orders(category='linear')['result']['list'])
    """,
    "okx": """
        from okx.MarketData import MarketAPI
        api = MarketAPI('k1', 's1', 'p1', domain=URL)
        def call():
            answer = api.get_candlesticks(instId='BTC-USDT')
            assert answer['code'] == '0', answer
        saturate(call)
    """,
}


def start(source: str, url: str, hosts: str, folder: Path, seconds: float, *, env: Any = None, head: str = HEAD) -> Any:
    """Starts a program under `ratekeeper run`."""
    file = folder / f"program-{len(list(folder.iterdir()))}.py"
    file.write_text(head + f"RECEIVE = {RECEIVE}\n" + textwrap.dedent(source))
    more = {"URL": url, "SECONDS": str(seconds), "RATEKEEPER_HOSTS": hosts, **(env or {})}
    command = [*RATEKEEPER, sys.executable, *QUIET, str(file)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **more}, text=True, **pipes)


def finish(programs: dict[str, Any]) -> dict[str, int]:
    """Waits for programs; how many calls each made. An error of any call would have ended its program."""
    made = {}
    try:
        for name, program in programs.items():
            out, err = program.communicate(timeout=60)
            assert program.returncode == 0, f"{name}: {err}"
            assert not re.search("ungoverned|is not as Ratekeeper knows it", err), err
            made[name] = int(out)
    finally:
        for program in programs.values():
            program.kill()
            program.wait()
    return made


def shares(emulator: Emulator, stood: Stood) -> list[float]:
    """The share used of each whole window but the first two (interpreters start) and the last (programs end), and that for
    which the machine left no time."""
    rows = [row for row in emulator.windows() if row["seconds"] < 60][2:-1]
    lost = [stood.share(row["start"], row["start"] + row["seconds"]) for row in rows]
    return [row["accepted"] / row["capacity"] + more for row, more in zip(rows, lost, strict=True)]


@pytest.mark.alone
def test_binance_sdks_share_one_budget(tmp_path: Path) -> None:
    """Four SDKs, four processes, one address: no refusal, no stale signature, all of the budget, and each gets some."""
    log = tmp_path / "arrivals.jsonl"
    with Emulator("binance-spot", window=2, capacity=600, log=str(log)) as emulator, Stood() as stood:
        folder = tmp_path / "programs"
        folder.mkdir()
        made = finish({name: start(code, emulator.url, emulator.hosts, folder, 10) for name, code in BINANCE.items()})
        totals, used = emulator.stats()["totals"], shares(emulator, stood)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert {row["status"] for row in rows} == {200}
    assert (totals["throttled"], totals["banned"]) == (0, 0)
    assert len(used) >= 2
    assert sum(used) / len(used) >= 0.97
    assert min(made.values()) >= sum(made.values()) / 8
    signed = [row for row in rows if row["route"].endswith("/account")]
    assert len(signed) == sum(made.values())


@pytest.mark.alone
def test_bybit_and_okx(tmp_path: Path) -> None:
    """Two processes of each SDK: no refusal in a body or a status, and all of the budget."""
    limits = {"bybit": "user-50-1s", "okx": "ip-40-2s"}
    most, period = 40, 3
    programs, totals = {}, {}
    (tmp_path / "programs").mkdir()
    with ExitStack() as stack:
        emulators = {}
        for name, limit in limits.items():
            options = {"limits": {limit: (most, period)}, "log": str(tmp_path / f"{name}.jsonl")}
            emulator = emulators[name] = stack.enter_context(Emulator(name, **options))
            (tmp_path / f"{name}.toml").write_text(emulator.rules())
            config = tmp_path / f"config-{name}.toml"
            config.write_text(f"rules = ['{name}.toml']")
            for number in range(2):
                place = (emulator.url, emulator.hosts, tmp_path / "programs", 15)
                env = {"RATEKEEPER_CONFIG": str(config)}
                programs[f"{name}-{number}"] = start(OTHERS[name], *place, env=env)
        made = finish(programs)
        totals = {name: emulator.stats()["totals"] for name, emulator in emulators.items()}
    for name, limit in limits.items():
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        times = [row["t"] for row in rows if limit in row["cost"]]
        assert (totals[name]["throttled"], totals[name]["banned"]) == (0, 0)
        # A sliding limit is used up when each call is followed, `most` calls later, by one just a period later.
        apart = [later - earlier for earlier, later in zip(times[most:], times[2 * most :], strict=False)]
        assert period / median(apart) >= 0.85, name
        both = made[f"{name}-0"], made[f"{name}-1"]
        assert min(both) >= sum(both) / 4


def test_a_moved_hook_leaves_the_http_client(tmp_path: Path) -> None:
    """An SDK whose private method has another name runs on; one line says so, and its calls are charged below."""
    import pybit

    site = tmp_path / "site" / "pybit"
    site.mkdir(parents=True)
    for file in Path(pybit.__file__).parent.glob("*.py"):
        (site / file.name).write_text(file.read_text().replace("_submit_request", "_send_request"))
    source = """
        import pybit.unified_trading
        assert pybit.__file__.startswith(os.environ['PYTHONPATH'].split(os.pathsep)[-1])
        session = pybit.unified_trading.HTTP(api_key='k1', api_secret='s1')
        session.endpoint = URL
        for _ in range(3):
            session.get_open_orders(category='linear')
        from ratekeeper import Gate
        print(sum(view.used for view in Gate.shared().read().ledgers if '/user-50-1s/' in view.key))
    """
    with Emulator("bybit") as emulator:
        (tmp_path / "programs").mkdir()
        env = {"PYTHONPATH": str(site.parent)}
        program = start(source, emulator.url, emulator.hosts, tmp_path / "programs", 0, env=env)
        out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (0, "3\n"), err
    assert re.fullmatch(
        r"[0-9 :+-]+ ratekeeper: pybit \S+ is not as Ratekeeper knows it"
        r" \(_V5HTTPManager._submit_request is gone\)\. .+\n",
        err,
    )


TWICE = """
    import requests
    from pybit.unified_trading import HTTP
    from okx.MarketData import MarketAPI
    from ratekeeper.adapters.okx import govern as govern_okx
    from ratekeeper.adapters.pybit import govern
    session = HTTP(api_key='k1', api_secret='s1')
    session.endpoint = URL
    govern(session).get_open_orders(category='linear')
    govern_okx(MarketAPI('k1', 's1', 'p1', domain=OKX)).get_candlesticks(instId='BTC-USDT')
    from ratekeeper import Gate
    views = Gate.shared().read().ledgers
    print(sum(view.used + view.inflight for view in views if '/user-50-1s/' in view.key or '/ip-40-2s/' in view.key))
"""


def test_a_program_that_knows_ratekeeper_is_not_charged_twice(tmp_path: Path) -> None:
    """A one-liner under `ratekeeper run`: object and class, SDK and HTTP client are governed; each call is charged once."""
    windows = {
        "bybit": {"user-50-1s": (50, 600.0)},
        "okx": {"ip-40-2s": (40, 600.0)},
    }  # none ends before it is looked at
    with ExitStack() as stack:
        bybit, okx = (stack.enter_context(Emulator(name, limits=limits)) for name, limits in windows.items())
        for emulator, name in ((bybit, "bybit"), (okx, "okx")):
            (tmp_path / f"{name}.toml").write_text(emulator.rules())
        config = tmp_path / "ratekeeper.toml"
        config.write_text('rules = ["bybit.toml", "okx.toml"]')
        source = f"OKX = {okx.url!r}\n" + textwrap.dedent(TWICE)
        hosts = f"{bybit.hosts},{okx.hosts}"
        program = start(source, bybit.url, hosts, tmp_path, 0, env={"RATEKEEPER_CONFIG": str(config)})
        out, err = program.communicate(timeout=60)
    assert (program.returncode, out, err) == (0, "2\n", "")


THREE = """
    from binance.client import Client
    Client.API_URL, Client.FUTURES_URL, Client.FUTURES_COIN_URL = SPOT + '/api', USDM + '/fapi', COINM + '/dapi'
    client = Client('k1', 's1', ping=False)
    client.get_klines(symbol='BTCUSDT', interval='1m', limit=10)
    client.futures_klines(symbol='BTCUSDT', interval='1m', limit=1500)
    client.futures_coin_klines(symbol='BTCUSD_PERP', interval='1m', limit=1500)
    client.futures_create_order(symbol='BTCUSDT', side='BUY', type='MARKET', quantity='1')
    from ratekeeper import Gate
    views = Gate.shared().read().ledgers
    found = {}
    for view in views:
        provider, limit, _ = view.key.split('/', 2)
        name = provider.split('@')[0] + ' ' + limit
        found[name] = found.get(name, 0) + view.used + view.inflight
    print(*[f'{name}={used}' for name, used in sorted(found.items()) if 'weight-1m' in name or 'orders-1m' in name])
"""


def test_one_client_three_providers(tmp_path: Path) -> None:
    """python-binance speaks to spot, USD-M and COIN-M: each call, and each first contact, is charged where it belongs."""
    providers = ("spot", "usdm", "coinm")
    with ExitStack() as stack:
        places = [stack.enter_context(Emulator(f"binance-{name}")) for name in providers]
        names = {name.upper(): place.url for name, place in zip(providers, places, strict=True)}
        source = "".join(f"{name} = {url!r}\n" for name, url in names.items()) + textwrap.dedent(THREE)
        program = start(source, "", ",".join(place.hosts for place in places), tmp_path, 0)
        out, err = program.communicate(timeout=60)
        counted = {place.hosts.split("=")[1]: place.windows("weight-1m", complete=False) for place in places}
    assert (program.returncode, err) == (0, "")
    charged = dict(
        pair.rsplit("=", 1) for pair in out.strip().replace(" weight", "/weight").replace(" orders", "/orders").split()
    )
    for name, rows in counted.items():
        assert int(charged[f"{name}/weight-1m"]) == sum(row["accepted"] for row in rows) > 1
    assert charged["binance-usdm/orders-1m"] == "1"


UNTIL, TEN = "while time.monotonic() < end:", "for _ in range(10):"
SEVERAL = """
[egress.addresses]
gone = "192.0.2.1"
a = "127.0.0.2"
b = "127.0.0.3"
[egress.pools."*"]
primary = ["gone", "a"]
backups = ["b"]
"""


@pytest.mark.parametrize("name", [*BINANCE, *OTHERS])
def test_an_unchanged_program_of_an_sdk_uses_all_addresses(name: str, tmp_path: Path) -> None:
    """More calls than one address has leave from two, none is refused; an address that the machine has not is left."""
    provider = name if name in OTHERS else "binance-spot"
    limits = {"bybit": {"ip-5s": (12, 600)}, "okx": {"ip-40-2s": (12, 600)}}.get(provider)
    options = {"limits": limits} if limits else {"window": 600, "capacity": 300}
    source = {**BINANCE, **OTHERS}[name]
    source = source.replace(UNTIL, TEN)
    (tmp_path / "programs").mkdir()
    log = tmp_path / "arrivals.jsonl"
    with Emulator(provider, **options, log=str(log)) as emulator:
        (tmp_path / "rules.toml").write_text(emulator.rules())
        config = tmp_path / "ratekeeper.toml"
        config.write_text(('rules = ["rules.toml"]\n' if limits else "") + SEVERAL)
        place = (emulator.url, emulator.hosts, tmp_path / "programs", 0)
        program = start(source, *place, env={"RATEKEEPER_CONFIG": str(config)}, head=HEAD.replace(UNTIL, TEN))
        made = finish({name: program})
        totals = emulator.stats()["totals"]
    assert made == {name: 20}
    assert (totals["throttled"], totals["banned"]) == (0, 0)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert {row["ip"] for row in rows} == {"127.0.0.2", "127.0.0.3"}
