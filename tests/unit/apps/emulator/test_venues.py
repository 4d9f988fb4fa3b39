"""Which provider gets which venue."""

from __future__ import annotations

import pytest

from ratekeeper.apps.emulator.binance import Binance
from ratekeeper.apps.emulator.bitget import Bitget
from ratekeeper.apps.emulator.options import Options
from ratekeeper.apps.emulator.orderly import Orderly
from ratekeeper.apps.emulator.plain import Plain
from ratekeeper.apps.emulator.tariff import Tariff
from ratekeeper.apps.emulator.venues import venue_of
from ratekeeper.rules.book import Rulebook


@pytest.mark.parametrize(
    ("name", "kind"), [("binance-usdm", Binance), ("bitget", Bitget), ("orderly", Orderly), ("okx", Plain)]
)
def test_who_has_bodies_of_its_own(name: str, kind: type) -> None:
    """Every other provider is told from its rule file alone."""
    options = Options(provider=name)
    assert type(venue_of(Tariff(Rulebook.load().provider(name), options), options)) is kind
