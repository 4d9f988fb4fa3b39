"""Ratekeeper: one gate for outbound API traffic; every program that shares an address or a key shares one exact budget.

The names here are loaded on first use, so that ``import ratekeeper`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratekeeper.errors import (
        Blocked,
        BreakerOpen,
        CallFailed,
        CannotFit,
        DeadlineExceeded,
        OutcomeUnknown,
        RatekeeperError,
        Rejected,
        RetriesExhausted,
        RuleError,
        SignatureWouldExpire,
        StoreError,
        StoreUnavailable,
        StoreVersionError,
        UnknownProvider,
    )
    from ratekeeper.gate.events import Event
    from ratekeeper.gate.gate import Gate
    from ratekeeper.gate.gathering import gather_bounded, map_bounded
    from ratekeeper.gate.permit import Permit
    from ratekeeper.gate.polling import Poller
    from ratekeeper.gate.priorities import priority
    from ratekeeper.policy.breaker import Breaker
    from ratekeeper.policy.freshness import Cache
    from ratekeeper.policy.interval import Congestion, Interval
    from ratekeeper.policy.policies import Batch, Policies
    from ratekeeper.policy.retry import Retry
    from ratekeeper.rules.call import Priority
    from ratekeeper.sessions.restarts import Restart
    from ratekeeper.sessions.supervisor import Supervisor

__version__ = "0.1.0"

_HOMES = {
    "Batch": "ratekeeper.policy.policies",
    "Breaker": "ratekeeper.policy.breaker",
    "Cache": "ratekeeper.policy.freshness",
    "Congestion": "ratekeeper.policy.interval",
    "Event": "ratekeeper.gate.events",
    "Gate": "ratekeeper.gate.gate",
    "Interval": "ratekeeper.policy.interval",
    "Permit": "ratekeeper.gate.permit",
    "Policies": "ratekeeper.policy.policies",
    "Poller": "ratekeeper.gate.polling",
    "Priority": "ratekeeper.rules.call",
    "Restart": "ratekeeper.sessions.restarts",
    "Retry": "ratekeeper.policy.retry",
    "Supervisor": "ratekeeper.sessions.supervisor",
    "gather_bounded": "ratekeeper.gate.gathering",
    "map_bounded": "ratekeeper.gate.gathering",
    "priority": "ratekeeper.gate.priorities",
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
    "Interval",
    "OutcomeUnknown",
    "Permit",
    "Policies",
    "Poller",
    "Priority",
    "RatekeeperError",
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
        raise AttributeError(f"module 'ratekeeper' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "ratekeeper.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
