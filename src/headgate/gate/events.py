"""What a gate has to tell: typed events, for handlers and for the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Event", "Events"]

_LOG: Final = logging.getLogger("headgate")
_LEVELS: Final = {
    "throttled": logging.WARNING,
    "banned": logging.WARNING,
    "foreign": logging.WARNING,
    "egress": logging.WARNING,
    "store lost": logging.WARNING,
    "store back": logging.WARNING,
    "waiting": logging.INFO,
    "learned": logging.INFO,
    "clock": logging.INFO,
    "rejected": logging.INFO,
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something a person may want to know.

    Attributes:
        kind: ``throttled``, ``banned``, ``foreign``, ``egress``, ``learned``, ``clock``, ``waiting``, ``rejected``,
            ``store lost``, ``store back``.
        message: one sentence, without secrets.
        provider: namespace, or ``""``.
        fields: numbers and names behind the sentence.
        at: Unix seconds.
    """

    kind: str
    message: str
    provider: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)


class Events:
    """Handlers of one gate, and the ``headgate`` log."""

    def __init__(self) -> None:
        self._handlers: list[Callable[[Event], object]] = []
        self._said: dict[tuple[str, str], float] = {}

    def on(self, handler: Callable[[Event], object]) -> Callable[[], None]:
        """Call `handler` with every event, in whatever thread it happens; returns what takes it off again."""
        self._handlers.append(handler)
        return lambda: self._handlers.remove(handler)

    def say(self, kind: str, message: str, provider: str = "", **fields: Any) -> None:
        """Tell handlers and the log. A handler that raises is logged and never disturbs a call."""
        _LOG.log(_LEVELS.get(kind, logging.DEBUG), "%s", f"{provider}: {message}" if provider else message)
        if not self._handlers:
            return
        event = Event(kind, message, provider, fields)
        for handler in list(self._handlers):
            try:
                handler(event)
            except Exception:  # noqa: BLE001 - a program's handler is not ours to trust
                _LOG.exception("an event handler failed")

    def say_seldom(self, kind: str, about: str, every: float, message: str, provider: str = "", **fields: Any) -> None:
        """`say`, but about one subject at most once in `every` seconds."""
        now = time.monotonic()
        if now - self._said.get((kind, about), -every) >= every:
            self._said[kind, about] = now
            self.say(kind, message, provider, **fields)
