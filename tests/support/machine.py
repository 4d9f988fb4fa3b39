"""One machine of several that change what lies beside the ledgers, all at once. Run by `tests/conformance/test_notes.py`.

Run as ``python machine.py STORE HOME RULES TIMES``: says ``ready``, waits for a line, works, and says what it won.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

from ratekeeper import Gate
from ratekeeper.gate.policies.breaker import Breakers
from ratekeeper.gate.steps import drive
from ratekeeper.gate.waits import Waits
from ratekeeper.ledger.limit import SECOND
from ratekeeper.policy.breaker import Breaker
from ratekeeper.policy.pace import Pace
from ratekeeper.policy.policies import Policies
from ratekeeper.policy.shared import Claim, claimed
from ratekeeper.rules.call import Outcome, Request
from ratekeeper.sessions.dials import Dialler
from ratekeeper.sessions.liveness import Liveness
from ratekeeper.sessions.transports import Websockets
from ratekeeper.stores.base import Store

__all__ = ["PLACE", "SLOW", "made", "work"]

PLACE: Final = "testland/egress:a"
SLOW: Final = Pace(0.0, beta=0.999, guessed=True)
"""Cuts a whole limit by one thousandth each time, as long as it is above the half."""


def made(store: str | Store, home: Path, rules: Path) -> Gate:
    """A gate whose breaker counts, and does not open."""
    breaker = Breaker(failures=1 << 30, span=1e9)
    return Gate(store, home=home, rules=[rules], hosts={}, learn=False, policies=Policies(breaker=breaker))


def work(gate: Gate, times: int) -> list[str]:
    """Count everything so often, and claim as many tasks; returns those that are ours."""
    plan = gate.plan("testland", Request("GET", "/"))
    assert gate.pipeline is not None
    (breakers,) = [policy for policy in gate.pipeline._policies if isinstance(policy, Breakers)]
    dialler = Dialler(gate, "wss://testland.invalid/", {}, Websockets(), Liveness(), None)
    waits = Waits(gate.store, gate.worker)
    ours = []
    for nth in range(times):
        drive(breakers._note(plan, Outcome.FAILED, "", is_async=False))
        gate.egress.health.counted(PLACE)
        gate.settling._pacing._change("testland", plan.charges[0], SLOW.refused)
        asyncio.run(dialler.failed(good=False))
        waits.add(2, 1)
        waits.share()
        until = gate.store.present().mono + 600 * SECOND
        got = gate.store.update(f"task:{nth}", Claim, lambda old, now, until=until: claimed(old, now, until))
        ours += [f"task:{nth}"] if isinstance(got, Claim) else []
    return ours


def main() -> None:
    """One machine."""
    store, home, rules, times = sys.argv[1:]
    with made(store, Path(home), Path(rules)) as gate:
        print("ready", flush=True)
        sys.stdin.readline()
        won = work(gate, int(times))
    print(json.dumps(won), flush=True)


if __name__ == "__main__":
    main()
