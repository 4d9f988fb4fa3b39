"""What a test may ask of the emulator: figures, a ban, other options, a journal. These calls are not counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from ratekeeper.rules.files import to_toml

from .options import Live

if TYPE_CHECKING:
    from .accounting import Span, Tally
    from .sockets import Sockets
    from .state import State

__all__ = ["add_control", "share_used", "stats"]

SECOND = 1_000_000_000


def add_control(app: web.Application, state: State, sockets: Sockets) -> None:
    """Add the routes under ``/__emulator__/``."""

    async def show_stats(_request: web.Request) -> web.Response:
        state.journal.flush()
        return _json(stats(state, sockets))

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
        address = state.bans.address(str(asked.get("ip", "127.0.0.1")))
        if seconds > 0:
            state.bans.ban(address, state.clock(), int(seconds * SECOND))
        else:
            address.banned_until = 0
        return _json({"ip": address.ip, "until": address.banned_until // 1_000_000})

    async def cut(request: web.Request) -> web.Response:
        try:
            asked = await told(request)
            ended = sockets.cut(str(asked.get("mode", "close")), str(asked.get("ip", "")))
        except ValueError as error:
            return _json({"error": str(error)}, status=400)
        return _json({"cut": ended})

    async def show_options(_request: web.Request) -> web.Response:
        return _json(_options(state))

    async def set_options(request: web.Request) -> web.Response:
        try:
            state.options.change(await told(request))
        except ValueError as error:  # msgspec's decoding errors are ValueErrors too
            return _json({"error": str(error)}, status=400)
        state.apply()
        return _json(_options(state))

    async def show_rules(_request: web.Request) -> web.Response:
        return web.Response(text=to_toml(state.limits.rules()), content_type="application/toml")

    app.router.add_get("/__emulator__/stats", show_stats)
    app.router.add_get("/__emulator__/rules", show_rules)
    app.router.add_post("/__emulator__/ban", ban)
    app.router.add_post("/__emulator__/cut", cut)
    app.router.add_get("/__emulator__/options", show_options)
    app.router.add_post("/__emulator__/options", set_options)


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


def _options(state: State) -> dict[str, Any]:
    return {name: getattr(state.options, name) for name in Live.__struct_fields__}


def stats(state: State, sockets: Sockets) -> dict[str, Any]:
    """Everything that was counted. Instants are Unix seconds of the emulator's clock."""
    now = state.clock()
    addresses = state.bans.all()
    return {
        "provider": state.limits.provider.name,
        "now": now / SECOND,
        "started": state.started / SECOND,
        "limits": {
            limit.name: {
                "unit": limit.unit,
                "capacity": limit.capacity,
                "seconds": limit.period / SECOND,
                "window": limit.window,
                "scope": list(limit.scope),
            }
            for limit in state.limits.by_name.values()
        },
        "main": state.limits.main.name,
        "windows": [_window(tally, span, state.started, now) for tally in state.meter for span in tally.spans],
        "totals": {
            "arrivals": state.totals["arrivals"],
            "throttled": sum(address.throttled for address in addresses),
            "banned": sum(address.shut_out for address in addresses),
            "bans": sum(len(address.bans) for address in addresses),
            "errors": state.totals["errors"],
            "lost": state.totals["lost"],
            "hung_up": state.totals["hung_up"],
            "hung": state.totals["hung"],
            "sockets_closed": state.totals["sockets_closed"],
            "max_concurrency": state.most_busy,
        },
        "statuses": {str(status): count for status, count in sorted(state.statuses.items())},
        "routes": dict(state.routes),
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
        "clients": {agent: dict(counts) for agent, counts in state.clients.items()},
        "orders": state.venue.orders(),
        "sockets": sockets.stats(),
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


def share_used(state: State) -> float | None:
    """Mean share of the main limit that was really spent, over complete windows in which anything arrived."""
    main, now = state.limits.main, state.clock()
    shares = [
        span.accepted / span.capacity
        for tally in state.meter
        if tally.limit is main
        for span in tally.spans
        if span.start >= state.started and span.start + main.period <= now
    ]
    return sum(shares) / len(shares) if shares else None
