"""What all tests share: a Ratekeeper home of their own, and the order in which they run on several workers."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from ratekeeper.ledger import edge

# A loaded machine must not fail a property because one example was slow; the run as a whole has its timeout.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")

HERE = Path(__file__).parent
ORDER = ("system", "docs", "fuzz", "laws", "conformance", "unit")
"""What takes long begins, so that no worker is left with it when the others have ended."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order tests for several workers. Where tests are many and short, those of one function go to one worker together."""

    def rank(item: pytest.Item) -> tuple[int, bool]:
        folder = item.path.relative_to(HERE).parts[0]
        return ORDER.index(folder) if folder in ORDER else len(ORDER), not any(item.iter_markers("xdist_group"))

    if config.getoption("dist", None) != "loadgroup":
        return
    items.sort(key=rank)  # stable: within a folder the order stays
    for item in items:
        number, single = rank(item)
        if single and number > ORDER.index("laws"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("[")[0]))


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


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
