"""What one running emulation knows: limits, counts, clocks, and who is shut out."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from ratekeeper.rules.reading import listed

from .accounting import Bans, Meter
from .binance import Spot
from .binance_usdm import Usdm
from .bitget import Bitget
from .conditions import Chances, Clocks
from .incoming import Arrival, Failure
from .limit_table import LimitTable
from .orderly import Orderly
from .venue import Venue

if TYPE_CHECKING:
    from aiohttp import web

    from ratekeeper.rules.call import Request
    from ratekeeper.rules.provider import Provider

    from .options import Live, Options

__all__ = ["Journal", "State", "venue_of"]

SECOND = 1_000_000_000


class Journal:
    """The log file: one JSON line for every request that arrived; without a name it does nothing.

    Args:
        name: the file, written anew; or ``None``.
    """

    def __init__(self, name: str | None) -> None:
        self._file: BinaryIO | None = Path(name).open("wb") if name else None  # noqa: SIM115 - closed in `close`
        self._encode = msgspec.json.Encoder().encode

    @property
    def open(self) -> bool:
        """Whether anything is written."""
        return self._file is not None

    def write(
        self,
        now: int,
        *,
        ip: str,
        account: str,
        route: str,
        cost: dict[str, int],
        used: dict[str, int],
        status: int,
    ) -> None:
        """One arrival at `now` (nanoseconds; written as seconds)."""
        if self._file is not None:
            line = {"t": now / 1e9, "ip": ip, "account": account, "route": route, "cost": cost, "used": used}
            self._file.write(self._encode({**line, "status": status}) + b"\n")

    def flush(self) -> None:
        """Make what was written visible to readers of the file."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class State:
    """What one running emulation knows.

    Args:
        options: what was asked for; its `Live` part may change at any time.
        provider: the rules that are enforced.
    """

    def __init__(self, options: Options, provider: Provider) -> None:
        self.options = options
        self.limits = LimitTable(provider, options)
        self.meter = Meter()
        self.venue = venue_of(self.limits, options)
        self.bans = Bans(after=0, first=0, calm=2 * (self.limits.main.period or SECOND))
        self.shut: dict[str, tuple[int, Failure]] = {}
        """Owners other than addresses that are shut out: until when (ns), and the answer with which it began."""
        self.dice = random.Random(options.seed)
        self.chances = Chances(self.dice)
        self.clocks = Clocks(options, self.dice, time.time_ns())
        self.journal = Journal(options.log)
        self.totals: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.routes: Counter[str] = Counter()
        self.clients: dict[str, Counter[str]] = {}
        self.busy = 0
        self.most_busy = 0
        owners = provider.file.owners
        self._headers_of_keys = [
            name for kind in ("account", "key") if kind in owners for name in listed(owners[kind].header)
        ]
        self._labels: dict[str, str] = {"": ""}
        self.apply()
        self.started = self.clock()

    def apply(self) -> None:
        """Take over options that live elsewhere; called when they change."""
        self.limits.set_capacity(self.options.capacity)
        self.clocks.apply(time.time_ns())
        self.meter.count_refused = self.options.count_refused
        span = self.venue.ban_span()
        self.bans.after = self.options.ban_after if span else 0
        self.bans.first = span if self.options.ban is None else int(self.options.ban * SECOND)

    def clock(self) -> int:
        """The clock that counts, in nanoseconds."""
        return self.clocks.counting(time.time_ns())

    def priced(self, call: Request, request: web.Request) -> Arrival:
        """The call as it arrives now, with its price and its owners."""
        ip = request.remote or ""
        key = self.key(request)
        account = self.label(key)
        plan, charged = self.limits.plan(call, ip, account)
        if call.method.startswith("WS") and not plan.route:
            charged = ()  # the price of unknown calls is meant for REST
        flat = {name: value if isinstance(value, str) else value[-1] for name, value in (call.params or {}).items()}
        label = account or "anonymous"
        wall = time.time_ns()
        now = self.clocks.counting(wall)
        ahead = self.clocks.dating(wall, self.port(request)) - now
        return Arrival(call.method, call.path, flat, plan, charged, ip, key, label, now, call.body, ahead)

    @staticmethod
    def port(request: web.Request) -> int:
        """The client's end of the connection; 0 when it is gone."""
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        return int(peer[1]) if peer else 0

    def key(self, request: web.Request) -> str:
        """The secret that names the account; ``""`` if there is none."""
        return next((value for name in self._headers_of_keys if (value := request.headers.get(name))), "")

    def account_of(self, request: web.Request) -> str:
        """The label of the request's account; ``""`` if nothing names one."""
        return self.label(self.key(request))

    def label(self, key: str) -> str:
        """An account's label: a digest, so that no key shows up in statistics or the log."""
        label = self._labels.get(key)
        if label is None:
            if len(self._labels) >= 4_096:
                self._labels = {"": ""}
            label = self._labels[key] = hashlib.sha256(key.encode()).hexdigest()[:12]
        return label


def venue_of(limits: LimitTable, options: Live) -> Venue:
    """How the provider of the limits talks: with bodies of its own where there are some, else by its rule file alone."""
    own = {"binance-spot": Spot, "binance-usdm": Usdm, "bitget": Bitget, "orderly": Orderly}
    return own.get(limits.provider.name, Venue)(limits, options)
