"""Candles of the markets that are shown."""

from __future__ import annotations

import pytest

from ratekeeper.apps.emulator.incoming import Fault, Incoming
from ratekeeper.apps.emulator.market import MARKETS, candle_rows

NOW = 1_800_000_000_000
BTC = MARKETS["usdm"]["BTCUSDT"]


def test_candles_are_bounded_as_asked() -> None:
    """The last ones, those from a start, those until an end; an unknown interval is a mistake."""

    def rows(**params: str) -> list[int]:
        asked = Incoming(params, NOW + 1, "a")
        return [row[0] for row in candle_rows(asked, BTC, "1m", start="from", end="to", most=5)]

    assert rows(limit="2") == [NOW - 60_000, NOW]
    assert rows(limit="99") == [NOW - n * 60_000 for n in (4, 3, 2, 1, 0)]
    assert rows(**{"from": str(NOW - 120_000), "to": str(NOW - 60_000)}) == [NOW - 120_000, NOW - 60_000]
    with pytest.raises(Fault):
        candle_rows(Incoming({}, NOW, "a"), BTC, "7m", start="from", end="to", most=5)
