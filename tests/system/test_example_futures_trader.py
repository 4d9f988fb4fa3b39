"""The futures trader of scenario B, as a process on a bad network: it lives, obeys, and no order is sent twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.example import figures_of

pytestmark = [pytest.mark.alone, pytest.mark.xdist_group("futures trader")]

FOLDER = Path(__file__).parents[2] / "examples" / "futures_trader"
ON_THE_WAY = 0.5
"""Seconds in which what was sent before the first 418 came back may still arrive: far less than the ban of four."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The figures of one run, which takes about half a minute."""
    return figures_of(FOLDER, timeout=200)


def test_the_faults_were_real(found: dict[str, Any]) -> None:
    """Connections were reset, answers withheld, calls answered with 503, and websockets closed."""
    assert all(found["totals"][name] > 0 for name in ("hung_up", "hung", "errors")), found["totals"]
    assert found["routes"]["WS-CONNECT /stream"] > 3  # three were cut, and then none lasted


def test_it_is_alive_and_ends_cleanly(found: dict[str, Any]) -> None:
    """It trades to the end, leaves nothing open, and exits with 0."""
    assert found["alive"] and found["exit"] == 0
    assert found["left_open"] == []
    assert "Traceback" not in found["said"]


def test_no_order_is_sent_twice(found: dict[str, Any]) -> None:
    """Each client order id arrived once and was placed once, though the fate of some was unknown."""
    assert found["unknown"] > 0
    assert found["sent_twice"] == found["placed_twice"] == []


def test_nothing_is_refused_but_by_the_ban(found: dict[str, Any]) -> None:
    """No 429, no other ban, and after the first 418 came back nothing is sent until the ban is over."""
    assert found["totals"]["throttled"] == 0
    assert found["bans"] == 1
    assert found["refused_by_the_ban"]
    assert max(found["refused_by_the_ban"]) - min(found["refused_by_the_ban"]) < ON_THE_WAY


def test_a_pause_stops_its_orders(found: dict[str, Any]) -> None:
    """From the command on no order is placed, the one that rested is withdrawn, and the trader says so."""
    assert found["paused"] == {"placed": 0, "resting": 0}
    assert [shut["why"] for shut in found["shut"] if shut["kind"] == "pause"] == ["looking first"]


def test_it_tells_what_holds_it(found: dict[str, Any]) -> None:
    """A ban, an open breaker, the degraded mode and prices asked for without a stream are told, the ban with its reason."""
    assert {shut["kind"] for shut in found["shut"]} == {"ban", "breaker", "pause"}
    assert all("418" in shut["why"] for shut in found["shut"] if shut["kind"] == "ban")
    assert {"degraded", "all jobs again", "polled prices", "account", "income"} <= found["told"].keys()


def test_slow_changing_data_is_kept(found: dict[str, Any]) -> None:
    """Exchange information is read all the time and asked for hardly ever."""
    asked = found["routes"]["GET /fapi/v1/exchangeInfo"]
    assert asked < found["told"]["income"] / 2, (asked, found["told"])


def test_the_history_has_the_figures(found: dict[str, Any]) -> None:
    """Response times, errors per hour, retries and how many succeeded, and the one ban."""
    history = found["history"]
    assert 0 < history["ms_median"] <= history["ms_95"] < 1000
    assert 0 < history["answered"] < history["probes"]
    assert history["errors_per_hour"] > 0
    assert history["retries"] >= history["retried"] > 0
    assert 0 < history["retries_succeeded"] <= 1
    assert history["bans"] == 1
