"""The Redis store, as far as it needs no server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ratekeeper.ledger.limit import SECOND
from ratekeeper.stores.members import WakeSockets
from ratekeeper.stores.redis.lua import member_name
from ratekeeper.stores.redis.store import RedisStore


def test_the_dead_are_told_when_the_server_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of this machine dies while the server cannot be reached: the server hears of it when it can, and not before
    does the sign of the death go."""
    store = RedisStore("redis://127.0.0.1:1", home=tmp_path)
    store._client.member = member_name(1)
    others = WakeSockets(tmp_path / "wake")
    others.open(2)
    others.drop(2)
    told: list[str] = []
    reached = [False]

    def leave(member: str, *, own: bool = True) -> bool:
        told.append(member)
        return reached[0]

    monkeypatch.setattr(store._client, "leave", leave)
    mono = time.monotonic_ns()
    for seconds, now_reached, times in ((1, False, 1), (2, True, 2), (3, True, 2)):
        reached[0] = now_reached
        store._tend(mono + seconds * SECOND)
        assert told == [member_name(2)] * times
    assert others.census() == {}
    monkeypatch.undo()
    store.close()
