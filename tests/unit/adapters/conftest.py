"""A server on loopback that counts, and a gate with rules for it."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ratekeeper import Gate

SUPPORT = Path(__file__).parents[2] / "support"
sys.path.append(str(SUPPORT))

from origin import Origin  # noqa: E402


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here speaks TLS: no client reads the certificates of the world, which takes longer than most tests."""
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_args, **_named: None)


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A server that counts what arrives."""
    with Origin() as server:
        yield server


@pytest.fixture
def gate(origin: Origin) -> Iterator[Gate]:
    """A gate of its own, in memory, that takes the server for Testland."""
    with Gate("memory://", hosts={origin.place: "testland"}, rules=[SUPPORT / "testland.toml"], max_wait=5) as made:
        yield made


@pytest.fixture
def spent(gate: Gate) -> Callable[..., Any]:
    """What a limit has used (``requests-1d``) and what is in flight on it, as ``(used, in flight)``."""

    def look(limit: str = "requests-1d") -> tuple[int, int]:
        found = [view for view in gate.read().ledgers if f"/{limit}/" in view.key]
        return sum(view.used for view in found), sum(view.inflight for view in found)

    return look
