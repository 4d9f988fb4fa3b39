"""The state of one running emulation: limits, counts, bans, clocks that do not agree, and random faults.

A provider counts by the clock of an engine, and its edge servers date what goes out. Nobody promises that the two agree.
`Clocks` and `Chances` are pure: instants are arguments, integer nanoseconds.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import msgspec

from ratekeeper.rules.reading import listed

from .accounting import Meter
from .binance import Spot
from .binance_usdm import Usdm
from .bitget import Bitget
from .incoming import Arrival, Failure
from .limit_table import LimitTable
from .options import Live
from .orderly import Orderly
from .refusing import Bans
from .venue import Venue

if TYPE_CHECKING:
    from aiohttp import web

    from ratekeeper.rules.call import Request
    from ratekeeper.rules.provider import Provider

    from .accounting import Span, Tally
    from .options import Options

__all__ = ["MACHINES", "Chances", "Clocks", "Journal", "State", "venue_of"]

SECOND = 1_000_000_000
MILLION = 1_000_000
MACHINES = 5
"""Machines that date the answers; their clocks lie evenly across `Live.date_spread`."""


class Clocks:
    """Tells both times of one emulation.

    Args:
        options: `skew` moves all clocks, `date_offset`, `date_drift`, `date_spread` and `date_per` those that date.
        dice: chooses the machine where each answer has its own.
        begin: the wall clock, Unix ns; the drift counts from here.
    """

    def __init__(self, options: Live, dice: random.Random, begin: int) -> None:
        self._options = options
        self._dice = dice
        self._drift = options.date_drift
        self._begin = begin
        self._drifted = 0

    def apply(self, wall: int) -> None:
        """Take over a changed drift: what has drifted by `wall` (Unix ns) stays, and goes on at the new rate."""
        self._drifted = self._drift_at(wall)
        self._begin, self._drift = wall, self._options.date_drift

    def counting(self, wall: int) -> int:
        """The clock by which windows, bans and instants of return go, when the machine's own clock shows `wall`."""
        return wall + round(self._options.skew * SECOND)

    def dating(self, wall: int, port: int) -> int:
        """The clock of the machine that answers the connection from `port`, at the same moment.

        It is `date_offset` seconds (and the drift) ahead of the one that counts, give or take half of `date_spread`.
        """
        options = self._options
        ahead = round(options.date_offset * SECOND) + self._drift_at(wall)
        spread = round(options.date_spread * SECOND)
        if spread:
            ahead += spread * self._machine(port) // (MACHINES - 1) - spread // 2
        return self.counting(wall) + ahead

    def _drift_at(self, wall: int) -> int:
        return self._drifted + round((wall - self._begin) * self._drift / MILLION)

    def _machine(self, port: int) -> int:
        """The number of a machine, chosen by the client's port as a load balancer does: by half of it, because systems often
        give out only even or only odd ports."""
        if self._options.date_per == "answer":
            return self._dice.randrange(MACHINES)
        return port // 2 % MACHINES


class _Course(NamedTuple):
    """The progress of one kind of fault: it strikes when `phase` passes `at`, a random point within each whole number."""

    phase: float
    at: float
    due: int


class Chances:
    """Picks one of every 1/share requests at random. Were each request drawn by itself, one in eight runs of a hundred
    requests would show no fault at a share of 2 %.

    Args:
        dice: what draws.
    """

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._courses: dict[str, _Course] = {}

    def strikes(self, kind: str, share: float) -> bool:
        """Whether this kind of fault strikes the next request. `share` (0 to 1) may change at any time."""
        if not share:
            return False
        phase, at, due = self._courses.get(kind) or _Course(0.0, self._dice.random(), 0)
        phase += share
        if at < phase:
            due, at = due + 1, 2.0  # none until the next whole number
        if phase >= 1:
            phase -= 1
            at = self._dice.random()
            if at < phase:
                due, at = due + 1, 2.0
        self._courses[kind] = _Course(phase, at, max(0, due - 1))
        return due > 0


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
    """The state of one running emulation.

    Args:
        options: the options in force; the `Live` part may change at any time.
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
        """Hand changed options to the limits, clocks, meter and bans that use them."""
        self.limits.set_capacity(self.options.capacity)
        self.clocks.apply(time.time_ns())
        self.meter.count_refused = self.options.count_refused
        span = self.venue.ban_span()
        self.bans.after = self.options.ban_after if span else 0
        self.bans.first = span if self.options.ban is None else int(self.options.ban * SECOND)

    def live(self) -> dict[str, Any]:
        """The options that may be changed now, by name."""
        return {name: getattr(self.options, name) for name in Live.__struct_fields__}

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

    def stats(self, sockets: dict[str, Any]) -> dict[str, Any]:
        """Everything that was counted; `sockets` are the figures of the websockets. Instants are Unix seconds of the
        emulator's clock."""
        now = self.clock()
        addresses = self.bans.all()
        return {
            "provider": self.limits.provider.name,
            "now": now / SECOND,
            "started": self.started / SECOND,
            "limits": {
                limit.name: {
                    "unit": limit.unit,
                    "capacity": limit.capacity,
                    "seconds": limit.period / SECOND,
                    "window": limit.window,
                    "scope": list(limit.scope),
                }
                for limit in self.limits.by_name.values()
            },
            "main": self.limits.main.name,
            "windows": [_window(tally, span, self.started, now) for tally in self.meter for span in tally.spans],
            "totals": {
                "arrivals": self.totals["arrivals"],
                "throttled": sum(address.throttled for address in addresses),
                "banned": sum(address.shut_out for address in addresses),
                "bans": sum(len(address.bans) for address in addresses),
                "errors": self.totals["errors"],
                "lost": self.totals["lost"],
                "hung_up": self.totals["hung_up"],
                "hung": self.totals["hung"],
                "sockets_closed": self.totals["sockets_closed"],
                "max_concurrency": self.most_busy,
            },
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "routes": dict(self.routes),
            "ips": {
                address.ip: {
                    "arrivals": address.arrivals,
                    "throttled": address.throttled,
                    "banned": address.shut_out,
                    "bans": [[begin / SECOND, end / SECOND] for begin, end in address.bans],
                    "banned_until": address.banned_until / SECOND,
                }
                for address in addresses
            },
            "clients": {agent: dict(counts) for agent, counts in self.clients.items()},
            "orders": self.venue.orders(),
            "sockets": sockets,
        }

    def share_used(self) -> float | None:
        """Mean share of the main limit that was really spent, over complete windows in which anything arrived."""
        main, now = self.limits.main, self.clock()
        shares = [
            span.accepted / span.capacity
            for tally in self.meter
            if tally.limit is main
            for span in tally.spans
            if span.start >= self.started and span.start + main.period <= now
        ]
        return sum(shares) / len(shares) if shares else None


def _window(tally: Tally, span: Span, started: int, now: int) -> dict[str, Any]:
    limit = tally.limit
    return {
        "limit": limit.name,
        "owner": tally.owner,
        "start": span.start / SECOND,
        "seconds": limit.period / SECOND,
        "capacity": span.capacity,
        "used": span.peak,
        "accepted": span.accepted,
        "refused": span.refused,
        "calls": span.calls,
        "complete": span.start >= started and span.start + limit.period <= now,
    }


def venue_of(limits: LimitTable, options: Live) -> Venue:
    """The venue of a provider: one with bodies of its own if there is one, else one made of the rule file alone."""
    own = {"binance-spot": Spot, "binance-usdm": Usdm, "bitget": Bitget, "orderly": Orderly}
    return own.get(limits.provider.name, Venue)(limits, options)
