"""A client's call as the policies see it: made again, kept, shared and merged like those of any other program."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict

from ratekeeper.adapters._aiohttp_parts import unread
from ratekeeper.adapters._client import ClientCall
from ratekeeper.adapters._wire import kept_headers, surely_unsent
from ratekeeper.apps.proxy.wire import kept, passed, spelled, unpacked
from ratekeeper.errors import Rejected
from ratekeeper.gate.call import Call, Reply, Served

if TYPE_CHECKING:
    from ratekeeper.adapters._governor import Governor
    from ratekeeper.adapters._wire import Outbound
    from ratekeeper.gate.steps import Steps
    from ratekeeper.rules.call import Request
    from ratekeeper.rules.provider import Provider

__all__ = ["STALE", "Arrived", "Passing"]

STALE = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
"""What a kept connection raises that turns out to be closed."""

Send = Callable[["Outbound", "Call | None"], Awaitable[aiohttp.ClientResponse]]


@dataclass
class Arrived:
    """An answer of the provider, whose body may still be on its way.

    Attributes:
        call: what brought it; None: nobody had rules for it.
        label: headers that say where it came from.
    """

    call: Call | None
    answer: aiohttp.ClientResponse
    label: dict[str, str] = field(default_factory=dict)


class Passing(ClientCall):
    """One call of one client.

    Args:
        governor, outbound, rules: as for `ClientCall`.
        send: sends one.
        whole: whether it can be sent more than once.
        again: whether it may be sent again by ourselves, when a kept connection was closed.
    """

    def __init__(
        self,
        governor: Governor,
        outbound: Outbound,
        rules: Provider,
        send: Send,
        *,
        whole: bool,
        again: bool,
    ) -> None:
        super().__init__(
            governor, outbound, rules, None, lambda _: send(self.outbound, None),
            family=lambda: Rejected, is_async=True, any_address=True,
        )  # fmt: skip
        self.replayable = whole
        self._send = send
        self._again = again

    def once(self, owner: Call) -> Steps[Arrived]:
        with kept(owner):
            try:
                answer = yield functools.partial(self._send, self.outbound, owner)
                if owner.wants_body(answer.status) and answer.content_type != "text/event-stream":
                    body = yield answer.read
                    answer.content = unread(body)
                    owner.answered(answer.status, answer.headers, _decoded(answer, body))
                elif not owner.slots:
                    owner.answered(answer.status, answer.headers)
            except BaseException as error:
                owner.failed(error)
                raise
        return Arrived(owner, answer)

    def send_ungoverned(self) -> Steps[Arrived]:
        return Arrived(None, (yield from super().send_ungoverned()))

    def late(self, seconds: float) -> Exception:
        return aiohttp.SocketTimeoutError(f"no answer within {seconds:g} s")

    def fails_over(self, error: Exception) -> bool:
        if self.elsewhere and self.replayable:
            return True
        if not self._again or not isinstance(error, STALE) or surely_unsent(error):
            return False
        self._again = False
        return True

    def read(self, response: Any) -> Steps[tuple[Reply | None, Any]]:
        if isinstance(response, web.Response):  # made by `answer`
            made = response.body if isinstance(response.body, bytes) else b""
            return Reply(response.status, kept_headers(response.headers.items()), made), response
        answer = response.answer
        body = yield answer.read
        answer.content = unread(body)
        plain = _decoded(answer, body)
        if plain is None:
            return None, response
        return Reply(answer.status, kept_headers(spelled(answer.raw_headers)), plain), response

    def answer(self, reply: Reply, served: Served) -> web.Response:
        headers: CIMultiDict[str] = passed(reply.headers)
        headers.extend(served.headers())
        return web.Response(status=reply.status, body=reply.body, headers=headers)

    def label(self, response: Any, served: Served) -> None:
        shown = response.headers if isinstance(response, web.Response) else response.label
        shown.update(served.headers())

    def discard(self, response: Any) -> Steps[None]:
        if isinstance(response, Arrived):
            response.answer.release()
        return
        yield

    def other(self, request: Request) -> Passing:
        query = urlencode(request.params or {}, doseq=True)
        outbound = self.outbound._replace(path=request.path, query=query, body=None)
        return Passing(self.governor, outbound, self.rules, self._send, whole=True, again=self._again)


def _decoded(answer: aiohttp.ClientResponse, body: bytes) -> bytes | None:
    return unpacked(body, answer.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower())
