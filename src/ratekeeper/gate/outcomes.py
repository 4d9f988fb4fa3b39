"""Outcome classification of client exceptions: whether the request was sent, and whether its address is at fault.

The gate recognises exception classes by name, so that it imports no library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ratekeeper.rules.call import Outcome, Request

__all__ = ["described", "fate_of", "surely_unsent", "unconnected"]

_UNSENT = frozenset(
    """httpx.ConnectError httpx.ConnectTimeout httpx.PoolTimeout httpx.UnsupportedProtocol httpx.ProxyError
    httpx2.ConnectError httpx2.ConnectTimeout httpx2.PoolTimeout httpx2.UnsupportedProtocol httpx2.ProxyError
    urllib3.NewConnectionError urllib3.ConnectTimeoutError urllib3.EmptyPoolError urllib3.HostChangedError
    urllib3.ClosedPoolError urllib3.LocationValueError urllib3.ProxyError
    requests.ConnectTimeout requests.InvalidURL requests.InvalidProxyURL
    aiohttp.ClientConnectorError aiohttp.ConnectionTimeoutError aiohttp.InvalidURL
    socket.gaierror ssl.SSLCertVerificationError builtins.ConnectionRefusedError""".split()  # noqa: SIM905 - a table reads better
)
"""Exceptions which prove that no byte of the request reached the provider: top package and class name."""
_UNCONNECTED = frozenset(
    """httpx.ConnectError httpx.ConnectTimeout httpx.ProxyError httpx2.ConnectError httpx2.ConnectTimeout httpx2.ProxyError
    urllib3.NewConnectionError urllib3.ConnectTimeoutError urllib3.ProxyError requests.ConnectTimeout
    aiohttp.ClientConnectorError aiohttp.ConnectionTimeoutError builtins.ConnectionRefusedError""".split()  # noqa: SIM905
)
"""Those of them that may be the fault of the local address."""
_BLAMELESS = frozenset(
    """socket.gaierror ssl.SSLCertVerificationError aiohttp.ClientConnectorDNSError
    aiohttp.ClientConnectorCertificateError urllib3.NameResolutionError""".split()  # noqa: SIM905
)
"""Those that no other address would avoid."""

_PHASES = (("pool", "pool timeout"), ("connect", "connect timeout"), ("write", "write timeout"))
"""Part of a timeout's class name, and the words for it. Any other timeout is a read timeout."""
_QUERY = re.compile(r"\?\S*")

_MISTAKES = frozenset({AssertionError, AttributeError, IndexError, KeyError, NameError, TypeError, ValueError})
"""Exceptions of exactly these types are a bug in some code and say nothing about the network."""


def fate_of(error: BaseException) -> Outcome | None:
    """Return the outcome of a request that raised `error`; None: its sender has a bug, so it may have been sent or not."""
    if surely_unsent(error):
        return Outcome.NETWORK
    return None if type(error) in _MISTAKES else Outcome.UNKNOWN


def described(error: BaseException, seconds: float, host: str, request: Request | None = None) -> str:
    """Return one line for people: the exception, the phase of a timeout, the seconds since sending, and the host.

    The line holds no query and nothing that could be a key.

    Args:
        error: the error that the client raised.
        seconds: from sending to the error.
        host: ``host:port``, or another name of the provider.
        request: the call, whose secrets the error may quote.
    """
    from ratekeeper.rules.secrets import redact, secrets_of, struck  # for those whose calls fail

    kind = type(error)
    package = kind.__module__.partition(".")[0]
    name = kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"
    said = struck(str(error) or str(error.__cause__ or ""), () if request is None else secrets_of(request))
    text = redact(_QUERY.sub("?[...]", said)).rstrip(".")
    timeout = ""
    if isinstance(error, TimeoutError) or "timeout" in kind.__name__.lower():
        timeout = next((words for part, words in _PHASES if part in kind.__name__.lower()), "read timeout") + " "
    return f"{name}{f': {text}' if text else ''} ({timeout}after {seconds:.1f} s, {host})"


def surely_unsent(error: BaseException) -> bool:
    """True if the exception proves that the request was never sent: no connection was made.

    The function looks through wrappers (``__cause__``, ``reason`` and a first argument that is an exception). A request
    with any other exception counts as possibly sent.
    """
    return any(names & _UNSENT for names in _kinds(error))


def unconnected(error: BaseException) -> bool:
    """True if no connection could be made, and another local address might get one."""
    kinds = list(_kinds(error))
    return any(names & _UNCONNECTED for names in kinds) and not any(names & _BLAMELESS for names in kinds)


def _kinds(error: BaseException) -> Iterator[set[str]]:
    """Yield the classes of an exception, and of those inside it, as package and name."""
    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(current).__mro__}
        inner = (current.__cause__, getattr(current, "reason", None), *current.args[:1])
        queue.extend(item for item in inner if isinstance(item, BaseException))
