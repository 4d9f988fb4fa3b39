"""What a test may ask of the emulator: figures, a ban, other options, a journal. These calls are not counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from aiohttp import web

from ratekeeper.rules.files import to_toml

from .options import Live

if TYPE_CHECKING:
    from .accounting import Span, Tally
    from .server import Emulation

__all__ = ["Journal", "add_control", "share_used", "stats"]

SECOND = 1_000_000_000


def add_control(app: web.Application, emulation: Emulation) -> None:
    """Add the routes under ``/__emulator__/``."""

    async def show_stats(_request: web.Request) -> web.Response:
        emulation.journal.flush()
        return _json(stats(emulation))

    async def told(request: web.Request) -> dict[str, Any]:
        """What the request says, in its query or its JSON body; `ValueError` if that is broken."""
        body = msgspec.json.decode(await request.read() or b"{}", type=dict[str, Any])
        return {**request.query, **body}

    async def ban(request: web.Request) -> web.Response:
        try:
            asked = await told(request)
            seconds = float(asked.get("seconds", 120))
        except (TypeError, ValueError):
            return _json({"error": "seconds must be a number"}, status=400)
        address = emulation.bans.address(str(asked.get("ip", "127.0.0.1")))
        if seconds > 0:
            emulation.bans.ban(address, emulation.clock(), int(seconds * SECOND))
        else:
            address.banned_until = 0
        return _json({"ip": address.ip, "until": address.banned_until // 1_000_000})

    async def cut(request: web.Request) -> web.Response:
        try:
            asked = await told(request)
            ended = emulation.sockets.cut(str(asked.get("mode", "close")), str(asked.get("ip", "")))
        except ValueError as error:
            return _json({"error": str(error)}, status=400)
        return _json({"cut": ended})

    async def show_options(_request: web.Request) -> web.Response:
        return _json(_options(emulation))

    async def set_options(request: web.Request) -> web.Response:
        try:
            emulation.options.change(await told(request))
        except ValueError as error:  # msgspec's decoding errors are ValueErrors too
            return _json({"error": str(error)}, status=400)
        emulation.apply()
        return _json(_options(emulation))

    async def show_rules(_request: web.Request) -> web.Response:
        return web.Response(text=to_toml(emulation.limits.rules()), content_type="application/toml")

    app.router.add_get("/__emulator__/stats", show_stats)
    app.router.add_get("/__emulator__/rules", show_rules)
    app.router.add_post("/__emulator__/ban", ban)
    app.router.add_post("/__emulator__/cut", cut)
    app.router.add_get("/__emulator__/options", show_options)
    app.router.add_post("/__emulator__/options", set_options)


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


def _options(emulation: Emulation) -> dict[str, Any]:
    return {name: getattr(emulation.options, name) for name in Live.__struct_fields__}


def stats(emulation: Emulation) -> dict[str, Any]:
    """Everything that was counted. Instants are Unix seconds of the emulator's clock."""
    now = emulation.clock()
    addresses = emulation.bans.all()
    return {
        "provider": emulation.limits.provider.name,
        "now": now / SECOND,
        "started": emulation.started / SECOND,
        "limits": {
            limit.name: {
                "unit": limit.unit,
                "capacity": limit.capacity,
                "seconds": limit.period / SECOND,
                "window": limit.window,
                "scope": list(limit.scope),
            }
            for limit in emulation.limits.by_name.values()
        },
        "main": emulation.limits.main.name,
        "windows": [_window(tally, span, emulation.started, now) for tally in emulation.meter for span in tally.spans],
        "totals": {
            "arrivals": emulation.totals["arrivals"],
            "throttled": sum(address.throttled for address in addresses),
            "banned": sum(address.shut_out for address in addresses),
            "bans": sum(len(address.bans) for address in addresses),
            "errors": emulation.totals["errors"],
            "lost": emulation.totals["lost"],
            "hung_up": emulation.totals["hung_up"],
            "hung": emulation.totals["hung"],
            "sockets_closed": emulation.totals["sockets_closed"],
            "max_concurrency": emulation.most_busy,
        },
        "statuses": {str(status): count for status, count in sorted(emulation.statuses.items())},
        "routes": dict(emulation.routes),
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
        "clients": {agent: dict(counts) for agent, counts in emulation.clients.items()},
        "orders": emulation.venue.orders(),
        "sockets": emulation.sockets.stats(),
    }


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


def share_used(emulation: Emulation) -> float | None:
    """Mean share of the main limit that was really spent, over complete windows in which anything arrived."""
    main, now = emulation.limits.main, emulation.clock()
    shares = [
        span.accepted / span.capacity
        for tally in emulation.meter
        if tally.limit is main
        for span in tally.spans
        if span.start >= emulation.started and span.start + main.period <= now
    ]
    return sum(shares) / len(shares) if shares else None


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
