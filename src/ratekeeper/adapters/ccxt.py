"""ccxt, sync and async, REST and the REST half of pro: ``govern(exchange)``.

The gate comes before the signature: a dry run of the exchange's own ``sign`` (no network) tells the request. The call
waits, and only then does the exchange sign it. The adapter skips the exchange's own throttle for hosts that have rules.
``maxRetriesOnFailure`` keeps working: each retry waits and is charged.

For an exchange without a rule file the limits come from ccxt's own tables (`ratekeeper.rules.ccxt_tables`).
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
"""The ccxt settings for a user's own proxy."""
_RETRIES, _DELAY = "maxRetriesOnFailure", "maxRetriesOnFailureDelay"


def govern(exchange: E, *, gate: Gate | None = None, priority: Any = None, max_wait: float | None = None) -> E:
    """Govern one exchange object in place and return it.

    Args:
        exchange: any ccxt exchange: ``ccxt``, ``ccxt.async_support`` or ``ccxt.pro``.
        gate: the gate to ask; ``None``: the process's shared one.
        priority: priority of every call of this exchange; ``None``: the context and the route decide.
        max_wait: seconds that a call may wait, also for the end of a ban or a pause; ``None``: the gate's settings, which
            refuse a call at once if a block lasts long.
    """
    target: Any = exchange
    if "fetch2" not in vars(target):  # else it is governed already
        governor = Governor(gate, priority=priority, timeout=max_wait)
        for name, hook in _hooks(governor, type(target)).items():
            setattr(target, name, MethodType(hook, target))
        if not target.synchronous:
            target.open = MethodType(_opening(governor, type(target).open), target)
    return exchange


def _opening(governor: Governor, original: Callable[..., None]) -> Callable[..., None]:
    """Replace `open`, which ccxt calls before every use of the session, so that its websockets wait too."""

    @functools.wraps(original)
    def open_(self: Any, *values: Any, **options: Any) -> None:
        original(self, *values, **options)
        if hasattr(self.session, "_ws_connect"):
            from ratekeeper.adapters.aiohttp import govern_sockets

            govern_sockets(self.session, governor)

    return open_


def patch(module: ModuleType) -> None:
    """Govern every exchange of an unchanged program, in the base class.

    Args:
        module: ``ccxt.base.exchange`` or ``ccxt.async_support.base.exchange``.
    """
    base = getattr(module, "BaseExchange", None) or module.Exchange  # one class before 4.5
    for name, hook in _hooks(Governor(lenient=True), base).items():
        if name in vars(base):  # the async class inherits the sync one's observer, which is hooked already
            setattr(base, name, hook)


def _hooks(governor: Governor, cls: Any) -> dict[str, Callable[..., Any]]:
    """Return replacements for four methods of an exchange class, sync or async as the class is."""
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
    """Do nothing in an async throttle, because the gate has already waited."""


# --- flows ------------------------------------------------------------------------------------------------------


def _current() -> _Fetch | None:
    """Return the call of the surrounding `fetch2` or `fetch`. The adapter skips its throttle, observes its response, and
    does not charge its `fetch` again."""
    call = CURRENT.get()
    return call if isinstance(call, _Fetch) else None


class _Asked(NamedTuple):
    """The arguments of an exchange's `fetch2`."""

    exchange: Any
    path: Any
    api: Any
    method: str
    params: Any


def _fetch2(met: _Met, asked: _Asked, send: Callable[[_Asked], Any], is_async: bool) -> Steps[Any]:
    """Make one call of the exchange's API: wait, then let it sign and send; repeat it if the user set retries."""
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
    """Make one request of an exchange: the one its `fetch2` waited for, or a direct one, which waits here."""
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
        said: headers and body of a successful response.
    """

    said: tuple[dict[str, str], str] | None = None

    def observe(self, owner: Call, response: Any) -> Steps[Any]:
        """Report the response, in case `on_rest_response` has not: a class may replace it or `fetch` itself."""
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
            exchange.timeout = longest * 1000  # permanent, so it also applies to calls in other threads

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
        """Return the error that the exchange makes from a refusal, by its own error table."""
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
        self.said = dict(reply.headers), body  # the cache reads a part of a batch again
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
    """Whether requests leave from the address that the gate chooses: under ``ratekeeper run``, which also governs the HTTP
    library below, unless the user has set a proxy."""
    return governor.lenient and not any(getattr(exchange, name, None) for name in _PROXIES)


class _Tries:
    """The retries that the user has set in ccxt. They run here, so that each one passes the gate before it is signed."""

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
        """Whether to make the call again."""
        from ccxt.base.errors import OperationFailed

        ours = isinstance(error, Rejected) or isinstance(error.__cause__, Rejected)
        if self.left < 1 or ours or not isinstance(error, OperationFailed):
            return False
        self.left -= 1
        return True


class _Met:
    """The hosts that a governor knows or has looked up in ccxt's tables: once for each exchange and set of hosts."""

    def __init__(self, governor: Governor) -> None:
        self.governor = governor
        self._asked: WeakKeyDictionary[Rulebook, set[tuple[str, frozenset[str]]]] = WeakKeyDictionary()

    def knows(self, exchange: Any) -> bool:
        """Whether there are rules for a host of the exchange, from a file or derived now."""
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
            pass  # the user's own exchange class
        except Exception as error:
            if struck(error):
                asked.discard((exchange.id, hosts))
                raise
            # Without rules the calls pass under ccxt's own throttle, as without Ratekeeper.
            log.warning("ratekeeper: ccxt's tables of %s cannot be used", exchange.id, exc_info=True)


def _dry_run(met: _Met, asked: _Asked) -> Outbound | None:
    """Return the request of this call; ``None``: its host has no rules, or the exchange refuses to sign it."""
    exchange, path, api, method, params = asked
    if not met.knows(exchange):
        return None
    try:
        made = exchange.sign(path, api, method, dict(params) if isinstance(params, dict) else params)
        headers = lowered(exchange.headers) | lowered(made.get("headers"))
        return from_url(made.get("method") or method, made["url"], headers, made.get("body"))
    except Exception as error:  # for example missing keys: the real call raises the same and sends nothing
        if struck(error):
            raise
        return None


def _places(exchange: Any) -> set[tuple[str, str]]:
    """Return host and path of each REST API of the exchange as set now (also a sandbox or an overridden URL)."""
    found: set[tuple[str, str]] = set()
    for url in urls_of(exchange):
        parts = urlsplit(url)
        if parts.hostname:
            found.add((netloc_of(parts.scheme, parts.hostname, parts.port), parts.path.rstrip("/") + "/"))
    return found


def _family() -> type[Exception]:
    from ccxt.base.errors import RateLimitExceeded

    return RateLimitExceeded  # type: ignore[no-any-return]
