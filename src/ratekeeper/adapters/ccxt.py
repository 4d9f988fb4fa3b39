"""ccxt, sync and async, REST and the REST half of pro: ``govern(exchange)``.

The gate comes before the signature: a dry run of the exchange's own ``sign`` (no network) says which request it will
be; the call waits, and only then is it signed for good. The exchange's own throttle is skipped for hosts that have
rules. ``maxRetriesOnFailure`` keeps working: each retry waits and is charged.

An exchange without a rule file is governed by what ccxt's own tables say (`ratekeeper.rules.ccxt_tables`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from http.client import responses
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit
from weakref import WeakKeyDictionary

from ratekeeper.adapters._client import ClientCall, run
from ratekeeper.adapters._governor import Governor
from ratekeeper.adapters._wire import Outbound, from_url, in_family, kept_headers, lowered, netloc_of
from ratekeeper.errors import Blocked, CallFailed, Rejected, UnknownProvider
from ratekeeper.gate.call import CURRENT, Call, Reply, Served
from ratekeeper.gate.steps import Steps, drive, drive_async
from ratekeeper.policy.freshness import Service
from ratekeeper.rules.ccxt_tables import acquaint, urls_of
from ratekeeper.stores.faults import struck

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate
    from ratekeeper.rules.book import Rulebook
    from ratekeeper.rules.call import Request

__all__ = ["govern", "patch"]

log = logging.getLogger("ratekeeper")

E = TypeVar("E")

_PROXIES = """proxies aiohttp_proxy httpProxy http_proxy httpProxyCallback http_proxy_callback httpsProxy https_proxy
    httpsProxyCallback https_proxy_callback socksProxy socks_proxy socksProxyCallback socks_proxy_callback
    aiohttp_trust_env requests_trust_env""".split()  # noqa: SIM905
"""What a user sets whose calls are to leave through a proxy of their own."""
_RETRIES, _DELAY = "maxRetriesOnFailure", "maxRetriesOnFailureDelay"


def govern(exchange: E, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> E:
    """Governs one exchange object in place and returns it.

    Args:
        exchange: any ccxt exchange: ``ccxt``, ``ccxt.async_support`` or ``ccxt.pro``.
        gate: the gate to ask; ``None`` is the process's shared one.
        priority: class of every call of this exchange; ``None`` leaves it to the context and the route.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: as the gate says, which
            refuses at once what is shut for long.
    """
    target: Any = exchange
    if "fetch2" not in vars(target):  # else governed already
        governor = Governor(gate, priority=priority, timeout=max_wait)
        for name, hook in _hooks(governor, type(target)).items():
            setattr(target, name, MethodType(hook, target))
        if not target.synchronous:
            target.open = MethodType(_opening(governor, type(target).open), target)
    return exchange


def _opening(governor: Governor, original: Callable[..., None]) -> Callable[..., None]:
    """What takes the place of `open`, which is called before every use of the session: its websockets wait too."""

    @functools.wraps(original)
    def open_(self: Any, *values: Any, **options: Any) -> None:
        original(self, *values, **options)
        if hasattr(self.session, "_ws_connect"):
            from ratekeeper.adapters.aiohttp import govern_sockets

            govern_sockets(self.session, governor)

    return open_


def patch(module: ModuleType) -> None:
    """Governs every exchange of an unchanged program, in the base class.

    Args:
        module: ``ccxt.base.exchange`` or ``ccxt.async_support.base.exchange``.
    """
    base = getattr(module, "BaseExchange", None) or module.Exchange  # one class before 4.5
    for name, hook in _hooks(Governor(lenient=True), base).items():
        if name in vars(base):  # the async class inherits the sync one's observer, which is hooked already
            setattr(base, name, hook)


def _hooks(governor: Governor, cls: Any) -> dict[str, Callable[..., Any]]:
    """What takes the place of four methods of an exchange class, in its own colour."""
    original = {name: getattr(cls, name) for name in ("fetch2", "fetch", "throttle", "on_rest_response")}
    met = _Met(governor)
    is_async = not cls.synchronous
    run_steps: Any = drive_async if is_async else drive

    def fetch2(
        self: Any, path: Any, api: Any = "public", method: str = "GET", params: Any = None, *rest: Any, **kw: Any
    ) -> Any:
        def send(asked: _Asked) -> Any:
            return original["fetch2"](self, asked.path, api, method, asked.params, *rest, **kw)

        asked = _Asked(self, path, api, method, {} if params is None else params)
        return run_steps(_fetch2(met, asked, send, is_async))

    def fetch(self: Any, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        send = functools.partial(original["fetch"], self, url, method, headers, body)
        return run_steps(_fetch(governor, send, url, method, headers, body, is_async))

    def throttle(self: Any, cost: Any = None) -> Any:
        call = _current()
        if call is None or call.done:
            return original["throttle"](self, cost)
        return _nothing() if is_async else None

    def on_rest_response(
        self: Any, code: int, reason: Any, url: Any, method: Any, headers: Any, body: Any, *sent: Any
    ) -> Any:
        call = _current()
        if call is not None:
            found = lowered(headers)
            call.answered(code, found, body)
            if code == 200 and isinstance(body, str):
                call.said = found, body
        return original["on_rest_response"](self, code, reason, url, method, headers, body, *sent)

    made = (fetch2, fetch, throttle, on_rest_response)
    return {hook.__name__: functools.wraps(original[hook.__name__])(hook) for hook in made}


async def _nothing() -> None:
    """What an async throttle does when the gate has already waited."""


# --- flows ------------------------------------------------------------------------------------------------------


def _current() -> _Fetch | None:
    """The call of the `fetch2` or `fetch` we are in: its throttle is skipped, its answer observed, its `fetch` not charged
    again."""
    call = CURRENT.get()
    return call if isinstance(call, _Fetch) else None


class _Asked(NamedTuple):
    """What an exchange's `fetch2` is asked for."""

    exchange: Any
    path: Any
    api: Any
    method: str
    params: Any


def _fetch2(met: _Met, asked: _Asked, send: Callable[[_Asked], Any], is_async: bool) -> Steps[Any]:
    """One call of the exchange's API: wait, then let it sign and send; again if the user asked for retries."""
    current = _current()
    if current is not None and not current.done:  # governed twice: the object and its class
        return (yield functools.partial(send, asked))
    governor, exchange = met.governor, asked.exchange
    tries = _Tries(exchange, asked.path, asked.params)
    while True:
        outbound = _dry_run(met, asked._replace(params=tries.clean))
        rules = governor.match(outbound, _family)
        if outbound is None or rules is None:
            return (yield functools.partial(send, asked))
        call = _Call(
            governor, outbound, rules, asked._replace(params=tries.params), send,
            family=_family, is_async=is_async, any_address=_any_address(governor, exchange),
        )  # fmt: skip
        try:
            return (yield from run(call))
        except Exception as error:
            if not tries.again(error):
                raise
        if tries.delay:
            yield functools.partial(exchange.sleep, tries.delay)


def _fetch(
    governor: Governor, send: Callable[[], Any], url: str, method: str, headers: Any, body: Any, is_async: bool
) -> Steps[Any]:
    """One request of an exchange: the one its `fetch2` waited for, or one made directly, which waits here."""
    current, parts = _current(), urlsplit(url)
    netloc = netloc_of(parts.scheme, parts.hostname or "", parts.port)
    if current is not None and not current.done and current.netloc == netloc:
        try:
            response = yield send
        except BaseException as error:
            current.failed(error)
            raise
        current.answered(200, {})
        return response
    outbound = from_url(method, url, lowered(headers), body)
    rules = governor.match(outbound, _family)
    if outbound is None or rules is None:
        return (yield send)
    call = _Fetch(governor, outbound, rules, None, lambda _: send(), family=_family, is_async=is_async)
    return (yield from call.once(call)) if (yield from call.begin(None)) else (yield send)


class _Fetch(ClientCall):
    """One request of an exchange.

    Attributes:
        said: headers and body of a good answer.
    """

    said: tuple[dict[str, str], str] | None = None

    def observe(self, owner: Call, response: Any) -> Steps[Any]:
        """`on_rest_response` has told the answer already, unless a class replaces it or `fetch` itself."""
        owner.answered(200, {})
        return response
        yield


class _Call(_Fetch):
    """One call of an exchange's API, signed anew for each attempt."""

    native: _Asked
    resigned = True

    @staticmethod
    def shorten_timeouts(native: _Asked, longest: float) -> None:
        """See `ClientCall.shorten_timeouts`."""
        exchange = native.exchange
        if exchange.timeout > longest * 1000:
            exchange.timeout = longest * 1000  # for good: its calls in other threads have no more time either

    def once(self, owner: Call) -> Steps[Any]:
        self.said = None
        return super().once(owner)

    def blocked_answer(self, block: Blocked) -> Steps[Any]:
        raise self._refused(self.denied(block)) from block
        yield

    def blocked_error(self, error: Rejected | CallFailed, block: Blocked) -> Exception:
        made = self._refused(self.denied(block))
        return in_family(error, lambda: type(made))

    def _refused(self, reply: Reply) -> Exception:
        """What the exchange makes of an answer that refuses: its table of errors decides."""
        exchange, reason, body = self.native.exchange, responses.get(reply.status, ""), reply.body.decode()
        headers = dict(reply.headers) | Served(Service.REFUSED).headers()
        url, method = f"{self.outbound.base_url}{self.outbound.path}", self.outbound.method
        exchange.last_response_headers, exchange.last_http_response = headers, body
        try:
            parsed = exchange.parse_json(body)
            exchange.handle_errors(reply.status, reason, url, method, headers, body, parsed, {}, None)
            exchange.handle_http_status_code(reply.status, reason, url, method, body)
        except Exception as error:  # noqa: BLE001 - the exchange's own
            return error
        made: Exception = _family()(f"{exchange.id} {method} {url} {reply.status} {reason} {body}")
        return made

    def late(self, seconds: float) -> Exception:
        from ccxt.base.errors import RequestTimeout

        error: Exception = RequestTimeout(f"{self.native.exchange.id}: no answer within {seconds:g} s")
        return error

    def read(self, response: Any) -> Steps[tuple[Reply | None, Any]]:
        if self.said is None:
            return None, response
        headers, body = self.said
        return Reply(200, kept_headers(headers.items()), body.encode()), response
        yield

    def answer(self, reply: Reply, served: Served) -> Any:
        body = reply.body.decode()
        self.said = dict(reply.headers), body  # a part of a batch is read again, to be kept
        exchange = self.native.exchange
        exchange.last_response_headers = dict(reply.headers) | served.headers()
        parsed = exchange.parse_json(body)
        return body if parsed is None else parsed

    def label(self, response: Any, served: Served) -> None:
        if isinstance(self.native.exchange.last_response_headers, dict):
            self.native.exchange.last_response_headers |= served.headers()

    def other(self, request: Request) -> _Call | None:
        base = self.request.path.removesuffix(self.native.path)
        if base == self.request.path or not request.path.startswith(base):
            return None
        params = dict(request.params or {})
        outbound = self.outbound._replace(path=request.path, query=urlencode(params, doseq=True))
        return self.another(outbound, self.native._replace(path=request.path.removeprefix(base), params=params))


def _any_address(governor: Governor, exchange: Any) -> bool:
    """Whether its requests leave from the address that the gate has chosen: under ``ratekeeper run``, where the HTTP library
    below is governed as well, unless its user has set a proxy."""
    return governor.lenient and not any(getattr(exchange, name, None) for name in _PROXIES)


class _Tries:
    """The retries that a user asked ccxt for; made here, so that each one passes the gate before it is signed."""

    def __init__(self, exchange: Any, path: str, params: Any) -> None:
        self.left = 0
        self.delay = 0
        self.clean = params
        self.params = params
        if isinstance(params, dict):
            self.left, rest = exchange.handle_option_integer_and_params(params, path, _RETRIES, 0)
            self.delay, rest = exchange.handle_option_integer_and_params(rest, path, _DELAY, 0)
            self.clean = rest
            self.params = {**rest, _RETRIES: 0} if self.left else params

    def again(self, error: Exception) -> bool:
        """True if the call shall be made once more."""
        from ccxt.base.errors import OperationFailed

        ours = isinstance(error, Rejected) or isinstance(error.__cause__, Rejected)
        if self.left < 1 or ours or not isinstance(error, OperationFailed):
            return False
        self.left -= 1
        return True


class _Met:
    """Whose hosts a governor knows, or has asked ccxt's tables about: once for each exchange and set of hosts."""

    def __init__(self, governor: Governor) -> None:
        self.governor = governor
        self._asked: WeakKeyDictionary[Rulebook, set[tuple[str, frozenset[str]]]] = WeakKeyDictionary()

    def knows(self, exchange: Any) -> bool:
        """True if there are rules for a host of the exchange, in a file or derived now."""
        places = _places(exchange)
        unknown = frozenset(netloc for netloc, _ in places if not self.governor.knows(netloc, ""))
        if unknown:
            self._meet(exchange, unknown)
        return any(self.governor.knows(*place) for place in places)

    def _meet(self, exchange: Any, hosts: frozenset[str]) -> None:
        book = self.governor.gate.book
        asked = self._asked.setdefault(book, set())
        try:
            if (exchange.id, hosts) not in asked:
                asked.add((exchange.id, hosts))
                acquaint(book, exchange, hosts)
        except UnknownProvider:
            pass  # a class of the user's own
        except Exception as error:
            if struck(error):
                asked.discard((exchange.id, hosts))
                raise
            # Without rules the calls pass, under ccxt's own throttle: as if Ratekeeper were not there.
            log.warning("ratekeeper: ccxt's tables of %s cannot be used", exchange.id, exc_info=True)


def _dry_run(met: _Met, asked: _Asked) -> Outbound | None:
    """The request this call will become; ``None`` if its host has no rules, or if the exchange refuses to sign it."""
    exchange, path, api, method, params = asked
    if not met.knows(exchange):
        return None
    try:
        made = exchange.sign(path, api, method, dict(params) if isinstance(params, dict) else params)
        headers = lowered(exchange.headers) | lowered(made.get("headers"))
        return from_url(made.get("method") or method, made["url"], headers, made.get("body"))
    except Exception as error:  # missing keys and the like: the real call raises the same, and sends nothing
        if struck(error):
            raise
        return None


def _places(exchange: Any) -> set[tuple[str, str]]:
    """Host and path of each REST API of the exchange as it is set now (a sandbox or an overridden URL included)."""
    found: set[tuple[str, str]] = set()
    for url in urls_of(exchange):
        parts = urlsplit(url)
        if parts.hostname:
            found.add((netloc_of(parts.scheme, parts.hostname, parts.port), parts.path.rstrip("/") + "/"))
    return found


def _family() -> type[Exception]:
    from ccxt.base.errors import RateLimitExceeded

    return RateLimitExceeded  # type: ignore[no-any-return]
