"""As much trouble as was asked for."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.apps.emulator.chances import Chances

SHARES = st.floats(0.001, 1)


@given(SHARES, st.integers(0, 2**32), st.integers(1, 2000))
def test_the_share_is_kept(share: float, seed: int, number: int) -> None:
    """Of any number of requests about the share is struck: never two more or two fewer."""
    chances = Chances(random.Random(seed))
    struck = sum(chances.strikes("hang", share) for _ in range(number))
    assert abs(struck - share * number) < 2


@given(st.lists(st.tuples(st.sampled_from(["hang", "loss"]), SHARES), max_size=200), st.integers(0, 2**32))
def test_a_share_may_change(asked: list[tuple[str, float]], seed: int) -> None:
    """Also while it changes, and each kind by itself."""
    chances = Chances(random.Random(seed))
    struck = {"hang": 0.0, "loss": 0.0}
    for kind, share in asked:
        struck[kind] += chances.strikes(kind, share) - share
    assert max(map(abs, struck.values())) < 2


def test_nobody_can_tell_which() -> None:
    """The distance from one to the next varies from next to nothing to nearly twice the mean."""
    chances = Chances(random.Random(3))
    struck = [number for number in range(10_000) if chances.strikes("hang", 0.1)]
    distances = [after - before for before, after in itertools.pairwise(struck)]
    assert min(distances) <= 2
    assert max(distances) >= 17


def test_none_and_all() -> None:
    """A share of 0 strikes nobody, one of 1 everybody."""
    chances = Chances(random.Random(1))
    assert not any(chances.strikes("loss", 0.0) for _ in range(100))
    assert all(chances.strikes("hang", 1.0) for _ in range(100))
