"""The hosts that the proxy may call: the first segment of a path names an upstream, and no other host is reached."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from ratekeeper.config.resolution import configure, parse_hosts
from ratekeeper.config.rulebook import unchecked
from ratekeeper.errors import RuleError
from ratekeeper.rules.book import Rulebook, normal_host

if TYPE_CHECKING:
    import os

__all__ = ["RESERVED", "Upstream", "Upstreams", "is_loopback", "mapped", "parse"]

RESERVED = frozenset({"t", "healthz"})
"""First segments that mean something else."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_NETLOC = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9][a-z0-9.-]*)(:[0-9]{1,5})?")


class Upstream(NamedTuple):
    """One place to send calls to."""

    scheme: str
    netloc: str
    """host or host:port, in the form of `normal_host`."""
    base: str = ""
    """What goes before every path, without a slash at its end."""

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{self.scheme}://{self.netloc}{self.base}"


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    host = normal_host(host)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse(specs: Iterable[str]) -> dict[str, Upstream | None]:
    """Upstreams as the command line names them: ``NAME``, or ``NAME=URL``.

    Raises:
        RuleError: one is neither.
    """
    found: dict[str, Upstream | None] = {}
    for spec in specs:
        name, equals, url = spec.partition("=")
        if not _NAME.fullmatch(name) or name in RESERVED:
            taken = f" ({' and '.join(sorted(RESERVED))} are taken)" if name in RESERVED else ""
            raise RuleError(f"{name!r} is no name: use small letters, digits, . and -{taken}", key="--upstream")
        found[name] = _parse_url(url) if equals else None
    return found


def _parse_url(url: str) -> Upstream:
    parts = urlsplit(url)
    netloc = normal_host(parts.netloc, parts.scheme)
    if parts.scheme not in ("http", "https") or not _NETLOC.fullmatch(netloc) or parts.query or parts.fragment:
        raise RuleError("write NAME=http://HOST[:PORT][/PATH] or https, without user, query and #", key="--upstream")
    return Upstream(parts.scheme, netloc, parts.path.rstrip("/"))


def mapped(wanted: Mapping[str, Upstream | None], config: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """What to tell a gate of its hosts: the environment's, and those given to a provider's name by ``NAME=URL``."""
    hosts = parse_hosts(None)
    own = {name: upstream for name, upstream in wanted.items() if upstream is not None}
    if own:
        book = unchecked(configure(config))
        for name in own.keys() & set(book.names()):
            if normal_host(own[name].netloc) not in map(normal_host, book.hosts(name)):
                hosts[own[name].netloc] = name
    return hosts


class Upstreams:
    """The upstreams of one proxy.

    Args:
        book: the rules in force.
        wanted: what to serve, by name; None as a value: the provider's own host. Empty: every provider.

    Raises:
        UnknownProvider: a name without URL has no rules.
    """

    def __init__(self, book: Rulebook, wanted: Mapping[str, Upstream | None]) -> None:
        self._book = book
        self._named: dict[str, Upstream] = {}
        names = wanted or dict.fromkeys(name for name in book.names() if name not in RESERVED)
        for name, upstream in names.items():
            place = upstream or _main(book.hosts(name))
            if place is not None:
                self._named[name] = place
        self._seen: dict[str, Upstream] = dict(self._named)

    @property
    def named(self) -> Mapping[str, Upstream]:
        """By name."""
        return self._named

    def urls(self) -> dict[str, str]:
        """Where each name leads, for people."""
        return {name: upstream.url for name, upstream in sorted(self._named.items())}

    def find(self, segment: str) -> Upstream | None:
        """The upstream of a name, or of a host that belongs to a provider served here; None: neither."""
        found = self._seen.get(segment)
        if found is None:
            found = self._host(segment)
            if found is not None and len(self._seen) < 1024:
                self._seen[segment] = found
        return found

    def _host(self, segment: str) -> Upstream | None:
        bare = normal_host(segment, "").rsplit(":", 1)[0]
        scheme = "http" if is_loopback(bare) else "https"
        netloc = normal_host(segment, scheme)
        if "." not in netloc or not segment.isascii() or not _NETLOC.fullmatch(netloc):
            return None
        provider = self._book.for_host(netloc)
        if provider is None or provider.name not in self._named:
            return None
        main = self._named[provider.name]
        if netloc == main.netloc or provider.namespace != self._book.provider(provider.name).namespace:
            # The user sends this provider's calls to a host of their own: the real ones are not reached by mistake.
            return main
        if ":" in netloc and netloc not in self._book.hosts(provider.name):
            return None
        return Upstream(scheme, netloc)


def _main(hosts: Iterable[str]) -> Upstream | None:
    """The first host that is one; over plain HTTP only where it cannot leave this machine."""
    for netloc in hosts:
        if not netloc.startswith("*."):
            host = netloc if netloc.endswith("]") else netloc.rsplit(":", 1)[0] if ":" in netloc else netloc
            scheme = "http" if is_loopback(host) else "https"
            return Upstream(scheme, normal_host(netloc, scheme))
    return None
