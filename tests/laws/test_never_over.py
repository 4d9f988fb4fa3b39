"""Law 1, never over; law 3, nothing lost: random worlds, each named by its number."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.laws.draw import draw
from tests.laws.world import World

from headgate.stores.host import HostStore

BATCHES = 20


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_refusal_no_leak_in_random_worlds(batch: int, scenarios: int) -> None:
    """Whatever delays, losses, clocks, cancellations and crashes: the provider refuses nothing, and all units come back."""
    for seed in range(batch, scenarios, BATCHES):
        terms = draw(seed)
        account = World(terms).run()
        assert not account.refusals, f"{account.refusals} refusals; {terms.describe()}"
        assert not account.leaks, f"{account.leaks}; {terms.describe()}"
        assert account.tries < 60 * account.calls + 2000, f"{account.tries} tries; {terms.describe()}"


def test_the_same_on_disk(tmp_path: Path) -> None:
    """The shared store on disk keeps the law by the same arithmetic."""
    for seed in range(8):
        store = HostStore(tmp_path / str(seed))
        account = World(draw(seed), store).run()
        store.close()
        assert not account.refusals
        assert not account.leaks
