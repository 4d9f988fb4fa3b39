"""Headgate: one gate for outbound API traffic; every program that shares an address or a key shares one exact budget.

The names here are loaded on first use, so that ``import headgate`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headgate.errors import (
        Blocked,
        CannotFit,
        DeadlineExceeded,
        HeadgateError,
        Rejected,
        RuleError,
        SignatureWouldExpire,
        StoreError,
        StoreUnavailable,
        StoreVersionError,
        UnknownProvider,
    )
    from headgate.gate.events import Event
    from headgate.gate.gate import Gate
    from headgate.gate.permit import Permit
    from headgate.gate.priorities import priority
    from headgate.rules.call import Priority

__version__ = "0.1.0"

_HOMES = {
    "Event": "headgate.gate.events",
    "Gate": "headgate.gate.gate",
    "Permit": "headgate.gate.permit",
    "Priority": "headgate.rules.call",
    "priority": "headgate.gate.priorities",
}
__all__ = [
    "Blocked",
    "CannotFit",
    "DeadlineExceeded",
    "Event",
    "Gate",
    "HeadgateError",
    "Permit",
    "Priority",
    "Rejected",
    "RuleError",
    "SignatureWouldExpire",
    "StoreError",
    "StoreUnavailable",
    "StoreVersionError",
    "UnknownProvider",
    "priority",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'headgate' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "headgate.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
