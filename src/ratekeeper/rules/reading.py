"""Reads values by reference: a rule names a value of a call or of an answer, and a reader finds it.

``symbol`` is a parameter; ``body.type`` a field of the JSON body (``body`` the whole of it); ``header.x-key`` a request
header; ``answer.usage.total`` a field of the JSON answer; ``body.*.id`` that field of every item of a list. One grammar
for costs, conditions, owners and signatures. `owner_of` names the owners of the limits that a call spends: short texts that
hold no secret.
"""

from __future__ import annotations

import hmac
import re
from collections import UserDict
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ratekeeper.rules.call import Headers, Identity, Request

if TYPE_CHECKING:
    from ratekeeper.rules.schema import Owner

__all__ = [
    "ANONYMOUS",
    "ANYONE",
    "BUILT_IN",
    "FAULTS",
    "LARGEST",
    "OwnerOf",
    "Reader",
    "cleaned",
    "count",
    "decoded",
    "dig",
    "dig_json",
    "digest",
    "header",
    "listed",
    "number",
    "owner_of",
    "reader",
    "scope_text",
    "sought",
    "text",
    "whole",
]

LARGEST: Final = 32 << 20
"""Bytes of a JSON text that are parsed at most."""
_DEEPEST: Final = 64
"""Levels of lists and objects inside each other that are parsed at most."""
_DIGITS: Final = 18
"""Digits of a whole number that is believed: all of them fit into 64 bits."""
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What the parser raises: not JSON, lone surrogates or thousands of digits, and a stack that is nearly full already."""
FAULTS: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
)
"""What reading an answer of an unexpected shape may raise. Only these are caught: an exception that a signal's handler of the
program raises meanwhile is the program's own."""
_PLAIN_MAPPINGS: Final = (dict, MappingProxyType, UserDict)
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_PLAIN: Final = bytes(set(range(256)) - _STEP.keys())

Reader = Callable[[Request], Any]
"""Reads one value; None when it is absent. An empty string counts as absent, as servers treat it."""


def reader(reference: str) -> Reader:
    """The function that reads `reference`. ``answer.…`` reads the `Request.body` that the caller puts the answer into."""
    root, _, rest = reference.partition(".")
    if root == "header":
        return lambda call: header(call.headers, rest)
    if root in {"body", "answer"}:
        steps = tuple(rest.split(".")) if rest else ()
        return lambda call: dig(call.body, steps)

    def param(call: Request) -> Any:
        value = call.params.get(reference) if call.params else None
        return None if value == "" else value

    return param


def dig(value: Any, steps: tuple[str, ...]) -> Any:
    """Follow `steps` through mappings and, where a step is a number, lists. None when something is missing.

    A ``*`` stands for every item of a list: the result is the list of what the rest of the steps finds in them.
    """
    for at, step in enumerate(steps):
        if isinstance(value, (dict, Mapping)):  # to ask for a Mapping alone is slow
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, list) and step == "*":
            found = [each for item in value if (each := dig(item, steps[at + 1 :])) is not None]
            return found or None
        else:
            return None
    return value


def dig_json(body: bytes | str | None, path: str) -> Any:
    """The value at a dotted `path` of a JSON text, without building the rest of it (exchangeInfo has megabytes).

    None when the text is not JSON or has no such field.
    """
    if not body or not _fits(body):
        return None
    try:
        raw: Any = body
        for step in path.split(".") if path else ():
            if step.isdecimal():
                items = msgspec.json.decode(raw, type=list[msgspec.Raw])
                raw = items[int(step)] if int(step) < len(items) else None
            else:
                raw = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get(step)
            if raw is None:
                return None
        return msgspec.json.decode(raw)
    except _UNREADABLE:
        return None


def decoded(body: bytes | str | None) -> Any:
    """The value of a JSON text from anybody: None if it is none, or one beyond the bounds at the top."""
    if not body or not _fits(body):
        return None
    try:
        return msgspec.json.decode(body)
    except _UNREADABLE:
        return None


def _fits(body: bytes | str) -> bool:
    """Whether a text is small and flat enough to be parsed, whatever it is.

    Brackets inside strings count as well: a text that has many of them without their counterparts is not parsed.
    """
    if len(body) > LARGEST:
        return False
    raw = body.encode("utf-8", "replace") if isinstance(body, str) else body
    if raw.count(b"[") + raw.count(b"{") <= _DEEPEST:
        return True
    level = lowest = 0
    for bracket in raw.translate(None, _PLAIN):
        level += _STEP[bracket]
        lowest = min(lowest, level)
        if level - lowest > _DEEPEST:
            return False
    return True


def sought(body: str, path: str) -> list[str]:
    """The plain values of the last field of a dotted `path` in a text that could not be parsed as JSON, in its order."""
    name = re.escape(path.rpartition(".")[2])
    found = re.findall(rf'"{name}"\s{{0,8}}:\s{{0,8}}(?:"([^"]{{0,200}})"|([\w.+-]{{1,40}}))', body)
    return [quoted or plain for quoted, plain in found]


def whole(value: Any) -> int | None:
    """A whole number, or its digits as text; None if it is neither, or beyond 64 bits."""
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) <= _DIGITS:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**_DIGITS:
        return value
    return None


def header(headers: Mapping[str, str] | None, name: str) -> str | None:
    """A request header by its lower-case name. Mappings of client libraries look it up in any case; plain ones do not."""
    if not headers:
        return None
    value = headers.get(name)
    if value is None and type(headers) is not Headers and isinstance(headers, _PLAIN_MAPPINGS):
        for key in headers:
            if key.lower() == name:
                return headers[key] or None
    return value or None


def text(value: Any) -> str:
    """A value as the wire would show it: booleans as ``true``/``false``, a list of one as that one."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def listed(texts: str | list[str]) -> list[str]:
    """One text or several, as a list; nothing for an empty one."""
    return ([texts] if texts else []) if isinstance(texts, str) else texts


def number(value: Any) -> int | None:
    """A whole number, rounded up; None if it is none, or beyond 64 bits."""
    if isinstance(value, str) and value.isdecimal() and value.isascii():
        return int(value[:_DIGITS])
    if isinstance(value, (bool, type(None))):
        return None
    try:
        return whole(value if isinstance(value, int) else -int(-float(text(value)) // 1))
    except (ValueError, OverflowError, RecursionError):
        return None


def count(value: Any) -> int:
    """How many items a list parameter holds: JSON text ``["A","B"]``, comma text, a sequence, or repeated keys."""
    if isinstance(value, (list, tuple, set, frozenset)):
        if len(value) != 1:
            return len(value)
        (value,) = value
    if isinstance(value, bytes):
        value = text(value)
    if not isinstance(value, str):
        return 1
    value = value.strip()
    if value.startswith("["):
        try:
            if _fits(value):
                return len(msgspec.json.decode(value, type=list[msgspec.Raw]))
        except _UNREADABLE:
            pass  # not JSON after all: count the commas, which is never fewer
    return value.count(",") + 1 if value else 0


# --- owners ---------------------------------------------------------------------------------------------------------

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
        # The holder of a socket names it. Two nameless sockets share one ledger, which is the safe side.
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
