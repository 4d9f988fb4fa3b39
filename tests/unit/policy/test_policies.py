"""How policies are switched on."""

from __future__ import annotations

import msgspec
import pytest

from ratekeeper.errors import RuleError
from ratekeeper.policy.policies import Batch, Policies
from ratekeeper.policy.retry import Retry


def test_nothing_is_on_by_itself() -> None:
    """A gate is a gate; what else is done must be asked for."""
    assert not Policies()


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("all", {"retry", "breaker", "cache", "batch"}),
        ("none", set()),
        ("", set()),
        ("retry, Cache", {"retry", "cache"}),
    ],
)
def test_by_name(text: str, on: set[str]) -> None:
    """All, none, or some."""
    made = Policies.named(text)
    assert {name for name in Policies.__struct_fields__ if getattr(made, name)} == on
    assert bool(made) == bool(on)


def test_an_unknown_name_is_told() -> None:
    """With those that there are."""
    with pytest.raises(RuleError, match=r"no policy is called 'retries': use all, none, or some of retry, breaker"):
        Policies.named("retries")


def test_from_a_file() -> None:
    """A switch or a table with settings."""
    made = msgspec.convert({"retry": {"attempts": 3, "longest": 16}, "batch": True}, Policies, strict=False)
    assert made.retry == Retry(attempts=3, longest=16.0)
    assert made.batch is True
    assert not made.cache


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"retry": {"attempts": 0}}, "retry.attempts"),
        ({"cache": {"ttl": {"x": -1}}}, "cache.ttl"),
        ({"batch": {"windows": 1}}, "batch"),
    ],
)
def test_wrong_settings_are_refused(said: dict[str, object], key: str) -> None:
    """And the place is named."""
    with pytest.raises(msgspec.ValidationError, match=key.replace(".", r"\.")):
        msgspec.convert(said, Policies)
    assert Batch().window == 0.005
