"""Pacing after refusals: all processes share it, so what one process learns of a limit applies to the others' next call.

The store keeps two rows beside the stated limits of a provider: the part of a limit that calls may use, and the number of
refusals in a row of a scope without a stated time to come back.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from ratekeeper.gate.context import Context
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Window
from ratekeeper.policy.pace import WHOLE, Pace, Paced, Streak
from ratekeeper.policy.retry import Retry
from ratekeeper.policy.shared import seconds
from ratekeeper.rules.call import Feedback, Plan
from ratekeeper.rules.times import real_period
from ratekeeper.stores.inforce import PACED, REFUSED

if TYPE_CHECKING:
    from ratekeeper.rules.provider import Provider

__all__ = ["Pacing"]

_SPREAD: Final = (1.0, 1.5)
"""Jitter of a guessed hold, unless the user has set another. A hold is never shorter than the last one."""
_KEPT: Final = 86_400 * SECOND
"""The pace of a ledger that nobody calls is kept for this long, ns."""
_KNOWN: Final = 4096
_GUESSED: Final = 0.85
"""A refusal cuts a guessed limit to this part: it is refused again and again, so each cut is smaller than usual."""


class Pacing:
    """Paces the ledgers of one gate."""

    def __init__(self, context: Context) -> None:
        self._store = context.store
        self._worker = context.worker
        self._events = context.events
        self._next: dict[str, float] = {}
        """By ledger key: the steady seconds before which the pace does not change."""
        retry = context.policies.retry
        self._own = retry if isinstance(retry, Retry) else None
        self._retry = self._own or Retry()
        self._refused: dict[str, tuple[Mapping[str, tuple[int, int]], frozenset[str]]] = {}
        """By namespace: the rows at the last check, and those among them that count refusals in a row."""

    def throttled(self, rules: Provider, plan: Plan, told: Feedback) -> None:
        """Use less of a limit after a refusal that the provider's own numbers do not explain."""
        for charge in _meant(rules, plan, told):
            work = functools.partial(self._cut, plan.provider, charge, _pace(rules, charge))
            self._worker.later(charge.key, work)

    def went_well(
        self, rules: Provider, plan: Plan, known: Mapping[str, tuple[int, int]], sent: int, *, waited: bool
    ) -> None:
        """Let paced limits grow after a success, and end the runs of refusals that began before the call was sent.

        Args:
            rules, plan: of the call.
            known: the rows beside the stated limits of its provider; not empty.
            sent: when the call was sent, steady ns.
            waited: whether the call waited for its permit. A guessed limit grows only while calls wait for it.
        """
        self._grow(rules, plan, known, waited)
        seen, rows = self._refused.get(plan.provider, (None, frozenset()))
        if seen is not known:
            rows = frozenset(row for row, (refusals, _) in known.items() if refusals and row.startswith(REFUSED))
            self._refused[plan.provider] = known, rows
        if not rows:
            return
        start, skew = len(plan.provider) + 1, sum(self._store.skew()) // 2
        scopes = {REFUSED + scope[start:] for scope in (*plan.scopes, *(charge.key for charge in plan.charges))}
        over = {row: (0, 0) for row in rows & scopes if known[row][1] <= sent + skew}
        if over:
            self._store.learn(plan.provider, over)

    def _grow(self, rules: Provider, plan: Plan, known: Mapping[str, tuple[int, int]], waited: bool) -> None:
        start = len(plan.provider) + 1
        for charge in plan.charges:
            part = known.get(PACED + charge.key[start:])
            if part is None or part[0] >= WHOLE or time.monotonic() < self._next.get(charge.key, 0.0):
                continue
            pace = _pace(rules, charge)
            if waited or not pace.guessed:
                if len(self._next) >= _KNOWN:
                    self._next = {key: at for key, at in self._next.items() if at > time.monotonic()}
                self._next[charge.key] = time.monotonic() + pace.step
                work = functools.partial(self._change, plan.provider, charge, pace.stepped)
                self._worker.later(charge.key, work)

    def longer(self, namespace: str, scope: str, least: int, sent: int, mono: int, *, filled: int = 0) -> int:
        """Return how long to hold a scope after a refusal without a stated end: longer each time in a row.

        Args:
            namespace: the provider's.
            scope: an owner, or the key of a ledger.
            least: the shortest hold, ns.
            sent, mono: when the refused call was sent, and now, steady ns.
            filled: ns for which the ledger has no room anyway; that suffices for the first refusal in a row.

        Returns:
            ns.
        """

        def length(nth: int) -> int:
            low, high = (1.0, 1.0) if nth == 1 and filled else _SPREAD
            return int(self._retry.pause(nth, random.random(), spread=(low, high), least=least / SECOND) * SECOND)

        return max(self._in_a_row(namespace, scope, sent, mono, length, filled), least)

    def moment(self, namespace: str, scope: str, longest: int, sent: int, mono: int) -> int:
        """Return how long to hold a scope after trouble inside the provider, ns. Other arguments as for `longer`.

        It is an eighth of `longest` (ns) at first, and twice as long each time in a row. So an outage ends a flood, while a
        single failure hardly holds other calls. It is never longer than the pause before the user's own retries.
        """
        if self._own is not None:
            longest = min(longest, int(min(self._own.backoff or (self._own.first,)) * SECOND))
        return self._in_a_row(namespace, scope, sent, mono, lambda nth: longest >> max(0, 4 - nth))

    def _in_a_row(
        self, namespace: str, scope: str, sent: int, mono: int, length_of: Callable[[int], int], filled: int = 0
    ) -> int:
        """Count a refusal of a scope, and return the length (ns) that `length_of` gives to the nth in a row."""
        skew = sum(self._store.skew()) // 2
        row = REFUSED + scope[len(namespace) + 1 :]
        before = Streak(*self._store.learned.get(namespace, {}).get(row, (0, 0)))
        nth = before.nth(sent + skew, mono + skew)
        length = length_of(nth)
        if nth > before.refusals or not before.covers(sent + skew, mono + skew):
            self._store.learn(namespace, {row: (nth, mono + skew + max(length, filled))})
        return length

    def _cut(self, namespace: str, charge: Charge, pace: Pace) -> None:
        paced = self._change(namespace, charge, pace.refused)
        if paced is not None:
            name = charge.key + real_period(charge.key, charge.limit.period)
            self._events.say(
                "paced",
                f"{name} was refused although there was room: {paced.part / 10:g} % of it is used for now",
                namespace, limit=charge.key, part=paced.part / WHOLE,
            )  # fmt: skip

    def _change(self, namespace: str, charge: Charge, after: Callable[[Paced, float], Paced]) -> Paced | None:
        """Change the pace of a ledger and the row that all processes read; return the pace if it is new."""

        def change(old: Paced | None, now: Instant) -> tuple[Paced, tuple[Paced, bool]]:
            before = old or Paced()
            paced = after(before, seconds(now))
            return paced, (paced, paced._replace(stepped=0.0) != before._replace(stepped=0.0))

        def work() -> tuple[Paced, bool]:
            paced, new = self._store.update(f"pace:{charge.key}", Paced, change, _KEPT)
            row = PACED + charge.key[len(namespace) + 1 :]
            # A lost record (an emptied server) leaves the row: write it again, as the whole limit.
            if new or self._store.learned.get(namespace, {}).get(row, (WHOLE,))[0] != paced.part:
                self._store.learn(namespace, {row: (paced.part, SECOND)})
            return paced, new

        paced, new = self._store.transact_again(work)
        return paced if new else None


def _meant(rules: Provider, plan: Plan, told: Feedback) -> Iterator[Charge]:
    """Yield the charges whose limits a refusal puts in doubt."""
    for charge in plan.charges:
        if "~" in charge.limit.name or charge.limit.place or (told.full and charge.key not in told.full):
            continue
        guessed = rules.file.limits[charge.limit.name].adaptive
        ledger = charge.key[len(plan.provider) + 1 :]
        stated = charge.limit.name in told.learned or ledger in told.learned
        # A used-counter at the limit explains the refusal: other programs spend, and the ledger has counted them already.
        explained = stated or told.used.get(charge.key, 0) >= charge.limit.usable
        if guessed or not (explained or charge.limit.window is Window.SLOTS):
            yield charge


def _pace(rules: Provider, charge: Charge) -> Pace:
    period = max(charge.limit.period / SECOND, 1.0)
    rule = rules.file.limits.get(charge.limit.name)
    if rule is not None and rule.adaptive:
        return Pace(period, beta=_GUESSED, guessed=True)
    return Pace(period)
