"""Unchanged ccxt programs that call an exchange without a rule file: one pace for all of them, taken from ccxt's tables."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratekeeper import Gate

sys.path.append(str(Path(__file__).parents[1] / "support"))
from origin import Origin

pytestmark = pytest.mark.usefixtures("warm_programs")

RATEKEEPER = [sys.executable, "-m", "ratekeeper"]
SECONDS, SPACING, BURST = 4.0, 0.25, 0.5
"""How long the programs run; hollaex's rateLimit, and the bucket that comes of it (two calls), in seconds."""

HEAD = """
    import os, time
    import ccxt.async_support  # which takes long; the time counts from here
    url, end = os.environ["URL"], time.time() + float(os.environ["SECONDS"])
"""
SYNC = """
    exchange = ccxt.hollaex()
    exchange.urls["api"] = {"rest": url}
    while time.time() < end:
        exchange.publicGetTicker()
"""
ASYNC = """
    import asyncio

    async def main():
        exchange = ccxt.async_support.hollaex()
        exchange.urls["api"] = {"rest": url}
        exchange.timeout_on_exit = 0

        async def ask():
            while time.time() < end:
                await exchange.publicGetTicker()

        await asyncio.wait([asyncio.create_task(ask()) for _ in range(2)], timeout=end - time.time())
        await exchange.close()

    asyncio.run(main())
"""


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A server that no rules speak of."""
    with Origin() as server:
        yield server


def test_three_programs_keep_one_pace(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sync programs and an async one: no span sees more than the bucket allows, and all of them are served."""
    monkeypatch.setenv("URL", origin.url)
    monkeypatch.setenv("SECONDS", str(SECONDS))
    running = []
    for number, source in enumerate((SYNC, SYNC, ASYNC)):
        file = tmp_path / f"bot{number}.py"
        file.write_text(textwrap.dedent(HEAD) + textwrap.dedent(source), encoding="utf-8")
        command = [*RATEKEEPER, "run", "--", sys.executable, "-W", "ignore", str(file)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [each.communicate(timeout=60) for each in running]
    assert [each.returncode for each in running] == [0, 0, 0], said
    at = sorted(arrival.at for arrival in origin.arrivals)
    assert len(at) >= 6 and {arrival.path for arrival in origin.arrivals} == {"/v2/ticker"}
    for first in range(len(at)):
        for last in range(first, len(at)):
            assert (last - first + 1) * SPACING <= BURST + (at[last] - at[first]) + 0.001
    with Gate() as gate:
        owners = {view.key for view in gate.read().ledgers}
    assert owners == {f"ccxt-hollaex@{origin.place}/pace-500ms/ip:default"}
    # The name is known to every process, also to one that never saw an exchange object.
    pause = subprocess.run(
        [*RATEKEEPER, "pause", "ccxt-hollaex"], capture_output=True, text=True, timeout=60, check=False
    )
    assert pause.returncode == 0 and "ccxt-hollaex is paused" in pause.stdout, pause
