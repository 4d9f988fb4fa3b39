"""A steady clock that jumps."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ratekeeper.ledger.limit import SECOND

__all__ = ["Jump", "jump"]

Jump = Callable[[float], None]


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Lets the steady clock jump by so many seconds."""
    ahead, real = [0], time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: real() + ahead[0])

    def jump(seconds: float) -> None:
        ahead[0] += int(seconds * SECOND)

    return jump
