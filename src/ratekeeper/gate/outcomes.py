"""What an exception of a client library means for the request it was raised by: was it sent, and whose fault is it.

Classes of libraries are recognised by name, so that none is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ratekeeper.rules.call import Outcome
from ratekeeper.rules.reading import redact

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
"""Exceptions after which no byte of the request can have reached the provider: top package and class name."""
_UNCONNECTED = frozenset(
    """httpx.ConnectError httpx.ConnectTimeout httpx.ProxyError httpx2.ConnectError httpx2.ConnectTimeout httpx2.ProxyError
    urllib3.NewConnectionError urllib3.ConnectTimeoutError urllib3.ProxyError requests.ConnectTimeout
    aiohttp.ClientConnectorError aiohttp.ConnectionTimeoutError builtins.ConnectionRefusedError""".split()  # noqa: SIM905
)
"""Those of them that may be the fault of the address it was to leave from."""
_BLAMELESS = frozenset(
    """socket.gaierror ssl.SSLCertVerificationError aiohttp.ClientConnectorDNSError
    aiohttp.ClientConnectorCertificateError urllib3.NameResolutionError""".split()  # noqa: SIM905
)
"""No address would have done better."""

_PHASES = (("pool", "pool timeout"), ("connect", "connect timeout"), ("write", "write timeout"))
"""What the name of a timeout's class holds, and what to call it; any other is one of reading."""
_QUERY = re.compile(r"\?\S*")

_MISTAKES = frozenset({AssertionError, AttributeError, IndexError, KeyError, NameError, TypeError, ValueError})
"""Exceptions of exactly these types are somebody's bug and say nothing of the network."""


def fate_of(error: BaseException) -> Outcome | None:
    """What became of a request that ended so; None: its sender has a bug, and the request may have been sent or not."""
    if surely_unsent(error):
        return Outcome.NETWORK
    return None if type(error) in _MISTAKES else Outcome.UNKNOWN


def described(error: BaseException, seconds: float, host: str) -> str:
    """One line for people: which exception it was, what it waited for, how long after it was sent, and whom it asked.

    Holds no query and nothing that could be a key.

    Args:
        error: what the client raised.
        seconds: from sending to the error.
        host: ``host:port``, or what else to call whom it asked.
    """
    kind = type(error)
    package = kind.__module__.partition(".")[0]
    name = kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"
    text = redact(_QUERY.sub("?[...]", str(error) or str(error.__cause__ or ""))).rstrip(".")
    timeout = ""
    if isinstance(error, TimeoutError) or "timeout" in kind.__name__.lower():
        timeout = next((words for part, words in _PHASES if part in kind.__name__.lower()), "read timeout") + " "
    return f"{name}{f': {text}' if text else ''} ({timeout}after {seconds:.1f} s, {host})"


def surely_unsent(error: BaseException) -> bool:
    """True if the exception proves that the request never left: no connection was made.

    Looks through wrappers (``__cause__``, ``reason`` and a first argument that is an exception). Anything not
    known to be harmless counts as possibly sent.
    """
    return any(names & _UNSENT for names in _kinds(error))


def unconnected(error: BaseException) -> bool:
    """True if no connection could be made, and another address to leave from might have one."""
    kinds = list(_kinds(error))
    return any(names & _UNCONNECTED for names in kinds) and not any(names & _BLAMELESS for names in kinds)


def _kinds(error: BaseException) -> Iterator[set[str]]:
    """The classes of an exception, and of those inside it, as package and name."""
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
