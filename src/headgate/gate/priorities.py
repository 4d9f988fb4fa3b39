"""The priority of calls in a stretch of code: ``with headgate.priority("high"): ...``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from headgate.errors import RuleError
from headgate.rules.call import Priority

__all__ = ["current", "of", "priority"]

_CURRENT: ContextVar[Priority | None] = ContextVar("headgate_priority", default=None)


def of(value: Priority | int | str) -> Priority:
    """A priority from its name or number.

    Raises:
        RuleError: there is no such class.
    """
    try:
        return Priority[value.upper()] if isinstance(value, str) else Priority(value)
    except (KeyError, ValueError):
        names = ", ".join(p.name.lower() for p in Priority)
        raise RuleError(f"no priority is called {value!r}: use one of {names}") from None


@contextmanager
def priority(value: Priority | int | str) -> Iterator[Priority]:
    """Calls made inside, also by tasks started inside, have this priority unless they name their own."""
    wanted = of(value)
    token = _CURRENT.set(wanted)
    try:
        yield wanted
    finally:
        _CURRENT.reset(token)


def current() -> Priority | None:
    """The priority of the surrounding code, if it has one."""
    return _CURRENT.get()
