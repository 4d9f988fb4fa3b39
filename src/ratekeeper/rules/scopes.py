"""Names the owners of the limits that a call spends: short texts that hold no secret."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from ratekeeper.rules.call import Identity, Request
from ratekeeper.rules.reading import header, listed, reader, text

if TYPE_CHECKING:
    from ratekeeper.rules.schema import Owner

__all__ = ["ANONYMOUS", "ANYONE", "BUILT_IN", "OwnerOf", "cleaned", "digest", "owner_of", "scope_text"]

ANONYMOUS = "anonymous"
"""The account and key of a call that shows none."""
ANYONE = Identity()
BUILT_IN = frozenset({"ip", "account", "key", "endpoint", "connection"})

_UNFIT: Final = re.compile(r"[,\s\x00-\x1f\x7f]")

OwnerOf = Callable[[Request, Identity, str], str]
"""(call, identity, endpoint) -> who it is among owners of one kind; several names, joined by commas, if it is several."""


def digest(secret: bytes, value: str) -> str:
    """Twelve hex digits of a keyed digest: the same for one key in every process of a store, of no use outside it."""
    return hmac.digest(secret, value.encode(), "sha256").hex()[:12]


def owner_of(kind: str, owners: Mapping[str, Owner]) -> OwnerOf:
    """The function that names the owner of `kind`, from the rule file's ``[owners]``."""
    if kind == "ip":
        return lambda call, identity, endpoint: cleaned(identity.egress)
    if kind == "endpoint":
        return lambda call, identity, endpoint: endpoint
    if kind == "connection":
        # Whoever holds the socket names it; two nameless sockets share one ledger, which is the safe side.
        return _value([kind], None, {})
    owner = owners.get(kind)
    names = listed(owner.header) if owner else []
    pattern = re.compile(owner.pattern) if owner and owner.pattern else None
    if not names and kind not in {"account", "key"}:
        return _value(listed(owner.value) if owner else [], pattern, owner.names if owner else {})
    if kind == "account":
        return lambda call, identity, endpoint: (
            cleaned(identity.account) if identity.account else _secret(names, pattern, call, identity)
        )
    return lambda call, identity, endpoint: _secret(names, pattern, call, identity)


def scope_text(owners: tuple[tuple[str, str], ...]) -> str:
    """``ip:default`` or, for several owners, ``account:3fa1c0de9b12,instrument:BTC-USDT``."""
    return ",".join(f"{kind}:{value}" for kind, value in owners)


def _secret(names: list[str], pattern: re.Pattern[str] | None, call: Request, identity: Identity) -> str:
    for name in names:
        value = header(call.headers, name)
        if value is None:
            continue
        shown = value if isinstance(value, str) else text(value)
        if pattern is None:
            return digest(identity.secret, shown)
        found = pattern.search(shown)
        if found is not None:
            return digest(identity.secret, found[1] if pattern.groups else found[0])
    return ANONYMOUS


def _value(references: list[str], pattern: re.Pattern[str] | None, pools: Mapping[str, str]) -> OwnerOf:
    reads = [reader(each) for each in references]

    def value_of(call: Request, identity: Identity, endpoint: str) -> str:
        value = next((found for read in reads if (found := read(call)) is not None), None)
        if value is None:
            return "none"
        if isinstance(value, (list, tuple)) and len(value) > 1:
            return ",".join(sorted(map(name_of, value)))
        return name_of(value)

    def name_of(value: object) -> str:
        name = text(value)
        if pattern is not None and (found := pattern.search(name)):
            name = found[1] if pattern.groups else found[0]
        name = next((pool for shape, pool in pools.items() if fnmatchcase(name, shape)), name)
        return cleaned(name)

    return value_of


def cleaned(name: str) -> str:
    """Fit for a key: no comma (it joins owners), no blanks or control characters, not endless."""
    if name.isalnum() and len(name) <= 80:
        return name
    name = _UNFIT.sub("_", name)
    return name if len(name) <= 80 else f"{name[:60]}~{digest(b'', name)}"
