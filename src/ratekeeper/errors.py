"""Every error Ratekeeper raises, in one tree.

::

    RatekeeperError
    ├── Rejected                 refused by us, before anything was sent
    │   ├── CannotFit            the cost is above the limit: it could never be allowed
    │   ├── DeadlineExceeded     the earliest possible instant lies after the caller's deadline
    │   ├── Blocked              a ban, a cooldown or a pause holds the scope for longer than the call waits for such
    │   │   └── BreakerOpen      the provider is in trouble: nothing is sent to it until a probe succeeds
    │   └── SignatureWouldExpire a signed request has expired, or would while it waits
    ├── CallFailed               it was sent, and did not work out
    │   ├── RetriesExhausted     every try failed: tells all of them
    │   └── OutcomeUnknown       an order may or may not have reached the exchange: tells what to ask for
    ├── RuleError                a rule file or a configuration is wrong: names file and key
    │   └── UnknownProvider      no rules for that name
    └── StoreError               the place where ledgers live does not work
        ├── StoreVersionError    written by a newer Ratekeeper
        └── StoreUnavailable     locked, full, read-only or gone

Errors carry fields, not only text, so that a program can act on them. No field ever holds a key, a token or a signature.
"""

from __future__ import annotations

__all__ = [
    "Blocked",
    "BreakerOpen",
    "CallFailed",
    "CannotFit",
    "DeadlineExceeded",
    "OutcomeUnknown",
    "RatekeeperError",
    "Rejected",
    "RetriesExhausted",
    "RuleError",
    "SignatureWouldExpire",
    "StoreError",
    "StoreUnavailable",
    "StoreVersionError",
    "UnknownProvider",
]


class RatekeeperError(Exception):
    """Root of all errors raised by Ratekeeper."""


class Rejected(RatekeeperError):
    """Refused by Ratekeeper; nothing was sent and nothing was charged.

    Attributes:
        limit: name of the limit that has no room, or of the block in force; ``""`` if several.
        scope: whose limit it is, with secrets replaced by a keyed digest.
        retry_at: wall-clock instant (Unix seconds) at which the call could pass, or ``None`` if it never can
            or nobody can know.
    """

    def __init__(self, message: str, *, limit: str = "", scope: str = "", retry_at: float | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.scope = scope
        self.retry_at = retry_at


class CannotFit(Rejected):
    """The cost is larger than the limit itself, so waiting would be for ever."""


class DeadlineExceeded(Rejected):
    """The earliest instant at which the call could pass is later than its deadline."""


class Blocked(Rejected):
    """A ban, a cooldown or a pause holds the scope for longer than the call waits for a block.

    Attributes:
        kind: ``ban``, ``throttle``, ``pause`` or ``breaker``; `limit` holds the same.
        seconds: from the refusal to the end of the block; None if it has no stated end.
        reason: the words of whoever shut the scope, without secrets.
        response: what the provider would have answered, as the client library knows it; None where there is no client.
    """

    response: object = None

    def __init__(
        self,
        message: str,
        *,
        limit: str = "",
        scope: str = "",
        retry_at: float | None = None,
        seconds: float | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message, limit=limit, scope=scope, retry_at=retry_at)
        self.kind = limit
        self.seconds = seconds
        self.reason = reason


class BreakerOpen(Blocked):
    """The provider failed again and again, in whatever process: calls are spared it until a probe succeeds."""


class SignatureWouldExpire(Rejected):
    """The request was signed before it reached the gate, and its signature has expired or would by the time it may go; or
    a call of the same key with a higher nonce has left."""


class CallFailed(RatekeeperError):
    """A call was sent, once or several times, and did not work out.

    Attributes:
        route: what was called, such as ``GET /fapi/v1/klines``.
        tries: what became of each attempt, in words, oldest first.
        response: the last answer as the client library knows it, or ``None`` if none came.
    """

    def __init__(self, message: str, *, route: str = "", tries: tuple[str, ...] = (), response: object = None) -> None:
        super().__init__(message)
        self.route = route
        self.tries = tries
        self.response = response


class RetriesExhausted(CallFailed):
    """Every attempt failed, or trying on would have broken the deadline or the retry budget."""


class OutcomeUnknown(CallFailed):
    """A call that must not be made twice was sent, and nobody can tell whether the provider acted on it.

    Attributes:
        ask: the call that tells, such as ``GET /fapi/v1/order?origClientOrderId=a1&symbol=BTCUSDT``; ``""`` if the rules
            know none.
    """

    def __init__(
        self, message: str, *, route: str = "", tries: tuple[str, ...] = (), response: object = None, ask: str = ""
    ) -> None:
        super().__init__(message, route=route, tries=tries, response=response)
        self.ask = ask


class RuleError(RatekeeperError):
    """A rule file or a configuration is wrong.

    Attributes:
        file: the file at fault, or ``""``.
        key: the path of the key at fault, such as ``$.limits[0].capacity``, or ``""``.
        line: where it stands in the file, from 1; 0 if that is not known.
        reason: the message without the place.
    """

    def __init__(self, message: str, *, file: str = "", key: str = "", line: int = 0) -> None:
        shown, told = _short(key), _short(message, 2000)
        if line:
            place = ": ".join(part for part in (f"{file}:{line}", shown.removeprefix("$").lstrip(".")) if part)
        else:
            place = " at ".join(part for part in (file, shown) if part)
        super().__init__(f"{place}: {told}" if place else told)
        self.file = file
        self.key = key
        self.line = line
        self.reason = message


def _short(text: str, most: int = 200) -> str:
    """A text of a file's as people are shown it: keys and values may be endless."""
    return text if len(text) <= most else f"{text[:most]}…"


class UnknownProvider(RuleError):
    """No rule file is known under that name."""


class StoreError(RatekeeperError):
    """The store, where ledgers live, does not work."""


class StoreVersionError(StoreError):
    """The store was written by a newer Ratekeeper; it is left untouched."""


class StoreUnavailable(StoreError):
    """The store cannot be used now: its lock is held too long, the disk is full or read-only, the file is gone."""
