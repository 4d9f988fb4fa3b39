"""The law while ``Date`` is wrong: what dates an answer is not what counts it (``make soak-clocks`` is the long form).

Three unchanged programs under ``ratekeeper run`` in each world, each world with an exchange and a state folder of its own,
the near ones at the same time, and the far ones, whose programs mostly wait. Windows last 8 s here, and 30 s where calls take
up to 3 s and some are never answered. A world is judged after the first edges that its programs saw; what is refused counts
from the first moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from benchmarks.soak_clocks import OFFSETS, Case, Emulated, Exchange, Outcome, Schedule, live
from tests.support.stood import Stood
from tests.support.stranger import Stranger

CROWD = pytest.mark.crowd
pytestmark = pytest.mark.xdist_group("untidy clocks")

NEAR = Schedule(window=8, capacity=700, skip=1, judged=3, spare=1, workers=4)
FAR = Schedule(window=30, capacity=1200, skip=1, judged=1, workers=8, lead=14)
AT_ONCE = 4
"""Worlds whose programs start at the same time."""

_OFF = [
    # Without counters the lesson and what it carries over take up most of three short windows: with a doubt of two seconds
    # either way, half of what eight seconds hold counts twice. `make soak-clocks` judges real minutes.
    Case(offset, counters, store=("host", "redis")[(number + counters) % 2], least=None if counters else 0.5)
    for counters in (True, False)
    for number, offset in enumerate(OFFSETS)
]
# Without counters a call that was lost is held for 20 s, most of a window here.
_FAR = [Case(-1.5, far=True), Case(1.5, far=True), Case(1.5, counters=False, far=True, least=0.7)]
_STRICT = [Case(-0.4, strict=True), Case(0.4, strict=True)]
_STRANGER = Case(0.4, options=(("ban_after", 30),), least=0.75)  # its rate is guessed from a first short window
_STEP = Case(0.0, options=(("ban_after", 0),))

Results: TypeAlias = dict[Case, "Future[Outcome]"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, warm_programs: None) -> Iterator[Results]:
    """All near worlds. They wait for each other, so that no start disturbs a judged window."""
    starting = threading.Semaphore(AT_ONCE)
    near = [*_OFF, *_STRICT, _STRANGER, _STEP]
    together = threading.Barrier(len(near))

    def visit(exchange: Exchange, during: ExitStack) -> None:
        stranger = Stranger(exchange.url, 0.2 * NEAR.capacity / NEAR.window)
        stranger.start()
        during.callback(stranger.close)

    def step(exchange: Exchange, _during: ExitStack) -> None:
        assert isinstance(exchange, Emulated)
        time.sleep(NEAR.window / 2)
        exchange.emulator.options(date_offset=0.8)

    events: dict[Case, dict[str, Any]] = {_STRANGER: {"meanwhile": visit}, _STEP: {"meanwhile": step}}

    def run(case: Case, folder: Path) -> Outcome:
        once = threading.Lock()

        def ready() -> None:
            if once.acquire(blocking=False):
                starting.release()

        def served() -> None:
            ready()
            try:
                together.wait(40)
            except threading.BrokenBarrierError:
                pass  # a world that cannot start says so itself

        starting.acquire()
        try:
            found = live(case, folder, NEAR, ready=served, **events.get(case, {}))
        finally:
            ready()
        begins = [found.begin + number * NEAR.window for number in range(NEAR.judged)]
        lost = [stood.share(begin, begin + NEAR.window) for begin in begins]
        found.shares = [share + more for share, more in zip(found.shares, lost, strict=True)]
        return found

    folders = [tmp_path_factory.mktemp("world") for _ in near]  # not in the threads: pytest's maker is for one
    with Stood() as stood, ThreadPoolExecutor(len(near)) as pool:
        yield {case: pool.submit(run, case, folder) for case, folder in zip(near, folders, strict=True)}


@pytest.fixture(scope="module")
def far_results(tmp_path_factory: pytest.TempPathFactory, warm_programs: None) -> Iterator[Results]:
    """All far worlds."""
    folders = [tmp_path_factory.mktemp("world") for _ in _FAR]
    with ThreadPoolExecutor(len(_FAR)) as pool:
        yield {case: pool.submit(live, case, folder, FAR) for case, folder in zip(_FAR, folders, strict=True)}


def outcome(results: Results, case: Case) -> Outcome:
    """What happened in a world, when it is over."""
    return results[case].result(timeout=115)


@CROWD
@pytest.mark.parametrize("case", _OFF, ids=lambda case: case.name)
def test_the_law_holds_wherever_date_is(results: Results, case: Case) -> None:
    """With counters nothing is refused and 98 % of each window is used; without, one refusal may teach; never a ban, and
    nobody is taken for another program. One of three windows may fall short, because the machine was busy."""
    faults = outcome(results, case).faults()
    assert not faults, "; ".join(faults)


@pytest.mark.alone
@pytest.mark.parametrize("case", _FAR, ids=lambda case: case.name)
def test_the_law_holds_far_away(far_results: Results, case: Case) -> None:
    """With 0.2 to 1.5 s each way, and one call in twenty never answered, the same holds for 90 % of each window."""
    faults = outcome(far_results, case).faults()
    assert not faults, "; ".join(faults)


@CROWD
@pytest.mark.parametrize("case", _STRICT, ids=lambda case: case.name)
def test_the_law_holds_where_somebody_else_counts(results: Results, case: Case) -> None:
    """A server that shares no line with the emulator says the same."""
    faults = outcome(results, case).faults()
    assert not faults, "; ".join(faults)


@CROWD
def test_a_real_stranger_is_found_all_the_same(results: Results) -> None:
    """A raw client that spends 20 % is noticed with ``Date`` 0.4 s ahead; room is made, and the rest is used."""
    found = outcome(results, _STRANGER)
    assert found.suspected, found
    assert not [at for at in found.refused if at >= found.begin], found
    # The first forecast is made of half a window whose edge is not known yet, and errs to the safe side.
    assert sorted(found.shares)[NEAR.spare] >= 0.87, found
    assert max(found.shares) >= 0.92, found


@CROWD
def test_what_was_set_aside_by_mistake_is_given_back(results: Results) -> None:
    """``Date`` steps by 0.8 s: whatever the next edge makes of that, one window later nothing is refused or set aside."""
    found = outcome(results, _STEP)
    assert not [at for at in found.refused if at >= found.begin + NEAR.window], found
    assert sorted(found.shares)[NEAR.spare] >= 0.98, found
