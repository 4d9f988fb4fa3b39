"""The priority of calls: in a stretch of code (``with ratekeeper.priority("high"): ...``), and by what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ratekeeper.errors import RuleError
from ratekeeper.rules.call import Plan, Priority
from ratekeeper.rules.routing import PRIORITIES, listed

if TYPE_CHECKING:
    from ratekeeper.rules.provider import Provider

__all__ = ["Assigned", "current", "of", "priority", "unknown_pattern", "urgent"]

_CURRENT: ContextVar[Priority | None] = ContextVar("ratekeeper_priority", default=None)


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


def urgent(named: Priority | int | str | None) -> bool:
    """Whether a call that names a class (or none: then the surrounding code's) is of one of the two upper ones."""
    klass = current() if named is None else of(named)
    return klass is not None and klass <= Priority.HIGH


class Assigned:
    """Classes that the configuration gives to calls, by what they are. Of several that fit, the most precise holds.

    Args:
        said: by pattern: ``PROVIDER METHOD PATH`` (a route as ``ratekeeper explain`` shows it; ``*`` stands for anything),
            ``PROVIDER/class:CLASS`` or ``PROVIDER``.
    """

    def __init__(self, said: Mapping[str, Priority]) -> None:
        self._said = dict(said)
        # The longest pattern is the most precise one.
        self._routes = sorted((pattern for pattern in said if " " in pattern), key=len, reverse=True)
        self._known: dict[tuple[str, str], Priority | None] = {}

    def of(self, plan: Plan) -> Priority | None:
        """The class of calls with that plan, or None."""
        key = (plan.provider, plan.route)
        if key not in self._known:
            self._known[key] = self._find(plan)
        return self._known[key]

    def _find(self, plan: Plan) -> Priority | None:
        provider, _, _ = plan.provider.partition("@")
        route = f"{provider} {plan.route.partition(' #')[0]}"
        kind = f"{provider}{plan.scopes[1].removeprefix(plan.provider)}"
        for pattern in (*[each for each in self._routes if fnmatchcase(route, each)], kind, provider):
            if pattern in self._said:
                return self._said[pattern]
        return None


def unknown_pattern(pattern: str, provider: Provider) -> str:
    """What is wrong with a pattern of `Assigned` that speaks of `provider`, with the remedy; ``""`` if nothing is."""
    name, blank, wanted = pattern.partition(" ")
    if not blank:
        _, slash, kind = name.partition("/")
        if not slash or (kind.removeprefix("class:") in PRIORITIES and kind.startswith("class:")):
            return ""
        return f"no class of calls. There are: {', '.join(f'{provider.name}/class:{each}' for each in PRIORITIES)}."
    routes = [match for route in provider.file.routes for match in listed(route.match)]
    if any(fnmatchcase(route, wanted) for route in routes):
        return ""
    near = get_close_matches(wanted, routes, n=1)
    remedy = f"Did you mean {near[0]!r}?" if near else "`ratekeeper explain METHOD URL` shows the route of a call."
    return f"{provider.name} has no such route. {remedy}"
