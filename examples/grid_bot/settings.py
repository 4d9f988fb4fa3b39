"""What the bot is told, by its environment."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ratekeeper.sessions.restarts import Restart


@dataclass(frozen=True)
class Settings:
    """All durations are in seconds.

    Attributes:
        url: of the REST API.
        public, private: of the websockets, ``wss://…``.
        account, secret: the Orderly key.
        state: file of the grid.
        symbol, levels, step, quantity: the grid: levels on each side, quote currency between two, size of an order.
        haste: how much faster than in earnest time runs; for the demonstration.
    """

    url: str
    public: str
    private: str
    account: str
    secret: str
    state: Path
    symbol: str
    levels: int
    step: float
    quantity: float
    haste: float

    @classmethod
    def read(cls) -> Self:
        """From the environment."""
        said = os.environ
        url = said.get("ORDERLY_URL", "https://api.orderly.org")
        sockets = "ws" + url.removeprefix("http") if "ORDERLY_URL" in said else ""
        return cls(
            url=url,
            public=sockets or "wss://ws-evm.orderly.org",
            private=sockets or "wss://ws-private-evm.orderly.org",
            account=said["ORDERLY_ACCOUNT"],
            secret=said["ORDERLY_SECRET"],
            state=Path(said.get("GRID_STATE", "grid.json")),
            symbol=said.get("GRID_SYMBOL", "PERP_BTC_USDC"),
            levels=int(said.get("GRID_LEVELS", "5")),
            step=float(said.get("GRID_STEP", "100")),
            quantity=float(said.get("GRID_QUANTITY", "0.001")),
            haste=float(said.get("GRID_HASTE", "1")),
        )

    @property
    def answers_within(self) -> float:
        """Patience with an answer."""
        return max(0.7, 10 / self.haste)

    @property
    def waits(self) -> float:
        """How long a call may wait for a limit or a ban to end."""
        return max(2.0, 30 / self.haste)

    @property
    def late(self) -> float:
        """Age of the last order sync at which something is wrong; with retries one may take long."""
        return max(8.0, 240 / self.haste)

    @property
    def patience(self) -> float:
        """Silence after which the price stream is replaced."""
        return max(1.5, 30 / self.haste)

    @property
    def ping(self) -> float:
        """Between two pings of the private stream."""
        return max(1.0, 20 / self.haste)

    @property
    def longest(self) -> float:
        """Between two dials, and between two starts of the session."""
        return max(1.0, 60 / self.haste)

    def restart(self) -> Restart:
        """The session's recovery: a check every 60 s, at most 5 attempts, a cooldown of 600 s."""
        return Restart(
            check_every=60 / self.haste,
            check_timeout=max(2.0, 10 / self.haste),
            attempts=5,
            cooldown=600 / self.haste,
            first=2 / self.haste,
            longest=self.longest,
            proven=max(0.5, 5 / self.haste),
            most=10 if self.haste == 1 else 100,
        )
