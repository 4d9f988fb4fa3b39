"""Pytest fixtures. Switch them on with ``pytest_plugins = ["ratekeeper.testing.plugin"]`` in your ``conftest.py``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from ratekeeper.apps.emulator.child import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MakeEmulator", "ratekeeper_emulator"]


class MakeEmulator(Protocol):
    """Starts an emulator with the arguments of `Emulator`; it is stopped when the test is over."""

    def __call__(self, provider: str = "binance-usdm", **options: Any) -> Emulator:
        """Start one."""


@pytest.fixture
def ratekeeper_emulator() -> Iterator[MakeEmulator]:
    """A factory of emulators: ``emulator = ratekeeper_emulator("binance-usdm", window=5)``."""
    with ExitStack() as running:

        def make(provider: str = "binance-usdm", **options: Any) -> Emulator:
            return running.enter_context(Emulator(provider, **options))

        yield make
