"""One call from end to end: through the gate, to the provider, and back, byte for byte."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from ratekeeper.adapters._client import ClientCall, begin, run
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._wire import Outbound, surely_unsent
from ratekeeper.apps.proxy.guard import straight
from ratekeeper.apps.proxy.passing import STALE, Arrived, Passing
from ratekeeper.apps.proxy.refusal import failure
from ratekeeper.apps.proxy.wire import Passed, body_of, kept, passed, readable, spelled, unpacked
from ratekeeper.errors import CallFailed, Rejected, SignatureWouldExpire
from ratekeeper.gate.call import Call, HandedDown
from ratekeeper.gate.steps import drive_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from multidict import CIMultiDict

    from ratekeeper.apps.proxy.upstreams import Upstream

__all__ = ["Forward", "Target", "admitted", "broken"]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that may be sent a second time when a kept connection turns out to be closed."""
_BODY_MOST = 32 << 20
"""Bytes of an answer that are copied for the rules at most; the client gets all of them anyhow."""


class Target:
    """What a client's request is for.

    Attributes:
        raw: path and query, as the upstream shall get them.
        path: the path as the rules see it.
        headers: those that go on.
    """

    __slots__ = ("headers", "path", "query", "raw", "request", "upstream")

    def __init__(self, request: web.BaseRequest, upstream: Upstream, raw: str) -> None:
        self.request = request
        self.upstream = upstream
        self.raw = upstream.base + raw
        path, _, self.query = self.raw.partition("?")
        self.path = straight(path)
        self.headers: CIMultiDict[str] = passed(spelled(request.raw_headers))

    @property
    def url(self) -> URL:
        """The whole URL."""
        return self.url_of(self.raw)

    def url_of(self, raw: str) -> URL:
        """That of a path and query. All of it stands in the place of the path, or yarl would drop an empty query."""
        return URL.build(scheme=self.upstream.scheme, authority=self.upstream.netloc, path=raw, encoded=True)

    def outbound(self, body: bytes | None, *, upgrade: bool = False) -> Outbound:
        """The request as the rules see it."""
        # The rules tell a websocket's handshake by its header, which does not go on.
        headers: Any = {**self.headers, "upgrade": "websocket"} if upgrade else self.headers
        method = self.request.method
        return Outbound(method, self.upstream.scheme, self.upstream.netloc, self.path, self.query, headers, body)


async def admitted(governor: Governor, outbound: Outbound, *, apart: bool = False) -> ClientCall | None:
    """Waits for the gate; None if the host has no rules. `apart` as for `ratekeeper.adapters._client.begin`.

    Raises:
        Rejected: it may not leave.
    """
    return await drive_async(begin(governor, outbound, _ours, is_async=True, any_address=True, apart=apart))


def _ours() -> type[Exception]:
    return Rejected


class Forward:
    """Passes HTTP calls on.

    Args:
        session: what to send with.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def exchange(self, target: Target, governor: Governor) -> web.StreamResponse:
        """Send a call when it may go, and give its answer to the client as it comes.

        Raises:
            Rejected: the gate refused.
        """
        readable(target.headers)
        body = await body_of(target.request)
        whole = body is None or isinstance(body, bytes)
        again = whole and target.request.method in _SAFE
        outbound = target.outbound(body if isinstance(body, bytes) else None)

        async def send(outbound: Outbound, call: Call | None) -> aiohttp.ClientResponse:
            return await self._send(target, call, body, outbound)

        if governor.gate.pipeline is not None and governor.knows(outbound.netloc, outbound.path):
            rules = governor.match(outbound)
            if rules is not None:
                return await self._managed(target, Passing(governor, outbound, rules, send, whole=whole, again=again))
        last: BaseException | None = None
        while True:
            try:
                call = await admitted(governor, outbound)
            except SignatureWouldExpire as error:
                return _late(error, last)
            with kept(call):
                try:
                    answer = await send(outbound, call)
                except BaseException as error:
                    last = error
                    if call is not None:
                        call.failed(error)
                        if call.elsewhere and whole:
                            continue  # it never left; the next permit names another address
                    if again and isinstance(error, STALE):
                        again = False
                        if not surely_unsent(error):
                            continue  # the connection was an old one; whatever this sends has a permit of its own
                    if isinstance(error, (aiohttp.ClientError, OSError)):
                        return broken(error)
                    raise
                return await _back(target.request, Arrived(call, answer))

    async def _managed(self, target: Target, call: Passing) -> web.StreamResponse:
        """The same with all that the policies do around it."""
        try:
            found = await drive_async(run(call))
        except CallFailed as error:
            # What the provider said last is as much as its client would get from it directly.
            found, cause = error.response, error.__cause__
            if not isinstance(found, Arrived):
                if isinstance(cause, Rejected):
                    raise cause from None
                return broken(cause or error)
        except (aiohttp.ClientError, OSError) as error:
            return broken(error)
        if isinstance(found, web.Response):
            return found  # a cached response
        with kept(found.call):
            return await _back(target.request, found)

    async def _send(
        self,
        target: Target,
        call: Call | None,
        body: bytes | AsyncIterator[bytes] | None,
        outbound: Outbound,
    ) -> aiohttp.ClientResponse:
        # What the client asked for goes on as it came; a merged call is another one.
        raw = target.raw if outbound.query == target.query and outbound.path == target.path else None
        url = target.url_of(raw if raw is not None else f"{outbound.path}?{outbound.query}")
        with nullcontext() if call is None else HandedDown(call):
            return await self._session.request(
                target.request.method, url, headers=target.headers, data=body, allow_redirects=False
            )


def _late(error: SignatureWouldExpire, last: BaseException | None) -> web.Response:
    """What the last attempt brought, where another would come after the signature has expired. Raises `error` if it was the
    first."""
    if last is None:
        raise error
    return broken(last)


def broken(error: BaseException) -> web.Response:
    """502 or 504. Says whether the call can have arrived, since an order must not be sent twice."""
    unsent = surely_unsent(error)
    late = isinstance(error, TimeoutError)
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    reason = getattr(cause, "strerror", None) or type(error).__name__
    message = f"the provider {'did not answer in time' if late else 'could not be reached'} ({reason})"
    if not unsent:
        message = f"no answer came ({reason}); the call may have arrived: ask before you send it again"
    return failure(504 if late else 502, type(error).__name__, message, sent="no" if unsent else "unknown")


async def _back(request: web.BaseRequest, arrived: Arrived) -> web.StreamResponse:
    """The way back. The gate is told as soon as there is nothing more to learn: at the head, or after the body."""
    call, answer = arrived.call, arrived.answer
    try:
        status, headers, content = answer.status, answer.headers, answer.content
        head = passed(spelled(answer.raw_headers))
        if call is not None and call.permit is not None and call.permit.waited >= 0.001:
            head["X-Ratekeeper-Waited"] = str(round(call.permit.waited * 1000))
        head.extend(arrived.label)
        copy: bytearray | None = None
        if call is not None:
            if call.wants_body(status) and not headers.get(hdrs.CONTENT_TYPE, "").startswith("text/event-stream"):
                copy = bytearray()
            elif not call.slots:
                call.answered(status, headers)
        client = Passed(status=status, reason=answer.reason, headers=head)
        if content.is_eof():  # all of it is here: head and body leave together
            body = await content.read()
            _tell(call, status, headers, body if copy is not None else None)
            await client.begin(request, content)
            await client.write_eof(body)
            return client
        await client.begin(request, content)
        if not await _stream(client, content, copy):
            # Cut short: so is the client's, or it would take the part for the whole.
            _close(request)
            return client
        _tell(call, status, headers, None if copy is None else bytes(copy))
        await client.write_eof()
        return client
    except ConnectionError:
        _close(request)  # the client left
        return client
    finally:
        _tell(call, status, headers, None)
        answer.close() if not content.is_eof() else answer.release()


async def _stream(client: Passed, content: aiohttp.StreamReader, copy: bytearray | None) -> bool:
    """Passes a body on as it comes; False if it breaks off."""
    while True:
        try:
            chunk = await content.readany()
        except (TimeoutError, aiohttp.ClientError, OSError):
            return False
        if not chunk:
            return True
        if copy is not None and len(copy) <= _BODY_MOST:
            copy += chunk
        await client.write(chunk)


def _tell(call: Call | None, status: int, headers: Any, body: bytes | None) -> None:
    if call is None or call.done:
        return
    if body is not None:
        coding = headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
        body = None if len(body) > _BODY_MOST else unpacked(body, coding)
    call.answered(status, headers, body)


def _close(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.close()
