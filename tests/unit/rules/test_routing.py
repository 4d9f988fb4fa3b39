"""Which route a call falls under."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ratekeeper.rules.call import Call
from ratekeeper.rules.routing import Router, spread
from ratekeeper.rules.schema import File

FRAGMENT = """
[limits]
a-1s = { unit = "a", capacity = 10, period = "1s" }
a-1m = { unit = "a", capacity = 100, period = "1m" }
b-1m = { unit = "b", capacity = 100, period = "1m" }

[every]
b = 1

[[routes]]
match = "GET /order/{id}"
cost = { a = 1 }

[[routes]]
match = ["GET /order/{id}/fills", "GET /order/last"]
cost = { a = 2 }

[[routes]]
match = "GET /data/*"

[[routes]]
match = "GET /data/{kind}/deep/*"

[[routes]]
match = "POST /batch"
where = { body = { count = true, most = 1 } }

[[routes]]
match = "POST /batch"
where = { "body.0.type" = ["spot", "margin"], urgent = { present = true } }

[[routes]]
match = "POST /batch"

[[routes]]
match = "POST /only"
where = { size = { least = 5 } }

[[routes]]
match = "WS-SEND /ws"
cost = { a = 1 }
"""


@pytest.mark.parametrize(
    ("method", "path", "label"),
    [
        ("GET", "/order/17", "GET /order/{id}"),
        ("get", "/order/17", "GET /order/{id}"),
        ("GET", "/order/last", "GET /order/last"),
        ("GET", "/order/17/fills", "GET /order/{id}/fills"),
        ("GET", "/order/17/fills/more", ""),
        ("GET", "/data/a", "GET /data/*"),
        ("GET", "/data/a/b/c", "GET /data/*"),
        ("GET", "/data/a/deep/c", "GET /data/{kind}/deep/*"),
        ("GET", "/data", ""),
        ("DELETE", "/order/17", ""),
        ("WS-SEND", "/ws", "WS-SEND /ws"),
    ],
)
def test_match(file_of: Callable[[str], File], method: str, path: str, label: str) -> None:
    """Plain paths go before templates, the most precise template wins, the rest is the default."""
    assert Router(file_of(FRAGMENT)).find(Call(method, path)).label == label


def test_conditions(file_of: Callable[[str], File]) -> None:
    """Of several routes with one match the first whose conditions hold is taken, else the default."""
    router = Router(file_of(FRAGMENT))
    one, two = [{"type": "spot"}], [{"type": "spot"}] * 2
    assert router.find(Call("POST", "/batch", None, one)).label == "POST /batch"
    assert router.find(Call("POST", "/batch", {"urgent": 1}, two)).label == "POST /batch #2"
    assert router.find(Call("POST", "/batch", None, two)).label == "POST /batch #3"
    assert router.find(Call("POST", "/only", {"size": "5"})).label == "POST /only"
    assert router.find(Call("POST", "/only", {"size": "4"})).label == ""
    assert router.find(Call("POST", "/only")).label == ""


def test_spread(file_of: Callable[[str], File]) -> None:
    """A unit's cost falls on every limit of it; a limit's own name wins."""
    limits = file_of(FRAGMENT).limits
    assert spread({"a": 1}, limits) == {"a-1s": 1, "a-1m": 1}
    assert spread({"a-1s": 5, "a": 1}, limits) == {"a-1s": 5, "a-1m": 1}


def test_every(file_of: Callable[[str], File]) -> None:
    """What every HTTP call costs is charged on top, but not by websocket messages."""
    router = Router(file_of(FRAGMENT))
    assert router.find(Call("GET", "/order/1")).costs == {"b-1m": 1, "a-1s": 1, "a-1m": 1}
    assert router.find(Call("GET", "/unknown")).costs == {"b-1m": 1}
    assert router.find(Call("WS-SEND", "/ws")).costs == {"a-1s": 1, "a-1m": 1}


def test_shapes_of_values(file_of: Callable[[str], File]) -> None:
    """A value may have to look like something; of several, every one."""
    fragment = """
[[routes]]
match = "POST /order"
where = { "body.*.id" = { matches = '^[^-]+-[^-]+$' } }

[[routes]]
match = "POST /order"
where = { "body.id" = { matches = "SWAP" } }
"""
    router = Router(file_of(fragment))
    for body, label in [
        ([{"id": "A-B"}, {"id": "C-D"}], "POST /order"),
        ([{"id": "A-B"}, {"id": "C-D-E"}], ""),
        ([], ""),
        ({"id": "A-B-SWAP"}, "POST /order #2"),
        ({"id": "A-B"}, ""),
        (None, ""),
    ]:
        assert router.find(Call("POST", "/order", None, body)).label == label
