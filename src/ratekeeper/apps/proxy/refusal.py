"""What a client is told instead of an answer: for a ban or another block what the provider would say, for a budget that
is spent, as JSON, which limit, whose, until when, who spent it, what to do."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web
from multidict import CIMultiDict

from ratekeeper.adapters._client import denied
from ratekeeper.errors import CannotFit, Rejected, SignatureWouldExpire
from ratekeeper.gate.call import Served
from ratekeeper.ledger.shares import AGED
from ratekeeper.policy.freshness import Service
from ratekeeper.rules.call import Priority

if TYPE_CHECKING:
    from ratekeeper import Gate
    from ratekeeper.errors import Blocked
    from ratekeeper.rules.call import Request
    from ratekeeper.rules.provider import Provider
    from ratekeeper.stores.records import Snapshot

__all__ = ["Refusals", "failure"]

_FRESH = 1.0
"""Seconds for which one look at the store serves all refusals: a client that loops must not make us busy."""
_SPENDERS = 5


def failure(
    status: int, kind: str, message: str, *, headers: dict[str, str] | None = None, **more: Any
) -> web.Response:
    """An answer of the proxy's own. Its header ``X-Ratekeeper-Error`` tells it from the provider's."""
    body = json.dumps({"error": {"by": "ratekeeper", "kind": kind, "message": message, **more}}, ensure_ascii=False)
    return web.Response(
        status=status,
        body=body.encode() + b"\n",
        headers={"Content-Type": "application/json", "X-Ratekeeper-Error": kind, **(headers or {})},
    )


class Refusals:
    """Words for refusals of one gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._looked = -_FRESH
        self._found: Snapshot | None = None

    def shut(self, block: Blocked, rules: Provider, call: Request) -> web.Response:
        """The provider's own answer to a call that a block holds, with ``Retry-After`` in whole seconds."""
        reply = denied(self._gate, rules, call, block)
        headers = CIMultiDict([*reply.headers, *Served(Service.REFUSED).headers().items()])
        headers["X-Ratekeeper-Error"] = type(block).__name__
        return web.Response(status=reply.status, body=reply.body, headers=headers)

    def answer(self, error: Rejected) -> web.Response:
        """429 with ``Retry-After``, in whole seconds and never too early."""
        headers = {}
        wait = _wait(error)
        if wait is None:
            headers["X-Should-Retry"] = "false"
        else:
            headers["Retry-After"] = str(wait)
        until = error.retry_at
        return failure(
            429,
            type(error).__name__,
            f"nothing was sent: {error}",
            headers=headers,
            limit=error.limit,
            scope=error.scope,
            until=None if until is None else datetime.fromtimestamp(until, UTC).isoformat(timespec="milliseconds"),
            retry_after=wait,
            spent_by=self._spenders(error.scope),
            remedy=_remedy(error),
        )

    def _spenders(self, key: str) -> list[dict[str, Any]]:
        """Who spent most of a limit in its present window; empty for what is no limit."""
        now = time.monotonic()
        if now - self._looked >= _FRESH:
            self._found, self._looked = self._gate.read(), now
        assert self._found is not None
        view = next((view for view in self._found.ledgers if view.key == key), None)
        if view is None:
            return []
        rows = sorted(view.rows.items(), key=lambda item: -item[1][0])[:_SPENDERS]
        spenders: list[dict[str, Any]] = [
            {
                "process": self._found.members.get(member, "gone"),
                "priority": Priority(priority % AGED).name.lower(),
                "taken": row[0],
            }
            for (member, priority), row in rows
            if row[0]
        ]
        if view.foreign:
            spenders.append({"process": "programs without Ratekeeper", "taken": view.foreign})
        return spenders


def _wait(error: Rejected) -> int | None:
    """Whole seconds until it is worth asking again; None: never."""
    if isinstance(error, CannotFit):
        return None
    if error.retry_at is not None:
        return max(1, math.ceil(error.retry_at - time.time()))
    return 1


def _remedy(error: Rejected) -> str:
    if isinstance(error, CannotFit):
        return "Ask for less in one call: it costs more than the limit ever allows."
    if isinstance(error, SignatureWouldExpire):
        return "Sign it anew and send it after Retry-After, or widen the signing window (such as recvWindow)."
    return "Send it again after Retry-After, or let it wait here: X-Ratekeeper-Timeout says for how many seconds."
