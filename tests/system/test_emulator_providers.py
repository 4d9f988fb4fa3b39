"""The emulator serves any rule file: routes, headers, penalties, websockets and the rules themselves, over real HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ratekeeper.rules.book import DATA, Rulebook
from ratekeeper.rules.call import Answer, Feedback, Outcome, Request
from ratekeeper.rules.files import parse
from ratekeeper.testing import Emulator

MINE = """
format = 1
name = "mine"
title = "A rule file of my own"
hosts = ["mine.invalid"]
source = "ME"

[sources]
ME = { title = "invented", read = 2026-11-21, confidence = "?" }

[owners]
account.header = "x-key"
pair.value = "body.pair"

[limits.calls-1d]
unit = "calls"
capacity = 3
period = "1d"
window = "fixed"
scope = ["account", "pair"]
headers = { remaining = "x-left", limit = "x-limit", reset = "x-reset", reset_format = "epoch-s", cost = "x-cost" }

[limits.few-1d]
unit = "few"
capacity = 1
period = "1d"

[limits.slots]
unit = "slots"
capacity = 1
window = "slots"

[limits.connects-1d]
unit = "connects"
capacity = 2
period = "1d"

[limits.messages-1d]
unit = "messages"
capacity = 3
period = "1d"
scope = "connection"

[default]
cost = { calls = 1 }

[[routes]]
match = "POST /few"
cost = { few = 1 }

[[routes]]
match = "GET /stream"
cost = { slots = 1 }

[[routes]]
match = "GET /cheap"
cost = { calls = 2 }
ok = { calls = 1 }

[[routes]]
match = "GET /limits"
cost = { calls = 1 }

[[routes]]
match = "WS-CONNECT /ws"
cost = { connects = 1 }

[[routes]]
match = "WS-SEND /ws"
cost = { messages = 1 }

[[refusals]]
status = [400]
body = { "error.code" = [77] }
text = "few (left|gone)"
outcome = "throttled"
limits = ["few"]
block = "account"
hold = "1h"

[[learn]]
route = "GET /limits"
rows = "data.rows"
type = "kind"
units = { CALLS = "calls" }
interval = "span"
limit = "most"
used = "now"
clock = "data.clock"
"""


def ask(
    emulator: Emulator, method: str, path: str, *, key: str = "", body: Any = None
) -> tuple[int, dict[str, str], Any]:
    """Status, headers in lower case and decoded body of one call."""
    connection = http.client.HTTPConnection(emulator.url.removeprefix("http://"), timeout=5)
    headers = {"content-type": "application/json"} | ({"x-key": key} if key else {})
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, {n.lower(): v for n, v in answer.getheaders()}, json.loads(answer.read())
    finally:
        connection.close()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The path of an invented rule file."""
    path = tmp_path / "mine.toml"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_a_rule_file_of_ones_own(mine: Path) -> None:
    """Owners by header and body field, all kinds of headers, actual costs and learned rows, as the file says."""
    with Emulator(str(mine)) as emulator:
        assert emulator.hosts.endswith("=mine")
        lefts = [ask(emulator, "POST", "/x", key="k1", body={"pair": "AB"})[1]["x-left"] for _ in range(3)]
        assert lefts == ["2", "1", "0"]
        status, headers, _ = ask(emulator, "POST", "/x", key="k1", body={"pair": "AB"})
        assert (status, headers["x-left"], headers["x-limit"], headers["x-cost"]) == (429, "0", "3", "1")
        assert int(headers["x-reset"]) % 86_400 == 0
        assert "retry-after" in headers
        for other in ({"key": "k2", "body": {"pair": "AB"}}, {"key": "k1", "body": {"pair": "CD"}}):
            assert ask(emulator, "POST", "/x", **other)[0] == 200  # type: ignore[arg-type]
        assert ask(emulator, "GET", "/cheap", key="k3")[1]["x-left"] == "2"
        told = told_by(emulator, mine, "GET", "/limits")
        assert told.learned["calls-1d"] == (3, 86_400 * 10**9)
        assert list(told.used.values()) == [1]
        assert told.server_time is not None


def told_by(emulator: Emulator, path: Path, method: str, target: str) -> Feedback:
    """What a rule file makes of an answer."""
    provider = Rulebook.load(extra=[path]).provider("mine")
    status, headers, body = ask(emulator, method, target)
    plan = provider.plan(Request(method, target))
    return provider.feedback(plan, Answer(status, headers, json.dumps(body).encode()), now=0)


def test_a_penalty_holds_its_owner_and_nobody_else(mine: Path) -> None:
    """The refusal's own words, for the account that went too far, also on other routes, until the penalty ends."""
    with Emulator(str(mine), ban=1.0, ban_after=0) as emulator:
        assert ask(emulator, "POST", "/few", key="k1")[0] == 200
        status, _, body = ask(emulator, "POST", "/few", key="k1")
        assert (status, body["error"]["code"], body["message"]) == (400, 77, "few left")
        assert ask(emulator, "POST", "/x", key="k2")[0] == 200
        assert emulator.stats()["totals"]["throttled"] == 1


def test_slots_are_free_again_after_the_answer(mine: Path) -> None:
    """Two at once are one too many; one after the other are not."""

    async def both(emulator: Emulator) -> list[int]:
        async with aiohttp.ClientSession(emulator.url) as session:

            async def one() -> int:
                async with session.get("/stream") as answer:
                    return answer.status

            return sorted(await asyncio.gather(one(), one()))

    with Emulator(str(mine), latency=(150, 150)) as emulator:
        assert asyncio.run(both(emulator)) == [200, 429]
        assert ask(emulator, "GET", "/stream")[0] == 200


def test_websockets_are_opened_counted_and_closed(mine: Path) -> None:
    """Connects count per address, messages per connection; one message too many closes the socket with 1008."""

    async def talk(url: str) -> None:
        async with aiohttp.ClientSession(url) as session:
            for _ in range(2):
                async with session.ws_connect("/ws") as wire:
                    await wire.send_str("ping")
                    assert (await wire.receive()).data == "pong"
                    await wire.send_str("hello")
                    assert (await wire.receive()).data == "hello"
                    await wire.send_bytes(b"x")
                    assert (await wire.receive()).data == b"x"
                    await wire.send_str("one too many")
                    assert (await wire.receive()).type is aiohttp.WSMsgType.CLOSE
                    assert wire.close_code == 1008
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect("/ws")
            assert refused.value.status == 429

    with Emulator(str(mine)) as emulator:
        asyncio.run(talk(emulator.url))
        assert emulator.stats()["totals"]["sockets_closed"] == 2


def test_the_rules_in_force_are_served() -> None:
    """What is shortened is said: the served file is valid, and its periods are those that are enforced."""
    with Emulator("okx", scale=0.1, limits={"account-2s": (50, 0.5)}) as emulator:
        file = parse(emulator.rules())
        stats = emulator.stats()["limits"]
        assert stats["account-2s"]["seconds"] == 0.5
        assert (file.limits["account-2s"].capacity, file.limits["account-2s"].period) == (50, "500ms")
        assert file.limits["place-2s"].period == "200ms"
        assert file.name == "okx"


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.toml")))
def test_every_bundled_file_is_served_and_can_ban(name: str) -> None:
    """It starts, answers its clock's route with JSON and its own time, and shuts an address out when it is told to."""
    with Emulator(name, skew=100) as emulator:
        provider = Rulebook.load().provider(name)
        clocks = [learn.route for learn in provider.file.learn if learn.clock and not set(learn.route) & set("*{?")]
        for route in clocks:
            method, _, path = route.partition(" ")
            status, headers, body = ask(emulator, method, path)
            plan = provider.plan(Request(method, path))
            told = provider.feedback(plan, Answer(status, headers, json.dumps(body).encode()), now=0)
            assert status == 200
            assert told.server_time is not None
            assert abs(told.server_time[0] / 1e9 - emulator.stats()["now"]) < 5
        assert ask(emulator, "POST", "/__emulator__/ban", body={"ip": "127.0.0.1", "seconds": 60})[0] == 200
        status, headers, body = ask(emulator, "GET", "/x")
        plan = provider.plan(Request("GET", "/x"))
        told = provider.feedback(plan, Answer(status, headers, json.dumps(body).encode()), now=0)
        # Where the file lists no ban, an answer that shuts the address out says for how long.
        assert told.outcome is Outcome.BANNED, (status, body)
        assert emulator.stats()["totals"]["banned"] == 1


def test_a_name_without_rules_is_said_plainly() -> None:
    """The error lists what there is."""
    with pytest.raises(RuntimeError, match=r"no rules for 'nobody'.*binance-usdm"):
        Emulator("nobody")
