"""What all tests share: a Ratekeeper home of their own, and the order in which they run on several workers."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from ratekeeper.ledger import edge

from .support.warm import warm

# A loaded machine must not fail a property because one example was slow; the run as a whole has its timeout.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")

gc.disable()  # until all is collected
HERE = Path(__file__).parent
WAITING, WORKING = ("system", "docs"), ("fuzz", "laws")
"""Folders whose tests mostly wait, and those whose tests only compute: both begin, side by side; many short ones follow."""
LONG = (
    "three_programs", "untidy_clocks", "grid_bot", "multi_symbol_bot", "futures_trader", "redis_machines", "soak_faults",
    "every_provider", "market_data", "priority", "test_demo", "sdks_run", "watch_list",
)  # fmt: skip
"""Modules with tests that take half a minute to two: the longest begin first of all."""
MANY = frozenset({"conformance", "unit"})
"""Folders whose tests are so many and so short that those of one function go to one worker together."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order tests for several workers: modules that share a world and what takes long come first, what is short last."""
    if not hasattr(config, "workerinput"):
        return
    first: dict[int, list[pytest.Item]] = {}
    rest: dict[tuple[str, ...], list[pytest.Item]] = {WAITING: [], WORKING: [], (): []}
    for item in items:
        long = next((place for place, name in enumerate(LONG) if item.path.stem.endswith(name)), len(LONG))
        if long < len(LONG) or one_world(item.nodeid.partition("::")[0]):
            first.setdefault(long, []).append(item)
        else:
            folder = item.path.relative_to(HERE).parts[0]
            rest[next((folders for folders in rest if folder in folders), ())].append(item)
    mixed = [
        (number / len(those), item.nodeid, item)
        for those in (rest[WAITING], rest[WORKING])
        for number, item in enumerate(those)
    ]
    items[:] = [item for _, those in sorted(first.items()) for item in those]
    items += [item for _, _, item in sorted(mixed, key=lambda each: each[:2])] + rest[()]


@cache
def one_world(module: str) -> bool:
    """Whether the tests of a module share a world that is expensive to make (`pytest.mark.xdist_group`)."""
    return "pytest.mark.xdist_group(" in (HERE.parent / module).read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give tests to workers in the order in which they stand, those of one world to one worker.

    xdist would read groups from a suffix of the tests' ids, which pytest 9.2 no longer lets it write.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module, _, test = nodeid.partition("::")
            if one_world(module):
                return module
            parts = Path(module).parts
            return f"{module}::{test.partition('[')[0]}" if len(parts) > 1 and parts[1] in MANY else nodeid

    return Scheduling(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def warm_commands() -> Iterator[None]:
    """Emulators and commands of Ratekeeper that tests start do not wait for imports."""
    with warm():
        yield


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of folders that nobody has made: most tests need no file, and a folder for each takes longer than they do."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def own_home(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test, and the processes it starts, away from the user's own ledgers and settings."""
    for name in [name for name in os.environ if name.startswith("RATEKEEPER_")]:
        monkeypatch.delenv(name)
    home = next(homes)
    monkeypatch.setenv("RATEKEEPER_HOME", str(home))
    return home


@pytest.fixture
def dates_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that dates answers is the one that counts, for tests of the arithmetic on one clock."""
    monkeypatch.setattr(edge, "FIRST_DOUBT", 0)
    monkeypatch.setattr(edge, "BLIND_DOUBT", 0)
