"""`ratekeeper run`: real programs that know nothing of Ratekeeper, in real processes, against a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratekeeper import Gate
from ratekeeper.apps.run import environment

sys.path.append(str(Path(__file__).parents[1] / "support"))
from origin import Origin

RATEKEEPER = [sys.executable, "-m", "ratekeeper", "run"]


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """A server that every process of the test takes for Binance's futures."""
    with Origin() as server:
        monkeypatch.setenv("RATEKEEPER_HOSTS", f"{server.place}=binance-usdm")
        monkeypatch.setenv("URL", server.url + "/fapi/v1")
        yield server


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Writes a program and runs it under `ratekeeper run`."""

    def start(source: str, *options: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "program.py"
        file.write_text("import os\nURL = os.environ['URL']\n" + textwrap.dedent(source))
        warnings = ["-W", "error", "-W", "ignore::ResourceWarning"]  # the programs leave clients open, as programs do
        command = [*RATEKEEPER, *options, "--", sys.executable, *warnings, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)
        assert not check or (done.returncode == 0 and not done.stderr), done.stderr
        return done

    return start


def weight() -> int:
    """Weight that all programs of the test spent, without the first contact's 1."""
    with Gate() as gate:
        views = [view for view in gate.read().ledgers if "/weight-1m/" in view.key]
        return sum(view.used + view.inflight for view in views) - 1


CLIENTS = {
    "requests": "import requests; assert requests.get(URL + '/klines?limit=1500').json()['ok']",
    "requests-session": """
        from requests import Session
        with Session() as session:
            assert session.get(URL + '/klines', params={'limit': 1500}).json()['ok']
    """,
    "urllib3": "import urllib3; assert urllib3.PoolManager().request('GET', URL + '/klines?limit=1500').json()['ok']",
    "httpx": "import httpx; assert httpx.get(URL + '/klines?limit=1500').json()['ok']",
    "httpx2": "import httpx2; assert httpx2.get(URL + '/klines?limit=1500').json()['ok']",
    "httpx-async-mounts": """
        import asyncio, httpx
        async def main():
            async with httpx.AsyncClient(mounts={'http://': httpx.AsyncHTTPTransport()}) as client:
                assert (await client.get(URL + '/klines', params={'limit': 1500})).json()['ok']
        asyncio.run(main())
    """,
    "httpx-proxy": """
        import httpx
        with httpx.Client(proxy=os.environ['URL'].removesuffix('/fapi/v1')) as client:
            assert client.get(URL + '/klines?limit=1500').json()['ok']
    """,
    "aiohttp": """
        import aiohttp, asyncio
        async def main():
            async with aiohttp.ClientSession() as session, session.get(URL + '/klines', params={'limit': 1500}) as answer:
                assert (await answer.json())['ok']
        asyncio.run(main())
    """,
    "ccxt": """
        import ccxt
        exchange = ccxt.binanceusdm()
        exchange.urls['api'] = dict.fromkeys(exchange.urls['api'], URL)
        assert exchange.fapiPublicGetKlines({'symbol': 'BTCUSDT', 'limit': 1500})['ok']
    """,
    "ccxt-async": """
        import asyncio, ccxt.pro
        async def main():
            exchange = ccxt.pro.binanceusdm()
            exchange.urls['api'] = dict.fromkeys(exchange.urls['api'], URL)
            assert (await exchange.fapiPublicGetKlines({'symbol': 'BTCUSDT', 'limit': 1500}))['ok']
            await exchange.close()
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_unchanged_programs_are_governed(client: str, program: Any, origin: Origin) -> None:
    """Whatever library a program uses, and however, its one call of weight 10 is charged once."""
    program(CLIENTS[client])
    assert len(origin.paths()) == 1
    assert weight() == 10


OURS = {
    "httpx": """
        import httpx
        from ratekeeper.adapters.httpx import Transport
        with httpx.Client(transport=Transport(), follow_redirects=True) as client:
            assert client.get(URL + '/klines?limit=1500').json()['ok']
            assert client.get(URL + '/klines?limit=1500&do=redirect').json()['ok']
    """,
    "requests": """
        import requests
        from ratekeeper.adapters.requests import Adapter
        with requests.Session() as session:
            session.mount('http://', Adapter())
            assert session.get(URL + '/klines?limit=1500').json()['ok']
            assert session.get(URL + '/klines?limit=1500&do=redirect').json()['ok']
    """,
    "aiohttp": """
        import aiohttp, asyncio
        from ratekeeper.adapters.aiohttp import middleware
        async def main():
            async with aiohttp.ClientSession(middlewares=(middleware,)) as session:
                for more in ('', '&do=redirect'):
                    async with session.get(URL + '/klines?limit=1500' + more) as answer:
                        assert (await answer.json())['ok']
        asyncio.run(main())
    """,
    "ccxt": """
        import ccxt
        from ratekeeper.adapters.ccxt import govern
        exchange = govern(ccxt.binanceusdm())
        exchange.urls['api'] = dict.fromkeys(exchange.urls['api'], URL)
        exchange.fapiPublicGetKlines({'limit': 1500})
        exchange.fapiPublicGetKlines({'limit': 1500, 'do': 'redirect'})
    """,
}


@pytest.mark.usefixtures("warm_program")
@pytest.mark.parametrize("client", OURS)
def test_a_program_that_knows_ratekeeper_is_not_charged_twice(client: str, program: Any, origin: Origin) -> None:
    """Two calls and one redirect (to a call of weight 5): each real request is charged once, whoever saw it first."""
    program(OURS[client])
    assert len(origin.paths()) == 3
    assert weight() == 25


def test_inner_retries_are_charged(program: Any, origin: Origin) -> None:
    """urllib3's own retries and redirects, and aiohttp's resend on a dropped connection, are real requests."""
    program(
        """
        import aiohttp, asyncio, urllib3
        http = urllib3.PoolManager(retries=urllib3.Retry(3, status_forcelist=[503], backoff_factor=0))
        assert http.request('GET', URL + '/time?do=fail-once').json()['seen'] == 2
        assert http.request('GET', URL + '/time?do=redirect').json()['ok']
        async def main():
            async with aiohttp.ClientSession() as session:
                for do in ('ok', 'reset-once'):
                    async with session.get(URL + '/time', params={'do': do}) as answer:
                        assert (await answer.json())['ok']
        asyncio.run(main())
        """
    )
    assert len(origin.paths()) == 7
    assert weight() == 7


REFUSED = {
    "requests": "import requests; call, family = requests.get, requests.RequestException",
    "urllib3": "import urllib3; call, family = urllib3.PoolManager().urlopen, urllib3.exceptions.HTTPError",
    "httpx": "import httpx; call, family = httpx.get, httpx.TransportError",
    "httpx2": "import httpx2; call, family = httpx2.get, httpx2.TransportError",
    "aiohttp": """
        import aiohttp, asyncio
        family = aiohttp.ClientError
        async def get(url):
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                await answer.read()
        call = lambda url: asyncio.run(get(url))
    """,
}


@pytest.mark.usefixtures("warm_program")
@pytest.mark.parametrize("client", REFUSED)
def test_refusals_are_the_librarys_own_errors(client: str, program: Any, origin: Origin) -> None:
    """A signed call that would go stale in the queue raises what the program's except clauses already catch."""
    origin.limits = [{"rateLimitType": "REQUEST_WEIGHT", "interval": "DAY", "intervalNum": 1, "limit": 5}]
    arguments = "'GET', url" if client == "urllib3" else "url"
    done = program(
        textwrap.dedent(REFUSED[client])
        + textwrap.dedent(f"""
        import time
        url = URL + f'/openOrders?symbol=A&timestamp={{time.time() * 1000:.0f}}&signature=s'
        for _ in range(4):
            call({arguments})
        try:
            call({arguments})
        except family as error:
            print(type(error).__name__, error)
        """)
    )
    assert done.stdout.startswith("SignatureWouldExpire already signed")
    assert len(origin.paths()) == 4


CHILDREN = {
    "subprocess": """
        import subprocess, sys
        subprocess.run([sys.executable, '-c', 'import requests, sys; requests.get(sys.argv[1])', URL + '/time'], check=True)
    """,
    "module": """
        import pathlib, subprocess, sys
        pathlib.Path('child.py').write_text('import httpx, sys; httpx.get(sys.argv[1])')
        subprocess.run([sys.executable, '-m', 'child', URL + '/time'], check=True)
    """,
    "spawn": """
        import multiprocessing, requests
        if __name__ == '__main__':
            process = multiprocessing.get_context('spawn').Process(target=requests.get, args=(URL + '/time',))
            process.start(); process.join()
    """,
    "fork": """
        import multiprocessing, requests
        requests.get(URL + '/time')
        process = multiprocessing.get_context('fork').Process(target=requests.get, args=(URL + '/time',))
        process.start(); process.join()
    """,
}


@pytest.mark.parametrize("child", CHILDREN)
def test_python_children_are_governed(child: str, program: Any, origin: Origin, tmp_path: Path) -> None:
    """Processes that the program starts share its budget, however it starts them."""
    program(CHILDREN[child], cwd=tmp_path)
    count = 2 if child == "fork" else 1
    assert len(origin.paths()) == count
    assert weight() == count


def test_clients_made_before_any_import_of_ours(program: Any, origin: Origin, tmp_path: Path) -> None:
    """A client made in the user's own sitecustomize, which still runs, is governed like any other."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import httpx, requests\nCLIENT = httpx.Client()\n")
    program(
        """
        import sitecustomize, sys
        assert sitecustomize.CLIENT.get(URL + '/klines?limit=1500').json()['ok']
        assert 'startup' not in ''.join(sys.path)
        """,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert weight() == 10


def test_wait_is_outside_the_timeout_of_aiohttp(program: Any, origin: Origin) -> None:
    """Under `run` the wait is over before aiohttp's total timeout starts, so a short one does not break a wait."""
    with Gate() as gate:
        gate.block(f"binance-usdm@{origin.place}", 3.5)
    done = program(
        """
        import aiohttp, asyncio, time
        async def main():
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(0.5)) as session:
                began = time.monotonic()
                async with session.get(URL + '/time') as answer:
                    print(answer.status, time.monotonic() - began)
        asyncio.run(main())
        """
    )
    status, waited = done.stdout.split()
    assert status == "200"
    assert float(waited) > 0.5


def test_options_reach_the_program(program: Any, origin: Origin, tmp_path: Path) -> None:
    """`--home`, `--priority` and `--config` become the environment that the program's gate reads."""
    config = tmp_path / "ratekeeper.toml"
    config.write_text("")
    wanted = [str(tmp_path / "there"), "high", str(config)]
    options = ["--home", wanted[0], "--priority", wanted[1], "--config", wanted[2]]
    done = program("print(*(os.environ['RATEKEEPER_' + n] for n in ('HOME', 'PRIORITY', 'CONFIG')))", *options)
    assert done.stdout.split() == wanted


def test_exit_codes_and_signals_are_the_programs_own(program: Any, origin: Origin) -> None:
    """The command takes the place of `ratekeeper run`: what it returns and what kills it is what the caller sees."""
    assert program("raise SystemExit(7)", check=False).returncode == 7
    assert program("import os; os.kill(os.getpid(), 15)", check=False).returncode == -signal.SIGTERM
    done = subprocess.run([*RATEKEEPER, "no-such-command-here"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (127, "ratekeeper run: no-such-command-here: No such file or directory\n")
    done = subprocess.run([*RATEKEEPER, "--", "/"], capture_output=True, text=True, check=False)
    assert done.returncode == 126


def test_own_options_of_the_command_pass(tmp_path: Path) -> None:
    """Options after the command's name are the command's, with and without `--`."""
    for dashes in ([], ["--"]):
        command = [*RATEKEEPER, *dashes, sys.executable, "-c", "import sys; print(sys.argv[1:])", "--home", "x", "-h"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "['--home', 'x', '-h']"


def test_interpreter_without_ratekeeper(tmp_path: Path) -> None:
    """Another environment of the same Python finds ours, and nothing else of ours; in another Python a program that imports
    nothing that we govern is left alone (for others see `test_run_refuses`)."""
    venv.create(tmp_path / "env", symlinks=True)
    python = str(tmp_path / "env" / "bin" / "python")
    code = (
        "import ratekeeper, ratekeeper.gate.gate, importlib.util as u; print(ratekeeper.__file__, u.find_spec('ccxt'))"
    )
    done = subprocess.run([*RATEKEEPER, python, "-c", code], capture_output=True, text=True, check=True)
    assert re.match(r"\S+ratekeeper/__init__.py None\n", done.stdout) and not done.stderr
    elsewhere = {**environment(dict(os.environ)), "RATEKEEPER_RUN_FROM": "cpython-399"}
    done = subprocess.run([python, "-c", "print(7)"], capture_output=True, text=True, check=True, env=elsewhere)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_wrong_settings_stop_before_the_program_starts(program: Any, origin: Origin) -> None:
    """What every child would stumble over is said once, by `ratekeeper run` itself."""
    for name, value in (
        ("RATEKEEPER_HOSTS", "nonsense"),
        ("RATEKEEPER_HOSTS", "x=no-such"),
        ("RATEKEEPER_STORE", "tape://"),
    ):
        done = program("print(7)", check=False, env={**os.environ, name: value})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("ratekeeper: ") and done.stderr.count("\n") == 1


def test_a_gate_that_cannot_be_made_lets_nothing_pass(origin: Origin) -> None:
    """Nobody can say which hosts have rules: calls are refused with the reason, in the client's family; the switch lets them
    pass, and says so."""
    code = (
        "import requests\n"
        f"try: print(requests.get({origin.url!r} + '/time').status_code)\n"
        "except requests.RequestException as error: print(error)\n"
    )
    env = {**environment(dict(os.environ)), "RATEKEEPER_HOSTS": "nonsense"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "is not HOST[:PORT]=PROVIDER" in done.stdout
    assert not origin.arrivals
    env["RATEKEEPER_UNGOVERNED_ON_ERROR"] = "1"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "200\n"
    assert "passes ungoverned" in done.stderr


def test_nested_runs_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start-up folder is on the path once, however often programs are started under each other."""
    once = environment({"PYTHONPATH": "/somewhere"})
    assert environment(once) == once
    assert once["PYTHONPATH"].split(os.pathsep)[1:] == ["/somewhere"]


def test_start_up_is_cheap() -> None:
    """A program that uses none of the libraries pays less than 15 ms, and none of Ratekeeper is imported."""
    env = environment(dict(os.environ))
    costs = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import sys; print('ratekeeper' in sys.modules)"],
            capture_output=True,
            text=True,
            check=True,
            env=env,
        )
        assert done.stdout == "False\n"
        found = re.search(r"\|\s+(\d+) \|\s+sitecustomize", done.stderr)
        assert found is not None
        costs.append(int(found[1]))
        time.sleep(0)
    assert min(costs) < 15_000
