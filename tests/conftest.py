"""What all tests share: a Ratekeeper home of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from ratekeeper.ledger import edge

# A loaded machine must not fail a property because one example was slow; the run as a whole has its timeout.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test, and the processes it starts, away from the user's own ledgers and settings."""
    for name in [name for name in os.environ if name.startswith("RATEKEEPER_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv("RATEKEEPER_HOME", str(home))
    return home


@pytest.fixture
def dates_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that dates answers is the one that counts, for tests of the arithmetic on one clock."""
    monkeypatch.setattr(edge, "FIRST_DOUBT", 0)
    monkeypatch.setattr(edge, "BLIND_DOUBT", 0)
