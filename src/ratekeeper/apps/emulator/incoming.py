"""One request as the emulated provider sees it, and the errors with which it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from ratekeeper.rules.call import Request

if TYPE_CHECKING:
    from ratekeeper.rules.call import Plan

    from .accounting import Charge

__all__ = ["Arrival", "Failure", "Fault", "Incoming", "flat", "named", "objects", "read_call"]

MILLI = 1_000_000


class Failure(Exception):
    """An error answer.

    Args:
        status: HTTP status.
        body: the answer's body.
        headers: further response headers.
        until: nanoseconds of the emulator's clock that ``Retry-After`` counts to; 0 for none.
        penalty: kind of owner that is shut out from now on, and for how many nanoseconds.
        bans: whether the provider calls this a ban.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        until: int = 0,
        penalty: tuple[str, int] | None = None,
        bans: bool = False,
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})
        self.until = until
        self.penalty = penalty
        self.bans = bans
        self.turned_away = ""
        """``throttled`` or ``banned`` once the server has refused a request with it."""


class Fault(Exception):
    """A mistake in a request. The table of errors in a venue's data file says it in the provider's words.

    Args:
        name: the mistake, such as ``symbol`` for a market that is not known.
        about: what the words may tell of it.
    """

    def __init__(self, name: str, /, **about: object) -> None:
        super().__init__(name, about)
        self.name = name
        self.about = {word: str(value) for word, value in about.items()}


class Arrival(NamedTuple):
    """One request with its price and its owners, at the instant it arrives."""

    method: str
    path: str
    params: dict[str, str]
    """Query and form parameters together."""
    plan: Plan
    charges: tuple[Charge, ...]
    ip: str
    key: str
    """The secret that names the account; ``""`` if there is none."""
    account: str
    """Label of the account: a digest of its key."""
    now: int
    """Nanoseconds of the clock that counts."""
    tree: Any = None
    """The decoded JSON body, if there is one."""
    ahead: int = 0
    """By how many ns the clock of the machine that dates the answer is ahead of `now`."""

    @property
    def dated(self) -> int:
        """The same moment as the answer's ``Date`` tells it, ns."""
        return self.now + self.ahead

    def incoming(self, params: dict[str, str]) -> Incoming:
        """The request with these parameters, for the handler that carries it out."""
        now = self.now // MILLI
        return Incoming(params, now, self.account, self.tree, self.dated // MILLI - now)


class Incoming(NamedTuple):
    """A request after it was counted."""

    params: dict[str, str]
    """Query and form parameters together."""
    now: int
    """Milliseconds of the clock that counts, at arrival."""
    account: str
    """Label of the account: a digest of its API key."""
    tree: Any = None
    """The decoded JSON body, if there is one."""
    ahead: int = 0
    """By how many milliseconds the clock that dates the answer is ahead of `now`."""

    @property
    def dated(self) -> int:
        """The server time that a body shows, in milliseconds."""
        return self.now + self.ahead

    def need(self, name: str) -> str:
        """A mandatory parameter."""
        value = self.params.get(name)
        if not value:
            raise Fault("missing", name=name)
        return value

    def number(self, name: str, default: int, *, low: int = 1, high: int = 1_000_000_000_000_000) -> int:
        """An optional whole number between bounds."""
        text = self.params.get(name)
        if not text:
            return default
        try:
            value = int(text)
        except ValueError:
            raise Fault("illegal", name=name, legal="^[0-9]+$") from None
        if not low <= value <= high:
            raise Fault("range", name=name)
        return value


def read_call(method: str, target: str, body: bytes, headers: Mapping[str, str]) -> Request:
    """The call that a request line, its headers and its body make: apart from the clients' adapters, as a server would read
    it. A name given several times becomes a list.
    """
    path, _, query = target.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True) if query else []
    tree = None
    if body:
        tree = _json(body)
        if tree is None:
            pairs += parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    params: dict[str, Any] = {}
    for name, value in pairs:
        if name not in params:
            params[name] = value
        elif isinstance(params[name], list):
            params[name].append(value)
        else:
            params[name] = [params[name], value]
    return Request(method, path, params, tree, headers)


def _json(body: bytes) -> Any:
    if body.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def flat(tree: Any) -> dict[str, str]:
    """The plain values of a JSON object as parameters."""
    if not isinstance(tree, dict):
        return {}
    return {
        str(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in tree.items()
        if isinstance(value, str | int | float)
    }


def named(incoming: Incoming, words: Mapping[str, str], **more: str) -> Incoming:
    """The request in the words of the order book: each parameter under its other name, if it is there, and `more`."""
    params = {ours: value for theirs, ours in words.items() if (value := incoming.params.get(theirs))}
    return incoming._replace(params={**params, **more})


def objects(incoming: Incoming, name: str, most: int) -> list[Any]:
    """The list of one to `most` objects under `name` in the JSON body; `Fault` if there is none."""
    found = incoming.tree.get(name) if isinstance(incoming.tree, dict) else None
    if not isinstance(found, list) or not 1 <= len(found) <= most:
        raise Fault("list", name=name)
    return found
