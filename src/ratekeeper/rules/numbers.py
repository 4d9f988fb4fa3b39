"""The numbers of limits as the user wants them: the file's, the tier's, the user's own; then what is left unused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

from ratekeeper.errors import RuleError
from ratekeeper.ledger.limit import Limit, Window
from ratekeeper.rules.routing import listed
from ratekeeper.rules.schema import File, LimitRule, Tier
from ratekeeper.rules.times import duration

__all__ = ["CAP", "Cap", "capped", "chosen", "limit_of", "smoothed"]

CAP = "~cap"
"""Ends the name of a limit that caps one program's part of another."""

_SLICES = 10
"""Parts of a window over which smooth pacing spreads its budget: a burst is a tenth of it."""

T = TypeVar("T")


class Cap(NamedTuple):
    """How much of a limit one program may spend.

    Attributes:
        program: its name.
        units: in every window of the limit, all processes of that name together.
        place: where the configuration says so.
    """

    program: str
    units: int
    place: str


def limit_of(name: str, rule: LimitRule, tier: str = "") -> Limit:
    """The ledger's limit of what the file says, for customers of one `tier`; "" for all others."""
    chosen = rule.tiers[tier] if tier else rule.capacity
    capacity, refill = (chosen.capacity, chosen.refill) if isinstance(chosen, Tier) else (chosen, 0)
    return Limit(
        name=name,
        unit=rule.unit,
        capacity=capacity,
        period=duration(rule.period) if rule.window is not Window.SLOTS else 0,
        window=rule.window,
        scope=tuple(listed(rule.scope)),
        headroom=rule.headroom,
        refill=refill or rule.refill * capacity // rule.capacity,
        origin=duration(rule.origin) if rule.origin else 0,
        lasting=rule.lifetime,
    )


def chosen(
    file: File,
    tiers: Mapping[str, str],
    overrides: Mapping[str, tuple[int, int]],
    headroom: Mapping[str, int | str],
) -> dict[str, Limit]:
    """The limits of `file` by name, before the provider states others (`ratekeeper.rules.learning.in_force`).

    A tier takes the place of the file's number, one of the user's own (`overrides`) that of either. Headroom is taken off
    last.

    Args:
        tiers: limit, or ``*`` for all that have it -> name of the tier.
        overrides: limit -> (capacity in units, period in ns; 0 keeps it).
        headroom: limit, or ``*`` for all others -> units, or per cent as in ``"10%"``.

    Raises:
        RuleError: a name that does not exist, or a number that leaves nothing.
    """
    limits = _tiered(file, tiers)
    for name, (capacity, period) in overrides.items():
        limits[name] = _own(file.name, limits, name, capacity, period)
    if "*" in headroom:
        headroom = {**dict.fromkeys(limits, headroom["*"]), **headroom}
        del headroom["*"]
    for name, wish in headroom.items():
        limits[name] = _with_headroom(file.name, limits, name, wish)
    return limits


def smoothed(limit: Limit) -> Limit | None:
    """A second limit that spreads the budget of a window evenly: its part in each part of the window. None where there is
    nothing to spread: slots, buckets, budgets too small to be parted."""
    slices = min(_SLICES, limit.usable)
    if limit.window in {Window.SLOTS, Window.BUCKET} or slices < 2 or limit.period < slices:
        return None
    return Limit(
        name=f"{limit.name}~smooth",
        unit=limit.unit,
        capacity=-(-limit.usable // slices),
        period=limit.period // slices,
        window=Window.SLIDING,
        scope=limit.scope,
    )


def capped(limit: Limit, cap: Cap) -> Limit:
    """A second limit that keeps one program to its part of `limit`, of all owners together."""
    # Where a provider's windows begin when it pleases, no span as long as one may hold more.
    known = limit.window in {Window.FIXED, Window.SLOTS}
    return Limit(
        name=f"{limit.name}{CAP}",
        unit=limit.unit,
        capacity=cap.units,
        period=limit.period,
        window=limit.window if known else Window.SLIDING,
        scope=("program",),
        origin=limit.origin,
        own=True,
        place=f"program {cap.program!r} may spend {cap.units} of {limit.name}, says {cap.place}",
    )


def _tiered(file: File, tiers: Mapping[str, str]) -> dict[str, Limit]:
    key = f"$.tiers.{file.name}"
    for name, tier in tiers.items():
        known = {each for limit in file.limits.values() for each in limit.tiers}
        if name != "*":
            _limit(file.name, file.limits, name, f"{key}.{name}")
            known = set(file.limits[name].tiers)
        if tier not in known:
            has = f"Choose one of {', '.join(sorted(known))}" if known else "It has none: leave it out"
            raise RuleError(f"{file.name} has no tier {tier!r} there. {has}", key=f"{key}.{name}")
    result = {}
    for name, rule in file.limits.items():
        tier = tiers.get(name, tiers.get("*", ""))
        result[name] = limit_of(name, rule, tier if tier in rule.tiers else "")
    return result


def _own(provider: str, limits: Mapping[str, Limit], name: str, capacity: int, period: int) -> Limit:
    key = f"$.limits.{provider}.{name}"
    limit = _limit(provider, limits, name, key)
    try:
        refill = max(limit.refill * capacity // limit.capacity, min(limit.refill, 1))
        return replace(limit, capacity=capacity, period=period or limit.period, headroom=0, refill=refill, own=True)
    except ValueError as error:
        raise RuleError(
            f"{error}. Write at least one unit, and a period only for limits that have one", key=key
        ) from None


def _with_headroom(provider: str, limits: Mapping[str, Limit], name: str, wish: int | str) -> Limit:
    """A limit that leaves `wish` unused: units, or per cent as in ``"10%"``."""
    key = f"$.headroom.{provider}.{name}"
    limit = _limit(provider, limits, name, key)
    try:
        units = wish if isinstance(wish, int) else int(limit.capacity * float(wish.removesuffix("%")) / 100)
        return replace(limit, headroom=units)
    except ValueError:
        raise RuleError(
            f"{wish!r} leaves nothing or means nothing. Write units below {limit.capacity}, or per cent as in '10%'",
            key=key,
        ) from None


def _limit(provider: str, limits: Mapping[str, T], name: str, key: str) -> T:
    if name not in limits:
        raise RuleError(f"{provider} has no such limit. It has: {', '.join(limits)}", key=key)
    return limits[name]
