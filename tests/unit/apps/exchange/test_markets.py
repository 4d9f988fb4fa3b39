"""Markets that are kept between commands."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ratekeeper.apps.exchange.markets import load_markets

pytest.importorskip("ccxt")


class Exchange:
    """An exchange object of ccxt, as far as it loads markets.

    Attributes:
        asked: how often it asked the exchange.
    """

    id = "shop"

    def __init__(self, **noted: Any) -> None:
        self.urls = {"api": {"public": "https://shop.test"}}
        self.requiredCredentials = {"apiKey": True, "secret": True}
        self.apiKey, self.secret = "k" * 8, "s" * 8
        self.options: dict[str, Any] = {"defaultType": "swap"}
        self.markets: dict[str, Any] | None = None
        self.asked = 0
        self._noted = noted

    def load_markets(self, reload: bool = False) -> None:
        """Ask."""
        self.asked += 1
        self.options.update(self._noted)
        self.set_markets([{"symbol": "BTC/USDT", "precision": {"price": 0.1}, "active": None}])

    def set_markets(self, markets: list[dict[str, Any]]) -> None:
        """Take them."""
        self.markets = {each["symbol"]: each for each in markets}


def test_one_command_asks_for_the_next(tmp_path: Path) -> None:
    """What the first one loads, and what its object notes beside, serves the second; who asks anew, asks."""
    first, second = Exchange(pairs=[]), Exchange()
    assert load_markets(first, tmp_path)
    assert not load_markets(first, tmp_path)
    assert not load_markets(second, tmp_path)
    assert (first.asked, second.asked) == (1, 0)
    assert second.markets == first.markets
    assert second.options == first.options == {"defaultType": "swap", "pairs": []}
    assert load_markets(second, tmp_path, anew=True)
    [path] = (tmp_path / "markets").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"markets": [], "options": {}}', b'{"markets": [{}], "options": {}}']
)
def test_what_is_stale_or_garbled_is_read_anew(tmp_path: Path, raw: bytes) -> None:
    """An hour later, from another place, or where the file holds something else."""
    load_markets(Exchange(), tmp_path)
    [path] = (tmp_path / "markets").iterdir()
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3601))
    assert load_markets(Exchange(), tmp_path)
    path.write_bytes(raw)
    assert load_markets(Exchange(), tmp_path)
    moved = Exchange()
    moved.urls = {"api": {"public": "https://mirror.test"}}
    assert load_markets(moved, tmp_path)


@pytest.mark.parametrize("noted", [object(), "token " + "s" * 8])
def test_what_cannot_or_must_not_be_kept(tmp_path: Path, noted: object) -> None:
    """An object that is no data, a secret: nothing is written, and the next command asks."""
    for _ in range(2):
        assert load_markets(Exchange(noted=noted), tmp_path)
    assert not (tmp_path / "markets").exists()


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    """The next command asks again."""
    (tmp_path / "markets").write_text("in the way")
    for _ in range(2):
        assert load_markets(Exchange(), tmp_path)
