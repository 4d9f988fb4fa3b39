"""Every rule file, enforced by the emulator and saturated by a governed client: nothing refused, nothing left unused.

The emulator runs as a process with a clock that is wrong and latency on both ways. The client is aiohttp with Ratekeeper's
middleware. Each limit that a short test can fill gets workers of its own, who ask for more than there is.
Windows of a minute and more are shortened; the client reads the shortened rules from the emulator.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import pytest
from tests.support.calls import SECOND, Pace, Spend, spends
from tests.support.stood import Stood

from ratekeeper import Gate, Priority
from ratekeeper.adapters.aiohttp import Middleware
from ratekeeper.ledger.limit import Limit, Window
from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.provider import Provider
from ratekeeper.testing import Emulator

pytestmark = [pytest.mark.alone, pytest.mark.xdist_group("every provider")]

SKEW = 7.3
"""Seconds by which the emulator's clock is ahead."""
PACE = Pace(rate=50, most=100, shortest=1.5, longest=2)
WORKERS = 24
"""Calls of one limit that may be under way or waiting."""
WARM_UP = 2.2
"""Seconds after which the clock is known, and every limit is in its stride."""
SECONDS = 6.5
SLACK = 0.05
"""What may be lost beyond what the arithmetic loses: waking up, in a process that shares its processor with another."""
FIXED = 0.97

AT_ONCE = 3
"""Providers."""
PROVIDERS = sorted(path.stem for path in DATA.glob("*.toml"))


class Client:
    """Workers behind the gate, and how long their calls were really under way."""

    def __init__(self, url: str, gate: Gate) -> None:
        self._url = url
        # Nothing is kept for a higher class, since there is none.
        self._middlewares = (Middleware(gate, priority=Priority.CRITICAL), self._time)
        self.under_way: dict[str, list[float]] = {}

    async def _time(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        begin = time.monotonic()
        response = await handler(request)
        await response.read()
        self.under_way.setdefault(request.headers["x-limit"], []).append(time.monotonic() - begin)
        return response

    async def run(self, wanted: Sequence[Spend], seconds: float, clocks: Sequence[str]) -> None:
        """Ask what time it is, as clients of exchanges do; then for all of `wanted`, for so many seconds."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self._url, connector=connector, middlewares=self._middlewares) as session:
            for path in [*clocks] * 2:
                async with session.get(path, headers={"x-limit": ""}) as got:
                    await got.read()
            workers = [
                asyncio.create_task(self._work(session, spend))
                for spend in wanted
                for _ in range(min(WORKERS, spend.calls + 2))
            ]
            await asyncio.sleep(seconds)
            for worker in workers:
                worker.cancel()
            for ended in await asyncio.gather(*workers, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError), repr(ended)

    async def _work(self, session: aiohttp.ClientSession, spend: Spend) -> None:
        call = spend.call
        headers = {**(call.headers or {}), "x-limit": spend.limit.name}
        params = {name: str(value) for name, value in (call.params or {}).items()}
        while True:
            async with session.request(call.method, call.path, params=params, headers=headers, json=call.body) as got:
                await got.read()


def clocks_of(provider: Provider) -> list[str]:
    """The paths at which the provider tells its time."""
    routes = [learn.route.partition(" ") for learn in provider.file.learn if learn.clock]
    return [path for method, _, path in routes if method == "GET" and not set(path) & set("*{?[")]


def shares(spend: Spend, arrivals: list[float], begin: float) -> list[float]:
    """The share of the limit that was used, window by window, after `begin`; 1 is all that whole calls can use."""
    limit, period, at_once = spend.limit, spend.limit.period / SECOND, spend.calls
    if limit.window is Window.FIXED:
        windows = Counter(moment // period for moment in arrivals)
        return [windows[window] / at_once for window in range(int(-(-begin // period)), int(arrivals[-1] // period))]
    if limit.window is Window.BUCKET:  # a first burst, and then only what drains
        return [(len(arrivals) - at_once) / (arrivals[-1] - arrivals[0]) / spend.rate]
    if limit.window is Window.FIRST:
        starts = [0]  # numbers of the arrivals that opened a window
        for number, moment in enumerate(arrivals):
            if moment >= arrivals[starts[-1]] + period:
                starts.append(number)
        return [
            (after - before) / at_once * period / (arrivals[after] - arrivals[before])
            for before, after in pairwise(starts)
            if arrivals[after] >= begin
        ]
    late = [moment for moment in arrivals if moment >= begin]
    # What arrives now can arrive again a period later: how much later was it?
    return [period / (after - before) for before, after in zip(late, late[at_once:], strict=False)]


def bound(spend: Spend, under_way: float) -> float:
    """The share that must be used: what the arithmetic gives for calls that are under way so many seconds."""
    limit, period = spend.limit, spend.limit.period / SECOND
    if limit.window is Window.FIXED:
        return FIXED
    if limit.window is Window.BUCKET:
        # As many calls as the bucket holds go round: under way, and then until they have drained.
        round_trip = under_way + 1 / spend.rate
        return min(FIXED, spend.calls / spend.rate / round_trip - SLACK)
    # A charge leaves a period after its answer, together with those of the 64th of a period around it.
    return period / (period + under_way + period / 64) - SLACK


def shortened(name: str) -> tuple[list[Spend], dict[str, tuple[int, float]]]:
    """What to spend of a provider, and the limits to change for it: those that are spent, and those in the way."""
    provider = Rulebook.load().provider(name)
    wanted = spends(provider, PACE)
    periods = {spend.limit.name: spend.limit for spend in wanted}
    changes = {limit.name: limit for limit in periods.values() if limit.period != provider.limits[limit.name].period}
    for spend in wanted:
        for charge in provider.plan(spend.call).charges:
            if charge.limit.name not in periods:
                changes[charge.limit.name] = _out_of_the_way(charge.limit, charge.cost * spend.rate)
    return wanted, {limit.name: (limit.capacity, limit.period / SECOND) for limit in changes.values()}


def _out_of_the_way(limit: Limit, units: float) -> Limit:
    """The limit with a period in which it allows twice so many units a second."""
    if not limit.period:
        return limit
    period = (limit.refill or limit.capacity) / (2 * units) * SECOND
    return limit if period >= limit.period else replace(limit, period=round(period))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[list[str]]]]:
    """All providers, a few at a time: a client hardly needs a fifth of a processor, and waits for the rest of the time.

    On a machine that is busy with other things the share is measured a second time; a refusal is one too many in either.
    """

    def live(name: str, folder: Path) -> list[str]:
        low = saturate(name, folder / "first")
        again = low and saturate(name, folder / "second")
        return again and low + again

    folders = {name: tmp_path_factory.mktemp("provider") for name in PROVIDERS}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(live, name, folders[name]) for name in PROVIDERS}


@pytest.mark.parametrize("name", PROVIDERS)
def test_saturated_and_never_refused(name: str, results: dict[str, Future[list[str]]]) -> None:
    """A governed client uses what the limits allow, and not one call is refused."""
    low = results[name].result(timeout=110)
    assert not low, low


def saturate(name: str, folder: Path) -> list[str]:
    """Run a client against the emulator; returns what was not used as it should be."""
    folder.mkdir()
    wanted, changes = shortened(name)
    assert wanted, f"no limit of {name} can be filled by a short test"
    latency = (5.0, 20.0) if all(spend.limit.window is Window.FIXED for spend in wanted) else (0.0, 1.0)
    log, rules = folder / "arrivals.jsonl", folder / f"{name}.toml"
    with Emulator(name, limits=changes, latency=latency, skew=SKEW, log=log) as emulator:
        rules.write_text(emulator.rules(), encoding="utf-8")
        with Gate("memory://", hosts=emulator.hosts, rules=[rules]) as gate:
            client = Client(emulator.url, gate)
            begin = emulator.stats()["now"] + WARM_UP
            with Stood() as stood:
                asyncio.run(client.run(wanted, SECONDS, clocks_of(gate.provider(name))))
            lost = stood.share(begin - SKEW, time.time())
        stats = emulator.stats()
    assert (stats["totals"]["throttled"], stats["totals"]["banned"]) == (0, 0), stats["statuses"]
    assert set(stats["statuses"]) <= {"200", "400", "401"}
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    low = []
    for spend in wanted:
        limit, under_way = spend.limit, client.under_way[spend.limit.name]
        arrivals = [row["t"] for row in rows if row["cost"].get(limit.name) == spend.cost]
        mean = sum(under_way) / len(under_way)
        # The median: a machine that stands still for a moment says nothing about the arithmetic.
        share, least = median(shares(spend, arrivals, begin) or [0.0]), bound(spend, mean) * (1 - lost)
        said = f"{limit.name}: {share:.1%} of {limit.capacity} in {limit.period / SECOND:g} s, bound {least:.1%}"
        print(f"{name} {said}, {spend.rate:.0f} calls/s, {1000 * mean:.0f} ms under way, {limit.window}")
        if share < least:
            low.append(said)
    return low
