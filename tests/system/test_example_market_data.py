"""The example of a market-data platform, from end to end: three programs, four addresses, one of them banned in mid-run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.example import figures_of

pytestmark = [pytest.mark.alone, pytest.mark.xdist_group("market data")]

FOLDER = Path(__file__).parents[2] / "examples" / "market_data_platform"
BANNED = "127.0.0.2"
TASKS = 16
"""Calls to Binance that the collector has open at once."""
PROGRAMS = ("collector", "trader", "monitor")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The figures of one run, which takes half a minute."""
    return figures_of(FOLDER, timeout=110)


def test_nothing_is_refused_for_a_limit(found: dict[str, Any]) -> None:
    """No 429 at either exchange, from any address; all four are used at both."""
    rows = found["addresses"].values()
    assert [row["throttled"] for row in rows] == [0] * 4
    assert all(row["calls"] > 0 and row["okx_calls"] > 0 for row in rows)


def test_the_banned_address_is_left_at_once(found: dict[str, Any]) -> None:
    """Only what was on its way meets the ban; nobody else's address is refused, and nothing more is sent from that one."""
    ban = found["ban"]
    assert ban["address"] == BANNED
    assert 1 <= ban["on_the_way"] <= TASKS
    assert ban["sent_during_the_ban"] == 0
    assert {ip for ip, row in found["addresses"].items() if row["refused_by_the_ban"]} == {BANNED}


def test_service_goes_on(found: dict[str, Any]) -> None:
    """Every program is served during the ban."""
    assert set(found["served_during_the_ban"]) == set(PROGRAMS)
    assert min(found["served_during_the_ban"].values()) > 0, found["served_during_the_ban"]


def test_it_is_taken_back(found: dict[str, Any]) -> None:
    """Calls leave from it again within two seconds of the end of its ban, and not before it."""
    assert 0 <= found["ban"]["taken_back_after"] < 2


def test_capacity_adds_up(found: dict[str, Any]) -> None:
    """The four budgets are used: 98 % of them may be, for two per cent are headroom, which is kept.

    A machine that is busy with other things makes programs slow, and they leave something over; three addresses would
    give no more than three quarters.
    """
    together = found["together"]
    assert 0.8 <= together["utilisation"] <= 0.98
    assert all(row["utilisation"] <= 0.98 for row in found["addresses"].values())


def test_the_status_tells(found: dict[str, Any]) -> None:
    """Each address of both providers with its utilisation; the ban is shown while it lasts, and is gone after it."""
    during, after = (
        {(row["provider"], row["address"]): row for row in found[f"status_{when}_the_ban"]}
        for when in ("during", "after")
    )
    everywhere = {(p, a) for p in ("binance-usdm", "okx") for a in ("main", "spare", "second", "desk")}
    assert set(during) == set(after) == everywhere
    assert [key for key, row in during.items() if row["state"] == "banned"] == [("binance-usdm", "main")]
    assert during["binance-usdm", "main"]["until"] is not None
    assert {row["state"] for row in after.values()} == {"active"}
    assert all(row["capacity"] > 0 and 0 <= row["utilisation"] <= 1 for row in after.values()), after
    # A fixed window may have begun this moment; a sliding one that is saturated is never empty.
    assert all(row["utilisation"] > 0.5 for (provider, _), row in after.items() if provider == "okx"), after


def test_one_call_asks(found: dict[str, Any]) -> None:
    """Granted, address, reason: from another address during the ban; refused to an account that may only use the banned."""
    free, bound = found["asked_during_the_ban"]
    assert free["granted"] and free["address"] in {"127.0.0.3", "127.0.0.4", "127.0.0.5"}
    assert not bound["granted"] and "ip:main is shut" in bound["reason"] and "ban" in bound["reason"]


def test_the_programs_had_no_trouble(found: dict[str, Any]) -> None:
    """The collector complains of the ban, once for each request that was on its way, Ratekeeper says it once, and that is
    all: nothing passed ungoverned, no order failed."""
    lines = found["said"].splitlines()
    complaints = [line for line in lines if line.startswith("collector: 418 ")]
    assert len(complaints) == found["ban"]["on_the_way"]
    (said,) = [line for line in lines if line not in complaints]
    assert "ip:main is banned for" in said


def test_the_programs_know_nothing_of_limits() -> None:
    """Ratekeeper is one import in one of the programs; no limit, address or wait for a limit stands in any of them."""
    for name in PROGRAMS:
        text = (FOLDER / f"{name}.py").read_text()
        code = text.split('"""', 2)[2]
        assert code.count("ratekeeper") == (1 if name == "trader" else 0)
        assert "127.0.0." not in code and "429" not in code and "Retry-After" not in code
