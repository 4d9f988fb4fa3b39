"""What the proxy lets in and on: no web page that the user happens to open, and no path that leaves its upstream's base.

A page in a browser on this machine can reach the proxy, too. It can send calls from another origin, and it can give its own
host the address of this machine (DNS rebinding), so that it may read the answers. The browser tells the first by ``Origin``
and ``Sec-Fetch-Site``, the second by ``Host``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, unquote_to_bytes

from aiohttp import hdrs

from ratekeeper.apps.proxy.refusal import failure
from ratekeeper.apps.proxy.upstreams import is_loopback
from ratekeeper.errors import RuleError
from ratekeeper.rules.book import normal_host

if TYPE_CHECKING:
    from aiohttp import web
    from multidict import CIMultiDict

__all__ = ["Guard", "crooked", "straight"]

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]*")
_ELSEWHERE: Final = frozenset({"cross-site", "same-site"})
"""What a browser says of calls from pages of another origin, also of those that have no ``Origin``, such as images."""
_SITE: Final = "Sec-Fetch-Site"
_KNOWN: Final = 1024
"""Spellings of hosts that are remembered."""

_SUSPECT: Final = re.compile(r"[%\\;#\x00-\x20\x7f]|\.\.|/\./|//")
"""A path without any of these has one meaning only."""
_UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f]")
_BEHIND: Final = re.compile(r"[;#?].*", re.DOTALL)
"""What a server may leave out of a name."""
_OVERLONG: Final = ((b"\xc0\xae", b"."), (b"\xc0\xaf", b"/"), (b"\xc1\x9c", b"\\"))
"""Forms of ``.``, ``/`` and a backslash that are no UTF-8, and that old servers read all the same."""
_ROUNDS: Final = 5
"""How often a path may be encoded over and over."""
_PLAIN: Final = re.compile(r"%(2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])")
"""A letter, a digit or one of ``-._~`` that is encoded without need (RFC 3986, 6.2.2.2)."""


class Guard:
    """The door of one proxy.

    Args:
        host: the address that it listens on.
        token: what clients show in the path; ``""``: nothing.
        hosts: further names under which clients reach it.
        origins: origins whose web pages may call it.

    Raises:
        RuleError: one of `origins` is no origin.
    """

    def __init__(
        self, host: str = "127.0.0.1", token: str = "", hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        self._names = {_bare(host), *map(_bare, hosts)}
        self._anywhere = host in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
        self._origins = frozenset(map(_stated_origin, origins))
        self._shown = f"/t/{token}" if token else ""
        self._known: dict[str, bool] = {}

    def refusal(self, request: web.BaseRequest) -> web.Response | None:
        """What a client is told that may not come in; None: it may."""
        headers = request.headers
        host = headers.get(hdrs.HOST)
        if host is not None and not self.is_own(host):
            return failure(
                421,
                "Host",
                f"this proxy does not go by the name {host[:100]!r}: use the address it listens on, or start it with "
                "--allow-host NAME",
            )
        origins = headers.getall(hdrs.ORIGIN, ())
        if all(origin in self._origins or self._is_own_origin(origin, host or "") for origin in origins) and (
            origins or headers.get(_SITE) not in _ELSEWHERE
        ):
            return None
        page = f"of the origin {origins[0][:100]!r}" if origins else "of another origin"
        return failure(
            403,
            "Origin",
            f"a web page {page} may not use this proxy (to allow it: start it with --allow-origin ORIGIN)",
        )

    def is_own(self, host: str) -> bool:
        """Whether ``name`` or ``name:port`` is this proxy. A name that is not the loopback's, not listened on and not stated
        may be a stranger's who gave it the address of this machine."""
        known = self._known.get(host)
        if known is None:
            name = _bare(host)
            known = name in self._names or is_loopback(name) or (self._anywhere and _is_address(name))
            if len(self._known) < _KNOWN:
                self._known[host] = known
        return known

    def _is_own_origin(self, origin: str, host: str) -> bool:
        scheme, _, place = origin.partition("://")
        return scheme in ("http", "https") and bool(host) and normal_host(place, scheme) == normal_host(host, scheme)

    def strip(self, headers: CIMultiDict[str]) -> None:
        """Take out what tells the provider the token in the path, or of this machine: a ``Referer`` of the proxy's own."""
        referer = headers.get(hdrs.REFERER)
        if referer is not None and self.is_own(referer.partition("://")[2].partition("/")[0].partition("?")[0]):
            headers.popall(hdrs.REFERER)
        if self._shown:
            for name in [name for name, value in headers.items() if self._shown in _decoded(value)]:
                headers.popall(name, None)


def _bare(host: str) -> str:
    """A host without its port."""
    host = normal_host(host, "")
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _stated_origin(origin: str) -> str:
    stated = origin.strip().lower().rstrip("/")
    if not _ORIGIN.fullmatch(stated):
        raise RuleError(f"{origin!r} is no origin: write for example http://localhost:3000", key="--allow-origin")
    scheme, _, place = stated.partition("://")
    return f"{scheme}://{normal_host(place, scheme)}"


def _decoded(text: str) -> str:
    for _ in range(_ROUNDS):
        if "%" not in text or (again := unquote(text)) == text:
            break
        text = again
    return text


# --- paths ----------------------------------------------------------------------------------------------------------


def crooked(path: str) -> str:
    """Why a path may not go on; ``""``: it may.

    No server may read it as one that leaves the folder in which it begins, whatever the server decodes and how often, and
    whether it takes a backslash for a slash, leaves out what is behind a semicolon, or joins slashes.
    """
    if not _SUSPECT.search(path):
        return ""
    depth = 0
    for segment in path.split("/"):
        names = _readings(segment)
        if names is None:
            return "the path is encoded over and over, or holds control characters"
        up = names.count("..")
        depth += -up if up else 1 if all(names) and "." not in names else 0
        if depth < 0:
            return "the path leaves the base of its upstream (..)"
    return ""


def _readings(segment: str) -> list[str] | None:
    """The names that a server may find in a segment, decoded; None: it may find anything."""
    raw = segment.encode("utf-8", "surrogateescape")
    for _ in range(_ROUNDS):
        for form, meant in _OVERLONG:
            raw = raw.replace(form, meant)
        again = unquote_to_bytes(raw)
        if again == raw:
            text = raw.decode("utf-8", "replace")
            if _UNSEEN.search(text):
                return None
            return [_BEHIND.sub("", name).strip() for name in re.split(r"[/\\]", text)]
        raw = again
    return None


def straight(path: str) -> str:
    """The path as a server reads it that resolves ``..``, joins slashes and decodes what need not be encoded: what the rules
    are shown, so that a crooked spelling of a route costs what the route costs."""
    if not _SUSPECT.search(path):
        return path
    found: list[str] = []
    *segments, last = _PLAIN.sub(lambda hit: chr(int(hit[1], 16)), path.partition("#")[0]).split("/")
    for segment in segments:
        if segment == "..":
            del found[-1:]
        elif segment not in ("", "."):
            found.append(segment)
    if last == "..":
        del found[-1:]
    return "/" + "/".join([*found, "" if last in (".", "..") else last])
