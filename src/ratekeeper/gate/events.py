"""The typed events of a gate, for handlers and for the log."""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND
from ratekeeper.rules.call import Plan
from ratekeeper.stores.threads import death, log_death

__all__ = ["LEVELS", "Event", "Events", "Secrets"]

_LOG: Final = logging.getLogger("ratekeeper")
_MOST_ABOUT: Final = 4096
"""The number of reported blocks that the gate remembers."""
_MOST_SECRETS: Final = 256
"""The number of secrets that the gate remembers."""
LEVELS: Final[Mapping[str, int]] = {
    "throttled": logging.WARNING,
    "paced": logging.WARNING,
    "overloaded": logging.INFO,
    "banned": logging.WARNING,
    "refusing": logging.WARNING,
    "foreign": logging.WARNING,
    "unreadable": logging.WARNING,
    "doubted": logging.WARNING,
    "unlisted refusal": logging.WARNING,
    "egress": logging.WARNING,
    "helper failed": logging.WARNING,
    "store lost": logging.WARNING,
    "store back": logging.WARNING,
    "session abnormal": logging.WARNING,
    "session recovering": logging.WARNING,
    "session recovered": logging.WARNING,
    "session failed": logging.ERROR,
    "session stopped": logging.INFO,
    "stream down": logging.WARNING,
    "stream stale": logging.WARNING,
    "stream back": logging.INFO,
    "stream rolled over": logging.INFO,
    "retry": logging.INFO,
    "gave up": logging.WARNING,
    "unknown": logging.WARNING,
    "breaker": logging.WARNING,
    "breaker closed": logging.WARNING,
    "cache stale": logging.INFO,
    "waiting": logging.INFO,
    "learned": logging.INFO,
    "clock": logging.INFO,
    "cache hit": logging.INFO,
    "batched": logging.INFO,
    "gather": logging.INFO,
}
"""Every kind of event, and the level at which it goes to the log: a warning if a person should know of it. The table in
``docs/reference/errors.md`` says the same."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event that a person may want to know of.

    Attributes:
        kind: ``throttled``, ``banned``, ``retry``, ``breaker``...; ``docs/reference/errors.md`` lists all.
        message: one sentence, without secrets.
        provider: namespace, or ``""``.
        fields: the numbers and names of the sentence.
        at: Unix seconds.
    """

    kind: str
    message: str
    provider: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


class _LastResort(logging.Handler):
    """Writes warnings to stderr while the program has set up no logging, as Python itself does, but with the time."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s ratekeeper: %(message)s", "%Y-%m-%d %H:%M:%S%z"))

    def emit(self, record: logging.LogRecord) -> None:
        if _LOG.handlers != [self] or (_LOG.propagate and logging.getLogger().handlers) or logging.lastResort is None:
            return  # the program's own logging shows the record, or the program wants none shown
        try:
            # Some messages begin with the name themselves, for programs with a format of their own.
            sys.stderr.write(self.format(record).replace(" ratekeeper: ratekeeper", " ratekeeper", 1) + "\n")
        except Exception:  # noqa: BLE001 - as all handlers of logging
            self.handleError(record)


class Secrets:
    """The secrets of the latest requests that failed: what a program says of its failures may quote them."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, None] = OrderedDict()

    def add(self, secrets: Iterable[str]) -> None:
        """Remember some; the oldest are forgotten. Safe in any thread."""
        for secret in secrets:
            self._held[secret] = None
            self._held.move_to_end(secret)
            if len(self._held) > _MOST_SECRETS:
                self._held.popitem(last=False)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._held))


class Events:
    """Handlers of one gate, and the ``ratekeeper`` log.

    Attributes:
        secrets: what the text of an event must not quote.
    """

    def __init__(self) -> None:
        if not any(isinstance(handler, _LastResort) for handler in _LOG.handlers):
            _LOG.addHandler(_LastResort())
        self.secrets = Secrets()
        self._handlers: list[Callable[[Event], object]] = []
        self._said: dict[tuple[str, str], float] = {}
        self._shut: dict[tuple[str, str], int] = {}

    def on(self, handler: Callable[[Event], object]) -> Callable[[], None]:
        """Call `handler` with every event, in the thread of the event; return a function that removes it."""
        self._handlers.append(handler)
        return lambda: self._handlers.remove(handler)

    def say(self, kind: str, message: str, provider: str = "", **fields: Any) -> None:
        """Report an event to handlers and the log. An error in a handler is logged and never disturbs a call."""
        _LOG.log(LEVELS.get(kind, logging.INFO), "%s", f"{provider}: {message}" if provider else message)
        if not self._handlers:
            return
        event = Event(kind, message, provider, fields)
        for handler in list(self._handlers):
            try:
                handler(event)
            except Exception:  # noqa: BLE001 - the program's handler may raise anything
                _LOG.exception("an event handler failed")

    def say_seldom(self, kind: str, about: str, every: float, message: str, provider: str = "", **fields: Any) -> None:
        """Do the same as `say`, but at most once in `every` seconds for one subject."""
        now = time.monotonic()
        if now - self._said.get((kind, about), -every) >= every:
            if len(self._said) >= _MOST_ABOUT:
                self._said.clear()
            self._said[kind, about] = now
            self.say(kind, message, provider, **fields)

    def reporter(self) -> Callable[[str, BaseException], None]:
        """Return a function that reports a failed helper thread (its name, the error). It does not keep this object alive."""
        here = weakref.ref(self)

        def died(name: str, error: BaseException) -> None:
            events = here()
            if events is None:
                log_death(name, error)
            else:
                events.say("helper failed", death(name, error), helper=name)

        return died

    def say_wait(self, plan: Plan, no: Refusal, now: int) -> None:
        """Report why a call waits for long, once a minute for each limit. `now`: steady ns."""
        why = f"{no.kind} {plan.named(no.key)}{': ' + no.reason if no.reason else ''}"
        self.say_seldom(
            "waiting", no.key, 60.0, f"{plan.route or 'a call'} waits {(no.available_at - now) / SECOND:.0f} s for {why}",
            plan.provider, key=no.key, seconds=(no.available_at - now) / SECOND,
        )  # fmt: skip

    def say_shut(self, plan: Plan, no: Refusal, now: int) -> None:
        """Report a call refused because a block lasts too long, once per block. `now`: steady ns."""
        about = no.key, no.kind
        if abs(no.available_at - self._shut.get(about, 0)) < SECOND:
            return
        if len(self._shut) >= _MOST_ABOUT:
            self._shut.clear()
        self._shut[about] = no.available_at
        seconds = None if no.available_at - now >= 1 << 61 else (no.available_at - now) / SECOND
        until = "until it is resumed"
        if seconds is not None:
            until = f"until {time.strftime('%H:%M:%S', time.gmtime(time.time() + seconds))} UTC, for {seconds:.0f} s"
        self.say(
            "refusing", f"calls to {no.key} are refused {until} ({no.kind}{': ' + no.reason if no.reason else ''})",
            plan.provider, scope=no.key, block=no.kind, seconds=seconds,
        )  # fmt: skip

    def open_again(self, scope: str) -> None:
        """Report the next block of a scope again: the present one was taken back."""
        self._shut = {about: end for about, end in self._shut.items() if about[0] != scope}
