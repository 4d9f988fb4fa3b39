"""The side that programs speak to: who may come in, where a call goes, and what is said when it cannot go there."""

from __future__ import annotations

import hmac
import logging
import math
from typing import TYPE_CHECKING

from aiohttp import web

from ratekeeper import __version__
from ratekeeper.adapters._governor import Governor
from ratekeeper.apps.proxy.forward import Forward, Target
from ratekeeper.apps.proxy.refusal import Refusals, failure
from ratekeeper.apps.proxy.websocket import Relays, wants_websocket
from ratekeeper.errors import Blocked, RatekeeperError, Rejected
from ratekeeper.rules.call import Priority

if TYPE_CHECKING:
    import aiohttp

    from ratekeeper import Gate
    from ratekeeper.apps.proxy.upstreams import Upstreams

__all__ = ["Proxy"]

log = logging.getLogger("ratekeeper")


class Proxy:
    """The handler of every request.

    Args:
        gate: the gate that is asked.
        upstreams: where calls may go.
        session: what to send with.
        token: what clients must show; ``""``: nothing.
    """

    def __init__(self, gate: Gate, upstreams: Upstreams, session: aiohttp.ClientSession, token: str = "") -> None:
        self._gate = gate
        self._upstreams = upstreams
        self._token = token.encode()
        self._governor = Governor(gate)
        self._forward = Forward(session)
        self._refusals = Refusals(gate)
        self._stopping = False
        self.relays = Relays(session)

    def stop(self) -> None:
        """Refuse what still waits, and end websockets. What was sent goes on."""
        self._stopping = True
        self._gate.room.close()
        self.relays.stop()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            return await self._answer(request)
        except Rejected as error:
            if self._stopping:
                return failure(503, "Stopping", "the proxy stops; nothing was sent", headers={"Retry-After": "1"})
            return self._refusals.answer(error)
        except RatekeeperError as error:
            return failure(500, type(error).__name__, str(error))
        except ConnectionError:
            raise  # the client left
        except Exception as error:  # noqa: BLE001 - logged by its kind alone
            # Neither the message nor the traceback: they may quote the URL, and query strings hold signatures.
            log.error("ratekeeper proxy: %s while a call was passed on", type(error).__name__)
            return failure(500, type(error).__name__, "an error of the proxy's own; the call may have been sent")

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = request.raw_path
        if not raw.startswith("/"):
            return failure(
                400, "BadRequest", "this is no forward proxy: use it as a base URL, as in /binance-usdm/fapi/v1/time"
            )
        segment, rest = _split(raw)
        if segment == "healthz":
            return web.json_response({"ok": True})
        shown = request.headers.get("X-Ratekeeper-Token", "")
        if segment == "t":
            shown, rest = _split(rest)
            segment, rest = _split(rest)
        if self._token and not hmac.compare_digest(shown.encode("utf-8", "replace"), self._token):
            return failure(401, "Token", "send the proxy's token: X-Ratekeeper-Token: …, or /t/TOKEN before the path")
        if not segment:
            return web.json_response({"ratekeeper": __version__, "upstreams": self._upstreams.urls()})
        upstream = self._upstreams.find(segment)
        if upstream is None:
            urls = self._upstreams.urls()
            return failure(
                404,
                "UnknownUpstream",
                f"no upstream is called {segment!r}: use one of {', '.join(urls)}",
                upstreams=urls,
            )
        try:
            governor = self._steered(request)
        except (RatekeeperError, ValueError) as error:
            return failure(400, "BadRequest", str(error))
        target = Target(request, upstream, rest)
        upgrade = wants_websocket(request)
        try:
            return await (self.relays if upgrade else self._forward).exchange(target, governor)
        except Blocked as error:
            rules = governor.match(target.outbound(None, upgrade=upgrade))
            if self._stopping or rules is None:
                raise
            return self._refusals.shut(error, rules, target.outbound(None, upgrade=upgrade).call())

    def _steered(self, request: web.BaseRequest) -> Governor:
        """How this client wants to wait; for the end of a long block waits only who said for how long."""
        klass = request.headers.get("X-Ratekeeper-Priority")
        patience = request.headers.get("X-Ratekeeper-Timeout")
        if klass is None and patience is None:
            return self._governor
        priority = None if klass is None else Priority.of(klass)
        if patience is None:
            return Governor(self._gate, priority=priority)
        try:
            seconds = float(patience)
        except ValueError:
            seconds = -1.0
        if not (seconds >= 0 and math.isfinite(seconds)):
            raise ValueError("X-Ratekeeper-Timeout is a number of seconds, such as 2.5; 0: now or never")
        return Governor(self._gate, priority=priority, timeout=seconds)


def _split(raw: str) -> tuple[str, str]:
    """First segment, and the rest as a path with a slash in front; the query stays where it is."""
    path, mark, query = raw.partition("?")
    segment, _, rest = path[1:].partition("/")
    return segment, f"/{rest}{mark}{query}"
