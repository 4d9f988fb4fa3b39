"""The laws once more, with the arithmetic inside a real server: the same worlds, the same accounts."""

from __future__ import annotations

from pathlib import Path

import redis
from tests.laws.draw import draw
from tests.laws.world import World
from tests.support.server import Server

from ratekeeper.stores.redis.store import RedisStore


def test_no_refusal_no_leak_on_a_server(tmp_path: Path, scenarios: int) -> None:
    """Whatever delays, losses, clocks, cancellations and crashes: nothing refused, nothing left, as in memory."""
    with Server(tmp_path) as server, redis.Redis(port=server.port) as client:
        for seed in range(scenarios * 3 // 10):
            client.flushall()
            store = RedisStore(server.url, given=True)
            terms = draw(seed)
            account = World(terms, store).run()
            store.close()
            assert not account.refusals, f"{account.refusals} refusals; {terms.describe()}"
            assert not account.leaks, f"{account.leaks}; {terms.describe()}"
