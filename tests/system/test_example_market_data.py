"""The market-data platform of ``examples/``: three programs, four addresses, and a ban in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).parents[2] / "examples" / "market_data_platform" / "run.py"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The figures of one whole run."""
    done = subprocess.run([sys.executable, str(RUN), "--json"], capture_output=True, timeout=110)
    assert done.returncode == 0, done.stderr.decode()
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_nothing_is_refused(found: dict[str, Any]) -> None:
    """No 429 from any address, at either exchange."""
    assert {ip: row["throttled"] for ip, row in found["addresses"].items()} == dict.fromkeys(found["addresses"], 0)


def test_capacity_adds_up(found: dict[str, Any]) -> None:
    """Four addresses, four budgets; 2 % and some calls' worth are left unused on purpose."""
    assert found["together"]["utilisation"] >= 0.85, found["together"]
    assert min(row["utilisation"] for row in found["addresses"].values()) >= 0.75, found["addresses"]


def test_the_banned_address_rests_and_comes_back(found: dict[str, Any]) -> None:
    """Only what was on its way arrives there; after the end it is used again at once."""
    ban = found["ban"]
    assert ban["sent_during_the_ban"] == 0
    assert ban["taken_back_after"] is not None
    assert ban["taken_back_after"] < 2


def test_service_goes_on(found: dict[str, Any]) -> None:
    """Each program is served during the ban; who asks for a permit is told the address, or why not."""
    assert min(found["served_during_the_ban"].values()) > 0, found["served_during_the_ban"]
    granted, refused = found["asked_during_the_ban"]
    assert granted["granted"]
    assert granted["address"] not in ("", found["ban"]["address"])
    assert not refused["granted"]
    assert "ban" in refused["reason"]


def test_the_status_shows_each_address(found: dict[str, Any]) -> None:
    """State and utilisation by address, the ban among them."""
    rows = {row["leaves"]: row for row in found["status_during_the_ban"] if row["provider"] == "binance-usdm"}
    assert rows[found["ban"]["address"]]["state"].startswith("banned")
    assert all("utilisation" in row for row in rows.values())
    assert all(row["state"] == "active" for row in found["status_after_the_ban"])
