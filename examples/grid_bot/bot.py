"""A grid of limit orders on Orderly, in a session that does not die: ``python bot.py``.

See README.md for what it needs in its environment.
"""

import asyncio
import logging

from exchange import Exchange, Key
from ladder import Ladder
from session import Session
from settings import Settings

from ratekeeper import Gate
from ratekeeper.gate.events import Event
from ratekeeper.sessions.supervisor import Supervisor

SHOWN = {
    "throttled", "paced", "banned", "retry", "gave up", "unknown", "breaker", "breaker closed", "cache hit", "cache stale",
    "stream down", "stream stale", "stream back",
    "session abnormal", "session recovering", "session recovered", "session failed", "session stopped",
}  # fmt: skip


def show(event: Event) -> None:
    """Limits hit, throttling that adapts, sessions that are recovered, answers that were kept."""
    if event.kind in SHOWN:
        print(f"{event.kind}: {event.message[:200]}", flush=True)


async def main() -> None:
    logging.getLogger("ratekeeper").addHandler(logging.NullHandler())  # `show` prints it
    settings = Settings.read()
    with Gate() as gate:  # policies and headroom: ratekeeper.toml
        gate.on(show)
        key = Key(settings.account, settings.secret)
        exchange = Exchange(gate, settings.url, key, (settings.answers_within, settings.waits))
        ladder = Ladder.load(settings.state, settings.levels, settings.step)
        try:
            async with Supervisor(gate, name="grid_bot") as supervisor:
                supervisor.add("grid", Session(exchange, ladder, settings), settings=settings.restart())
                await supervisor.finished()
        finally:
            await exchange.close()


if __name__ == "__main__":
    asyncio.run(main())
