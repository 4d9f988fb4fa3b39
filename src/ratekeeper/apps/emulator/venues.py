"""Which venue an emulation has: one with bodies of its own where there is one, else one told from the rule file alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .binance import NAMES, Binance
from .bitget import Bitget
from .orderly import Orderly
from .plain import Plain

if TYPE_CHECKING:
    from .incoming import Venue
    from .options import Live
    from .tariff import Tariff

__all__ = ["venue_of"]


def venue_of(tariff: Tariff, options: Live) -> Venue:
    """The venue of the tariff's provider."""
    name = tariff.provider.name
    if name in NAMES:
        return Binance(name, tariff)
    return {"bitget": Bitget, "orderly": Orderly}.get(name, Plain)(tariff, options)
