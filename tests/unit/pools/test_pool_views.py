"""What `status` shows of each address."""

from __future__ import annotations

import time
from pathlib import Path

from ratekeeper import Gate
from ratekeeper.ledger.limit import SECOND
from ratekeeper.pools.pool import views

CONFIG = """
[egress.addresses]
a = "127.0.0.2"
b = { bind = "127.0.0.3", scope = "nat" }
c = { proxy = "http://me:word@10.0.0.2:3128" }
d = "127.0.0.5"
[egress.pools."*"]
primary = ["a", "b"]
backups = ["c", "d"]
"""


def test_every_address_has_a_row(tmp_path: Path) -> None:
    """State, warnings, end of a ban or a rest, and the limit nearest to full; other scopes that spent have rows too."""
    path = tmp_path / "ratekeeper.toml"
    path.write_text(CONFIG)
    with Gate("memory://", config=path) as gate:
        for egress in ("a", "elsewhere"):
            with gate.permit("binance-usdm", "GET", "/fapi/v1/time", egress=egress):
                pass
        gate.block("binance-usdm/ip:a", 100, "ban")
        gate.egress.health.warned("binance-usdm/egress:b")
        gate.egress.health.failed("binance-usdm/egress:c")
        rows = {row.name: row for row in views(gate.egress, gate.read())}
    assert {name: row.state for name, row in rows.items()} == {
        "a": "banned", "b": "warning", "c": "resting", "d": "active", "elsewhere": "active",
    }  # fmt: skip
    assert 99 * SECOND < rows["a"].until - time.monotonic_ns() + SECOND < 102 * SECOND
    assert rows["a"].fullest is not None and rows["a"].fullest.used == 1
    assert (rows["b"].warnings, rows["b"].scope, rows["b"].fullest) == (1, "nat", None)
    assert rows["d"].fullest is None
    assert rows["c"].leaves == "proxy 10.0.0.2:3128"


def test_limits_of_an_endpoint_count_for_their_address(tmp_path: Path) -> None:
    """Where every endpoint of an address has a limit of its own, the fullest of them stands for the address."""
    path = tmp_path / "ratekeeper.toml"
    path.write_text(CONFIG)
    with Gate("memory://", config=path) as gate:
        for endpoint, times in (("ticker", 2), ("books", 1)):
            for _ in range(times):
                with gate.permit("okx", "GET", f"/api/v5/market/{endpoint}", params={"instId": "BTC-USDT"}, egress="b"):
                    pass
        rows = {row.name: row for row in views(gate.egress, gate.read())}
    assert set(rows) == {"a", "b", "c", "d"}
    assert rows["a"].fullest is None
    fullest = rows["b"].fullest
    assert fullest is not None and "ip:nat" in fullest.key and "ticker" in fullest.key and fullest.used == 2
