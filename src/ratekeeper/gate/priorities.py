"""The priority of calls: for a block of code (``with ratekeeper.priority("high"): ...``), and by route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from ratekeeper.rules.call import Plan, Priority

__all__ = ["CURRENT", "Assigned", "priority", "urgent"]

CURRENT: ContextVar[Priority | None] = ContextVar("ratekeeper_priority", default=None)
"""The priority of the surrounding code, if it sets one."""


@contextmanager
def priority(value: Priority | int | str) -> Iterator[Priority]:
    """Give calls inside the block, and in tasks started inside, this priority unless they name their own."""
    wanted = Priority.of(value)
    token = CURRENT.set(wanted)
    try:
        yield wanted
    finally:
        CURRENT.reset(token)


def urgent(named: Priority | int | str | None) -> bool:
    """Whether a call has one of the two upper priorities. `named` None: the priority of the surrounding code."""
    priority = CURRENT.get() if named is None else Priority.of(named)
    return priority is not None and priority <= Priority.HIGH


class Assigned:
    """Priorities that the configuration gives to calls. If several patterns match, the most precise one applies.

    Args:
        said: priority by pattern: ``PROVIDER METHOD PATH`` (a route as ``ratekeeper explain`` shows it; ``*`` matches
            anything), ``PROVIDER/class:CLASS`` or ``PROVIDER``.
    """

    def __init__(self, said: Mapping[str, Priority | str]) -> None:
        self._said = {pattern: Priority.of(priority) for pattern, priority in said.items()}
        # The longest pattern is the most precise one.
        self._routes = sorted((pattern for pattern in said if " " in pattern), key=len, reverse=True)
        self._known: dict[tuple[str, str], Priority | None] = {}

    def of(self, plan: Plan) -> Priority | None:
        """Return the priority of calls with that plan, or None."""
        key = (plan.provider, plan.route)
        if key not in self._known:
            self._known[key] = self._find(plan)
        return self._known[key]

    def _find(self, plan: Plan) -> Priority | None:
        from fnmatch import fnmatchcase

        provider, _, _ = plan.provider.partition("@")
        route = f"{provider} {plan.route.partition(' #')[0]}"
        kind = f"{provider}{plan.scopes[1].removeprefix(plan.provider)}"
        for pattern in (*[each for each in self._routes if fnmatchcase(route, each)], kind, provider):
            if pattern in self._said:
                return self._said[pattern]
        return None
