"""What a person does to pauses by hand: whom a scope means, which programs a command reaches, which bans remain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, NamedTuple

from ratekeeper.config.resolution import configure
from ratekeeper.errors import RuleError, StoreError, StoreUnavailable
from ratekeeper.gate.override import spoken
from ratekeeper.pools.address import EgressSettings, addresses_of, pins
from ratekeeper.rules.reading import cleaned
from ratekeeper.stores.base import SharedStore, Store
from ratekeeper.stores.blocks import EVERYWHERE, PAUSE, BlockState
from ratekeeper.stores.records import Snapshot

if TYPE_CHECKING:
    from ratekeeper.gate.gate import Gate

__all__ = ["BANS", "Reached", "holding", "known_owners", "order", "owner_seen", "verified"]

BANS: Final = ("ban", "throttle", "limit")
"""Kinds of blocks that were learned from answers of a provider."""
_BUILT_IN: Final = frozenset({"account", "class", "connection", "endpoint", "ip", "key", "priority"})
_NEAREST: Final = 3


class Reached(NamedTuple):
    """Whom a command reached.

    Attributes:
        changed: whether anything was paused that is not now.
        here: why the programs of this machine could not be told, or ``""``.
        store: why the shared store could not be told, or ``""``.
    """

    changed: bool
    here: str = ""
    store: str = ""


def order(store: Store, scope: str, length: int | None, reason: str = "", *, resumed: bool = False) -> Reached:
    """Pause a scope, or take its pauses back: first on this machine, then in the shared store.

    Args:
        store: of a gate, or opened for this command.
        scope: in the store's form.
        length: ns, or None for a pause without an end.
        reason: one line for people.
        resumed: take back.
    """
    inner = getattr(store, "inner", store)
    if not isinstance(inner, SharedStore) or inner.pauses is None:
        return Reached(_in_process(store, scope, length, reason, resumed=resumed))
    here = there = ""
    pauses, known = inner.pauses, (scope, PAUSE) in inner.blocks.kept
    record = pauses.record(scope, length, reason, resumed=resumed)
    try:
        pauses.write(record)
    except StoreUnavailable as error:
        here = str(error)
    inner.heed()
    changed = known and (scope, PAUSE) not in inner.blocks.kept
    try:
        changed = getattr(store, "deliver", inner.deliver)(record) or changed
        pauses.wake()
        inner.hand_on()
    except StoreError as error:
        there = str(error)
    return Reached(changed, here, there)


def _in_process(store: Store, scope: str, length: int | None, reason: str, *, resumed: bool) -> bool:
    if resumed:
        return store.unblock(scope, PAUSE)
    now = store.present().mono
    store.block(scope, length, PAUSE, reason, now, 0)
    return False


def holding(blocks: Iterable[BlockState], scope: str, mono: int) -> list[BlockState]:
    """Return the bans that hold calls of a scope, or some of them, at the steady instant `mono` (ns)."""
    return [each for each in blocks if each.kind in BANS and each.ends() > mono and _meet(each.scope, scope)]


def _meet(one: str, other: str) -> bool:
    (place, _, owner), (place2, _, owner2) = one.partition("/"), other.partition("/")
    same_place = EVERYWHERE in (place, place2) or place == place2
    return same_place and (not owner or not owner2 or owner == owner2 or owner.endswith(f"/{owner2}"))


def known_owners(place: str, found: Snapshot | None, egress: EgressSettings) -> dict[str, set[str]]:
    """Return the names of owners by their kind, as far as the store and the configuration tell them.

    Args:
        place: the namespace of a provider, or `EVERYWHERE`.
        found: what the store knows; None: it was not asked.
        egress: the configured addresses.
    """
    owners: dict[str, set[str]] = {"ip": {cleaned(egress.name or "default")}}
    for name, address in addresses_of(egress).items():
        owners["ip"] |= {cleaned(name), cleaned(address.scope or name)}
    for pool in egress.pools.values():
        owners.setdefault("account", set()).update(name for name in pins(pool) if name != "*")
    if found is not None:
        banned = [block.scope for block in found.blocks if block.kind in BANS]
        for scope in (*(view.key for view in found.ledgers), *banned):
            namespace, _, rest = scope.partition("/")
            for part in rest.split(",") if place in (EVERYWHERE, namespace) else ():
                kind, colon, value = part.partition(":")
                if colon:
                    owners.setdefault(kind.rpartition("/")[2], set()).add(value)
    return owners


def owner_seen(gate: Gate, scope: str) -> bool:
    """Check the owner that a scope names against those that the store and the configuration know.

    Args:
        gate: of the command.
        scope: in the store's form.

    Returns:
        Whether it is known; False: no owner of its kind is, or the store cannot be asked, so it may be right.

    Raises:
        RuleError: as `verified`.
    """
    place, _, owner = scope.partition("/")
    if not owner or owner.partition(":")[0] in ("class", "priority"):
        return True
    egress = configure().egress
    configured = known_owners(place, None, egress)
    if any(owner == f"{kind}:{name}" for kind, names in configured.items() for name in names):
        return True  # without asking a server that may be away
    try:
        known = known_owners(place, gate.read(), egress)
    except StoreError:
        known = {}
    return verified(scope, lambda provider: gate.provider(provider).kinds, known)


def verified(scope: str, kinds: Callable[[str], Collection[str]], owners: dict[str, set[str]]) -> bool:
    """Check the owner of a scope against those that are known.

    Args:
        scope: in the store's form.
        kinds: returns the kinds of owners of a provider, given its name.
        owners: see `known_owners`.

    Returns:
        Whether that owner is known; False: none of its kind is, so it may be right.

    Raises:
        RuleError: no such kind of owner, or others of its kind are known; names the nearest.
    """
    place, _, owner = scope.partition("/")
    kind, _, value = owner.partition(":")
    kind = kind.rpartition("/")[2]
    of_provider = frozenset() if place == EVERYWHERE else frozenset(kinds(place.partition("@")[0]))
    possible = _BUILT_IN | of_provider | owners.keys()
    if kind not in possible:
        raise RuleError(f"no kind of owner is called {kind!r}. {_nearest(kind, possible)}")
    names = owners.get(kind, set())
    if value in names:
        return True
    if names:
        near = [f"{kind}:{name}" for name in get_close_matches(value, names, n=_NEAREST, cutoff=0.0)]
        where = "" if place == EVERYWHERE else f" at {spoken(place)}"
        raise RuleError(
            f"no {kind} is called {value!r}{where}, so nothing was paused. Did you mean {' or '.join(near)}?"
        )
    return False


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(names))}."
