"""How providers wrap their answers."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from ratekeeper.rules import envelopes
from ratekeeper.rules.book import DATA
from ratekeeper.rules.envelopes import Envelope, filled, put

NOW = 1_763_694_000_123_456_789
TABLE = tomllib.loads(Path(envelopes.__file__).with_name("envelopes.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_envelope_is_json_of_a_provider_with_rules(name: str) -> None:
    """No typing error in the table: all bodies decode, and the provider exists."""
    assert (DATA / f"{name}.toml").exists()
    envelope = Envelope.of(name)
    for template in (envelope.ok, envelope.failed, *envelope.routes.values()):
        json.loads(filled(template, NOW))


def test_the_time_is_filled_in() -> None:
    """Seconds to nanoseconds, and the ISO form."""
    assert filled("$s $ms $us $ns $iso", NOW).decode().split() == [
        "1763694000",
        "1763694000123",
        "1763694000123456",
        "1763694000123456789",
        "2025-11-21T03:00:00.123Z",
    ]


def test_values_are_put_where_paths_lead() -> None:
    """Tables and lists are made on the way; what is there stays."""
    assert put({"a": 1}, "b.c", 2) == {"a": 1, "b": {"c": 2}}
    assert put({"error": []}, "error.0", "no") == {"error": ["no"]}
    assert put(None, "a.1", "x") == {"a": [None, "x"]}
    assert put([], "", "whole") == "whole"


def test_an_unknown_provider_has_a_plain_one() -> None:
    """A user's own rule file is answered with an empty object."""
    assert Envelope.of("mine").ok == "{}"
