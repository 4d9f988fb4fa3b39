"""A small provider of our own, and gates on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratekeeper import Gate

RULES = """
format = 1
name = "shop"
title = "A small provider"
hosts = ["shop.test"]
source = "T"

[sources]
T = { title = "made for these tests", read = 2026-11-20, confidence = "D" }

[owners]
account.header = "x-key"

[limits.weight-1h]
unit = "weight"
capacity = 10
period = "1h"
window = "sliding"
scope = "ip"
headers.used = "x-used"

[limits.slots]
unit = "slots"
capacity = 2
window = "slots"
scope = "ip"

[limits.burst]
unit = "burst"
capacity = 4
refill = 4
period = "200ms"
window = "bucket"
scope = "ip"

[default]
class = "market"
cost = { weight = 1 }

[[routes]]
match = "GET /big"
class = "market"
cost = { weight = 11 }

[[routes]]
match = "GET /slot"
class = "market"
cost = { slots = 1 }

[[routes]]
match = "GET /burst"
class = "market"
cost = { burst = 1 }

[[routes]]
match = "DELETE /order"
class = "cancel"
cost = { weight = 1 }
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The rule file of provider ``shop``."""
    path = tmp_path / "shop.toml"
    path.write_text(RULES)
    return path


@pytest.fixture
def new_gate(rules: Path) -> Iterator[Callable[..., Gate]]:
    """Makes gates that know ``shop``; all are closed at the end."""
    made: list[Gate] = []

    def make(store: Any = "memory://", **options: Any) -> Gate:
        made.append(Gate(store, rules=[rules], **options))
        return made[-1]

    yield make
    for gate in made:
        gate.close()


@pytest.fixture
def gate(new_gate: Callable[..., Gate]) -> Gate:
    """A gate of its own."""
    return new_gate()
