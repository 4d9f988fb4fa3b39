"""Headgate: one gate for outbound API traffic; every program that shares an address or a key shares one exact budget.

The names here are loaded on first use, so that ``import headgate`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headgate.errors import (
        Blocked,
        BreakerOpen,
        CallFailed,
        CannotFit,
        DeadlineExceeded,
        HeadgateError,
        OutcomeUnknown,
        Rejected,
        RetriesExhausted,
        RuleError,
        SignatureWouldExpire,
        StoreError,
        StoreUnavailable,
        StoreVersionError,
        UnknownProvider,
    )
    from headgate.gate.events import Event
    from headgate.gate.gate import Gate
    from headgate.gate.gathering import gather_bounded, map_bounded
    from headgate.gate.permit import Permit
    from headgate.gate.polling import Poller
    from headgate.gate.priorities import priority
    from headgate.policy.breaker import Breaker
    from headgate.policy.congestion import Congestion
    from headgate.policy.freshness import Cache
    from headgate.policy.interval import Interval
    from headgate.policy.policies import Batch, Policies
    from headgate.policy.retry import Retry
    from headgate.rules.call import Priority
    from headgate.sessions.restarts import Restart
    from headgate.sessions.supervisor import Supervisor

__version__ = "0.1.0"

_HOMES = {
    "Batch": "headgate.policy.policies",
    "Breaker": "headgate.policy.breaker",
    "Cache": "headgate.policy.freshness",
    "Congestion": "headgate.policy.congestion",
    "Event": "headgate.gate.events",
    "Gate": "headgate.gate.gate",
    "Interval": "headgate.policy.interval",
    "Permit": "headgate.gate.permit",
    "Policies": "headgate.policy.policies",
    "Poller": "headgate.gate.polling",
    "Priority": "headgate.rules.call",
    "Restart": "headgate.sessions.restarts",
    "Retry": "headgate.policy.retry",
    "Supervisor": "headgate.sessions.supervisor",
    "gather_bounded": "headgate.gate.gathering",
    "map_bounded": "headgate.gate.gathering",
    "priority": "headgate.gate.priorities",
}
__all__ = [
    "Batch",
    "Blocked",
    "Breaker",
    "BreakerOpen",
    "Cache",
    "CallFailed",
    "CannotFit",
    "Congestion",
    "DeadlineExceeded",
    "Event",
    "Gate",
    "HeadgateError",
    "Interval",
    "OutcomeUnknown",
    "Permit",
    "Policies",
    "Poller",
    "Priority",
    "Rejected",
    "Restart",
    "RetriesExhausted",
    "Retry",
    "RuleError",
    "SignatureWouldExpire",
    "StoreError",
    "StoreUnavailable",
    "StoreVersionError",
    "Supervisor",
    "UnknownProvider",
    "gather_bounded",
    "map_bounded",
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
