"""Which kept answers serve."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ratekeeper.policy.freshness import Cache, Kept, Service

KEPT = Kept(at=100.0, ttl=30.0)


def test_fresh_is_up_to_its_time_to_live() -> None:
    """And not a moment longer."""
    cache = Cache()
    assert cache.fresh(KEPT, 0.0)
    assert cache.fresh(KEPT, 30.0)
    assert not cache.fresh(KEPT, 30.001)


def test_an_answer_of_the_future_is_not_believed() -> None:
    """Two clocks that disagree by more than a second: better to ask."""
    assert not Cache().fresh(KEPT, -1.5)
    assert not Cache().serves(KEPT, -1.5, banned=True)


def test_stale_serves_for_a_while() -> None:
    """Longer while a ban forbids to ask."""
    cache = Cache(stale_if_error=300, stale_while_banned=3600)
    assert cache.serves(KEPT, 329.0, banned=False)
    assert not cache.serves(KEPT, 331.0, banned=False)
    assert cache.serves(KEPT, 3629.0, banned=True)
    assert not cache.serves(KEPT, 3631.0, banned=True)


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(-10, 1e6))
def test_what_is_of_use_is_still_there(ttl: float, error: float, banned: float, age: float) -> None:
    """Nothing is dropped that could still serve, and what is fresh also serves."""
    cache = Cache(stale_if_error=error, stale_while_banned=banned)
    kept = Kept(0.0, ttl)
    for over in (True, False):
        if cache.serves(kept, age, banned=over):
            assert age <= cache.keep(ttl)
        if cache.fresh(kept, age):
            assert cache.serves(kept, age, banned=over)


def test_services_have_names_for_headers() -> None:
    """One word each."""
    assert {str(service) for service in Service} == {"fresh", "hit", "shared", "batched", "stale", "refused"}
