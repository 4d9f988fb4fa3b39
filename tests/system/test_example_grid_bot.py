"""The grid bot of scenario A, as processes, through all that can go wrong: the session lives, no order is sent twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.example import figures_of

pytestmark = [pytest.mark.alone, pytest.mark.xdist_group("grid bot")]

FOLDER = Path(__file__).parents[2] / "examples" / "grid_bot"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The figures of one run, which takes about a minute."""
    return figures_of(FOLDER, timeout=110)


def test_the_faults_were_real(found: dict[str, Any]) -> None:
    """Calls were hung up on, lost, left without an answer and answered with 503; the name failed to resolve."""
    assert all(found["faults"][name] > 0 for name in ("hung_up", "lost", "hung", "errors")), found["faults"]
    assert found["lookups_failed"] > 0
    met = ("ReadError", "ReadTimeout", "HTTP 503", "HTTP 403", "Temporary failure in name resolution")
    assert [name for name in met if name not in found["said"]] == []


def test_it_is_alive_and_complete(found: dict[str, Any]) -> None:
    """The session is healthy at the end, and every level of the grid has its order, none has two."""
    assert found["state"] == "healthy"
    assert found["open"] == 2 * found["levels"]
    assert "Traceback" not in found["said"]


def test_no_order_is_placed_twice(found: dict[str, Any]) -> None:
    """Each client order id arrived once and was placed once, through calls without an answer and two kills."""
    assert found["orders"] >= found["open"]
    assert found["arrived_twice"] == found["placed_twice"] == 0
    assert found["events"]["unknown"] > 0  # there were orders whose fate nobody could know


def test_refusals_come_from_others_only(found: dict[str, Any]) -> None:
    """429s come only while another program spends the key's limits, and nothing is asked again before its time."""
    assert found["refused_before_the_burst"] == found["refused_after_the_burst"] == 0
    assert found["burst"]["refused"] >= 1
    assert found["burst"]["too_soon"] == 0


def test_a_ban_is_obeyed(found: dict[str, Any]) -> None:
    """What was on its way meets the ban; nothing is sent after that, and it costs the session nothing."""
    assert found["ban"]["on_the_way"] >= 1
    assert found["ban"]["knocked"] == 0


def test_the_history_is_right(found: dict[str, Any]) -> None:
    """On disk are the failures that were injected, each at its time and with the recovery that ended it, and no others."""
    episodes: list[list[dict[str, Any]]] = [[]]
    for row in found["history"]:
        episodes[-1].append(row)
        if row["ok"]:
            episodes.append([])
    assert episodes.pop() == []
    assert len(episodes) == len(found["spans"]), found["history"]
    for (name, (since, until)), rows in zip(found["spans"].items(), episodes, strict=True):
        assert since <= rows[0]["at"] <= until, (name, rows)
        assert rows[0]["kind"] == ("by hand" if name == "by hand" else "check")
        assert all(row["attempt"] <= 5 for row in rows)
    assert len(episodes[0]) > 1  # the outage went on after the first start


def test_what_it_says(found: dict[str, Any]) -> None:
    """Limits hit, throttling that adapts, sessions recovered, and kept answers, fresh and stale, are told as they happen."""
    kinds = ("throttled", "paced", "retry", "session abnormal", "session recovered", "cache hit", "cache stale")
    assert [kind for kind in kinds if not found["events"].get(kind)] == []
    assert "(stale, " in found["said"]  # the position, with its age


def test_prices_are_polled_while_the_stream_is_down(found: dict[str, Any]) -> None:
    """The streams come back from each kind of cut; meanwhile the price is asked for."""
    assert set(found["dialled_again_after"]) == {"close", "abort", "silent"}
    assert "(polled, " in found["said"]


def test_a_stop_that_raises_stops_nobody_else(found: dict[str, Any]) -> None:
    """The reporter's stop raises; the bot ends cleanly on SIGTERM all the same."""
    assert "its stop raised RuntimeError" in found["said"]
    assert found["exit_status"] == 128 + 15
    assert found["said"].rstrip().endswith("session grid@grid_bot stopped")


def test_status_tells_the_use_of_the_account(found: dict[str, Any]) -> None:
    """The account's own limit is listed with its use, and three tenths of it are left unused on purpose."""
    (row,) = [row for row in found["status"]["limits"] if row["limit"] == "user-30-10s"]
    assert row["scope"].startswith("account:")
    assert (row["capacity"], row["headroom"]) == (30, 9)
    assert 0 <= row["utilisation"] <= 1
