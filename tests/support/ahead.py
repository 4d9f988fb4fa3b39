"""The server's clock runs on while a test does not: signatures expire without waiting."""

from __future__ import annotations

from collections.abc import Callable

from ratekeeper import Gate
from ratekeeper.ledger.limit import SECOND


def ahead(gate: Gate, seconds: Callable[[], float]) -> None:
    """Let the adapters of a gate see the server's clock so far ahead."""
    now = gate.times.now

    def later(namespace: str) -> object:
        here, more = now(namespace), int(seconds() * SECOND)
        return here._replace(lo=here.lo + more, hi=here.hi + more)

    gate.times.now = later  # type: ignore[method-assign,assignment]
