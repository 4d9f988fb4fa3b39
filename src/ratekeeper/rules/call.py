"""The values that pass between a governed call and the rules: the call, its plan, the answer, the feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import Charge
from ratekeeper.rules.times import Wait

__all__ = [
    "PRIORITIES",
    "Answer",
    "Block",
    "Doubt",
    "Feedback",
    "Headers",
    "Identity",
    "Outcome",
    "Plan",
    "Priority",
    "Request",
]


class Priority(IntEnum):
    """The priority class of a call. Lower numbers go first, across all processes."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
    BACKGROUND = 4

    @classmethod
    def of(cls, value: Priority | int | str) -> Priority:
        """A priority from its name or number.

        Raises:
            RuleError: there is no such class.
        """
        try:
            return cls[value.upper()] if isinstance(value, str) else cls(value)
        except (KeyError, ValueError):
            names = ", ".join(each.name.lower() for each in cls)
            raise RuleError(f"no priority is called {value!r}: use one of {names}") from None


PRIORITIES: Final = {
    "cancel": Priority.CRITICAL,
    "order": Priority.HIGH,
    "account": Priority.NORMAL,
    "other": Priority.NORMAL,
    "market": Priority.LOW,
}
"""Class of a route -> its default priority: strictly cancel > order > account > market data."""


class Outcome(StrEnum):
    """What an answer means for the caller."""

    OK = "ok"
    THROTTLED = "throttled"
    """Refused because a limit is used up."""
    BANNED = "banned"
    """The scope is shut out for a time."""
    OVERLOADED = "overloaded"
    """The provider is in trouble; not a quota."""
    QUOTA_GONE = "quota gone"
    MONEY_GONE = "money gone"
    BAD_REQUEST = "bad request"
    FAILED = "failed"
    """An error that nothing else describes (5xx)."""
    NETWORK = "network"
    """It surely never left: no connection could be made."""
    UNKNOWN = "unknown"
    """It was sent, and no answer came."""


class Headers(dict[str, str]):
    """Headers of a request or an answer, by lower-case name: nobody needs to look for other spellings."""

    __slots__ = ()


class Request(NamedTuple):
    """One HTTP call as the rules see it, before it is sent."""

    method: str
    path: str
    """Path without query string, starting with a slash."""
    params: Mapping[str, Any] | None = None
    """Query and form parameters together; values as given by the caller (str, int, list...)."""
    body: Any = None
    """Parsed JSON body, when a rule needs one and the caller has it."""
    headers: Mapping[str, str] | None = None
    """Request headers; only those that name an owner are read, and only their keyed digest is kept."""


class Identity(msgspec.Struct, frozen=True):
    """Who makes a call, as far as the request itself does not show it.

    Attributes:
        egress: name of the address the call leaves from.
        account: name of the account, or ``""`` to derive it from the request (a digest of its key).
        secret: key of the digest under which API keys appear in scopes; the same for all processes of a store.
    """

    egress: str = "default"
    account: str = ""
    secret: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a call will spend and on whose ledgers: the rules' answer to a `Request`. Plans are cached and shared.

    Attributes:
        provider: namespace of the provider (``binance-usdm`` or, for a host named by the user,
            ``binance-usdm@127.0.0.1:9300``).
        route: the route's template, such as ``GET /fapi/v1/klines``; ``""`` if no route matched.
        charges: every limit charged, all or nothing; no two with the same key.
        scopes: owners whose blocks (bans, pauses) stop this call, such as ``binance-usdm/ip:default``.
        priority: the route's default class.
        feedback: whether usage headers on the answer to this route can be trusted.
    """

    provider: str
    route: str
    charges: tuple[Charge, ...]
    scopes: tuple[str, ...]
    priority: Priority = Priority.NORMAL
    feedback: bool = True


class Answer(NamedTuple):
    """An HTTP answer as the rules see it."""

    status: int
    headers: Mapping[str, str]
    """Looked up with lower-case names; any case-insensitive mapping, or a dict with lower-case keys."""
    body: bytes | str | None = None
    """Small bodies only; ``None`` when it was not read (streams)."""


class Block(msgspec.Struct, frozen=True):
    """A scope (or one ledger) that must not be used for a time.

    Attributes:
        scope: the owner, as in `Plan.scopes`, or a `Charge.key` to hold one limit only.
        wait: how long; None for a ban of which the provider named no end: it is longer for those who were banned before.
        kind: ``ban``, ``throttle``, ``pause``; ``limit`` where a ledger's budget is spent until then, which calls wait for.
        reason: one line for people; never holds a secret.
        first: where `wait` is None, ns of the first such ban, of which the rule file knows nothing; 0: the file's own.
    """

    scope: str
    wait: Wait | None
    kind: str = "ban"
    reason: str = ""
    first: int = 0


class Doubt(msgspec.Struct, frozen=True):
    """A statement of an answer that cannot be meant, so that it is told and not believed.

    Attributes:
        about: what it speaks of: a limit, with its owner if that is known, or a part of the answer such as ``date``.
        stated: what the answer states, in words.
        used: what holds instead, in words.
        hold: the ledger key that is held for a short time, in case the statement is true after all; ``""``: none.
    """

    about: str
    stated: str
    used: str
    hold: str = ""


class Feedback(msgspec.Struct):
    """What an answer tells, in the ledger's terms. All mappings are keyed by `Charge.key`.

    Attributes:
        outcome: what the answer means.
        used: the provider's own used-counter per limit, in units.
        actual: the cost really charged, where it differs from the reserved one.
        full: limits that the answer says are used up.
        blocks: bans and holds that the answer announces.
        server_time: bounds of the server's clock when it answered, Unix ns ``(earliest, latest)``; ``None`` if unsaid.
        learned: limits as the provider states them: limit name -> (capacity in units, period in ns).
        reason: one line for people (code and text of a refusal), without secrets.
        acted: whether the provider may have done what was asked; False if it surely refused before.
        wait: for how long the provider wants no other try; None if it says nothing.
        retry_in: the same in ns from the answer, by the server's clock as the answer taught it; set when it is settled.
        held: ns for which the gate holds further calls of this kind, as far as is known; set when it is settled.
        unlisted: of a refusal that the rule file does not list, what it could list: status, and code or text; ``""``: none.
        unreadable: the parts of the answer that could not be read and are left out; ``""``: none.
        doubted: what the answer states and cannot mean.
    """

    outcome: Outcome = Outcome.OK
    used: dict[str, int] = {}
    actual: dict[str, int] = {}
    full: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    server_time: tuple[int, int] | None = None
    learned: dict[str, tuple[int, int]] = {}
    reason: str = ""
    acted: bool = True
    wait: Wait | None = None
    retry_in: int | None = None
    unreadable: str = ""
    held: int = 0
    doubted: tuple[Doubt, ...] = ()
    unlisted: str = ""
