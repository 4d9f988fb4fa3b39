"""The rules read what the emulator says: its headers, its list of limits, its refusals and its bans."""

from __future__ import annotations

import http.client
import time

import pytest

from ratekeeper.rules.book import Rulebook
from ratekeeper.rules.call import Answer, Feedback, Outcome, Request
from ratekeeper.rules.provider import Provider
from ratekeeper.testing import Emulator

SECOND = 1_000_000_000
SKEW = 3.0


def ask(emulator: Emulator, provider: Provider, path: str) -> Feedback:
    """What the rules make of the answer to one GET."""
    connection = http.client.HTTPConnection(emulator.url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()
    plan = provider.plan(Request("GET", path))
    return provider.feedback(plan, Answer(answer.status, headers, body), now=time.time_ns())


@pytest.mark.parametrize(("name", "prefix", "info"), [("binance-usdm", "/fapi/v1", 1), ("binance-spot", "/api/v3", 20)])
def test_limits_use_refusal_ban_and_clock_are_understood(name: str, prefix: str, info: int) -> None:
    """A window of half an hour is learned; use, clock, 429 and 418 are read as what they are."""
    with Emulator(name, window=1_800, capacity=info + 3, ban_after=2, skew=SKEW) as emulator:
        book = Rulebook.load(hosts={emulator.url.removeprefix("http://"): name})
        learned = ask(emulator, book.provider(name), f"{prefix}/exchangeInfo").learned
        assert learned["weight-1m"] == (info + 3, 1_800 * SECOND)
        provider = book.provider(name).with_learned(learned)
        for used in (info + 1, info + 2, info + 3):
            told = ask(emulator, provider, f"{prefix}/time")
            assert told.outcome is Outcome.OK
            assert {key.split("/")[1]: value for key, value in told.used.items()}["weight-1m"] == used
            assert told.server_time is not None
            assert told.server_time[0] / SECOND - time.time() == pytest.approx(SKEW, abs=2)
        throttled = ask(emulator, provider, f"{prefix}/time")
        assert throttled.outcome is Outcome.THROTTLED
        assert [key.split("/")[1] for key in throttled.full] == ["weight-1m"]
        banned = ask(emulator, provider, f"{prefix}/time")
        assert banned.outcome is Outcome.BANNED
        [block] = banned.blocks
        assert block.scope.endswith("/ip:default")
        assert block.wait is not None
        assert max(block.wait.at / SECOND - time.time(), block.wait.after / SECOND) == pytest.approx(3_600, abs=10)
