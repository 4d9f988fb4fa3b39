"""Operator override: the scopes that ``ratekeeper pause`` accepts, and the calls that pass a pause."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from difflib import get_close_matches
from typing import Final

from ratekeeper.errors import RatekeeperError, RuleError
from ratekeeper.ledger.shares import AGED
from ratekeeper.rules.call import PRIORITIES, Plan, Priority
from ratekeeper.stores.blocks import EMERGENCY, EVERYWHERE

__all__ = ["OVERRIDING", "PRIORITY_SCOPES", "operator_override", "overriding", "spoken", "understood"]

_LEVELS: Final = tuple(each.name.lower() for each in Priority)
PRIORITY_SCOPES: Final = tuple(f"/priority:{name}" for name in (*_LEVELS, *["-"] * (AGED - len(_LEVELS))))
"""By priority, aged or not: what follows the provider in the scope of its calls."""
_WORDS: Final = {
    "everything": EVERYWHERE,
    "orders": f"{EVERYWHERE}/class:order",
    **{name: f"{EVERYWHERE}/priority:{name}" for name in _LEVELS},
}
OVERRIDING: ContextVar[bool] = ContextVar("ratekeeper_override", default=False)
"""Whether the surrounding code runs inside `operator_override`."""


@contextmanager
def operator_override() -> Iterator[None]:
    """Let calls inside the block pass every pause and every open breaker, whatever their class. A ban still stops them.

    A person uses it to act by hand while the programs are stopped, for example to close a position. The ledgers charge
    these calls like any other.
    """
    token = OVERRIDING.set(True)
    try:
        yield
    finally:
        OVERRIDING.reset(token)


def overriding(plan: Plan) -> Plan:
    """Return the plan, marked as an operator override inside `operator_override`."""
    if not OVERRIDING.get() or EMERGENCY in plan.scopes:
        return plan
    # The charges are a copy: a permit batch for this plan must not serve calls that a pause holds.
    return replace(plan, charges=(*plan.charges,), scopes=(*plan.scopes, EMERGENCY))


def understood(name: str, namespace: Callable[[str], str]) -> str:
    """Convert a scope that a person writes into the store's form.

    Args:
        name: ``everything`` or ``*``; ``orders``; a priority (``low``); ``KIND:VALUE`` at every provider
            (``class:cancel``, ``ip:default``); a provider; ``PROVIDER/KIND:VALUE``; the key of one ledger.
        namespace: returns the namespace of a provider named without a host.

    Raises:
        RuleError: the class of calls, the priority or the provider does not exist.
    """
    name = _WORDS.get(name, name)
    provider, slash, owner = name.partition("/")
    if not slash and ":" in provider and "@" not in provider:
        provider, slash, owner = EVERYWHERE, "/", provider
    kind, colon, value = owner.partition(":")
    if slash and not (colon and kind and value):
        raise RuleError(f"{name!r} names nobody. Write for example binance-usdm/class:order or binance-usdm/ip:default")
    for word, values in (("class", PRIORITIES), ("priority", _LEVELS)):
        if kind == word and value not in values:
            near = get_close_matches(value, values, n=1)
            remedy = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(values)}."
            raise RuleError(f"no {word} of calls is {value!r}. {remedy}")
    if provider == EVERYWHERE:
        return provider + slash + owner
    base, host, _ = provider.partition("@")
    try:
        found = namespace(base)
    except RatekeeperError as error:
        near = get_close_matches(base, _WORDS, n=1)
        raise RuleError(f"nothing is called {base!r}. Did you mean {near[0]}?") if near else error from None
    return (provider if host else found) + slash + owner


def spoken(scope: str) -> str:
    """Convert a scope into the form that people read and write. `understood` is the inverse."""
    for word, meant in _WORDS.items():
        if scope == meant:
            return word
    return scope.removeprefix(f"{EVERYWHERE}/")
