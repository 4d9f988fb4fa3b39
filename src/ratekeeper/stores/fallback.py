"""The fallback store: each process goes on with a share of every limit while the shared store is unavailable.

The fallback never grants permits without a limit. While the store is away, each process uses the room that was left, divided
by the processes last seen. Later it uses its part of each limit. It keeps both in ledgers of its own (`Share`) and reports
the outage. It leaves a mark, so that processes that still use the store leave it that part. When the store is back, the
process writes into it what was spent and what is in flight, and settles the calls answered meanwhile.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.base import SharedStore, Store
from ratekeeper.stores.blocks import PAUSE, BlockState, PauseRecord
from ratekeeper.stores.encoding import Change
from ratekeeper.stores.faults import ours
from ratekeeper.stores.records import (
    AS_RESERVED,
    LEASE,
    NOTHING,
    Answered,
    Ask,
    Decision,
    Grant,
    Settlement,
    Snapshot,
    Units,
)  # fmt: skip
from ratekeeper.stores.share import PartStore, Share
from ratekeeper.stores.threads import Helper

__all__ = ["FallbackStore"]

N = TypeVar("N")
T = TypeVar("T")
P = ParamSpec("P")

_LOG: Final = logging.getLogger("ratekeeper")
_RETRY: Final = SECOND // 20
"""How often a process checks whether the store is back, ns."""
_RETRY_LATE: Final = 5 * SECOND
"""The longest such interval, for a store that is lost again and again, ns."""
_FLAPS: Final = 10 * SECOND
"""A store that is lost this soon after its return counts as lost again, ns."""
_REMEMBERED: Final = 100_000
"""Most postponed answers kept for the store while it is away; further ones are dropped (their windows are over)."""
_CHANGES: Final = 1_000
"""Most changes of one note kept for the store."""
_PASSING: Final = 120 * SECOND
"""A note with a lifetime up to this is not written to a store that was away, ns."""
_PASSED_ON: Final = ("skew", "worker", "responses", "join", "leave", "wake", "rouse", "alive")
"""Methods of the shared store that still work, or do nothing, while it is unavailable."""


def _shared(
    instead: Callable[Concatenate[FallbackStore, Share, P], T],
) -> Callable[Concatenate[FallbackStore, P], T]:
    """Wrap a verb of the shared store.

    Args:
        instead: the verb's behavior while the shared store is unavailable, given the share; the caller holds the lock. Its
            name is the verb's, perhaps after a ``_``.
    """
    name = instead.__name__.removeprefix("_")

    @functools.wraps(instead)
    def verb(self: FallbackStore, /, *values: P.args, **options: P.kwargs) -> T:
        share = self._share
        if share is None or (share := self._tried_again(share)) is None:
            try:
                done: T = getattr(self.inner, name)(*values, **options)
                return done
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                share = self._lost(error)
        with self._lock:
            return instead(self, share, *values, **options)

    return verb


class FallbackStore(Store):
    """A shared store that never fails its caller: on an outage it uses a share of every limit, and it returns to the store by
    itself.

    Args:
        inner: the shared store.
        say: called with (``"store lost"`` or ``"store back"``, one sentence for people).
    """

    def __init__(self, inner: SharedStore, say: Callable[[str, str], None]) -> None:
        self.inner = inner
        self.together = inner.together
        self.blocks = inner.blocks
        for name in _PASSED_ON:
            setattr(self, name, getattr(inner, name))
        inner.back = self._reattach
        self._say = say
        self._tried = self._returned = 0
        self._pause = _RETRY
        self._forget()

    def _forget(self) -> None:
        """Begin with nothing spent offline; also in a forked child."""
        self._lock = threading.RLock()
        self._share: Share | None = None
        self._local: dict[int, Grant] = {}
        """Permits of the share that are in flight."""
        self._changes: dict[str, tuple[Any, list[Change[Any, Any]], int]] = {}
        """Changes made to notes while offline, by topic: type, changes, how long the note is kept."""
        self._replay: list[Callable[[], object]] = []
        """Verbs postponed until the shared store is back."""
        self.degraded = ""
        """Why the shared store is not in use now, or empty."""

    @property
    def heard(self) -> Callable[[str, Answered], None]:
        return self.inner.heard

    @heard.setter
    def heard(self, handler: Callable[[str, Answered], None]) -> None:
        self.inner.heard = handler

    @property
    def died(self) -> Callable[[str, BaseException], object]:
        return self.inner.died

    @died.setter
    def died(self, handler: Callable[[str, BaseException], object]) -> None:
        self.inner.died = handler

    @property
    def handed(self) -> dict[int, Grant | None]:  # type: ignore[override]
        return self.inner.handed

    @property
    def generation(self) -> int:  # type: ignore[override]
        return self.inner.generation

    @property
    def learned(self) -> dict[str, dict[str, tuple[int, int]]]:  # type: ignore[override]
        return self.inner.learned

    # -- offline, and back -----------------------------------------------------------------------------------------

    def _lost(self, error: Exception) -> Share:
        """Switch to the share after an error of the store or of our code in it. Re-raise any other error."""
        if not isinstance(error, StoreError) and not ours(error):
            raise error
        with self._lock:
            news = self._share is None
            if self._share is None:
                if not isinstance(error, StoreError):
                    _LOG.warning("ratekeeper: the store could not be used", exc_info=error)
                    error = StoreUnavailable(f"{type(error).__name__} in the store: {error}")
                mono = time.monotonic_ns()
                self._pause = min(2 * self._pause, _RETRY_LATE) if mono - self._returned < _FLAPS else _RETRY
                self._share = Share(self.inner)
                self.degraded = str(error)
                self._tried = time.monotonic_ns()
            share = self._share
        if news:  # the program's handlers run without the lock
            self._say(
                "store lost",
                f"{error}. Going on with a safe share: each limit divided by {share.processes}, "
                "the number of processes last seen.",
            )
        return share

    def _tried_again(self, share: Share) -> Share | None:
        """Return the share, or None if a retry was due and found the store back."""
        mono = time.monotonic_ns()
        if not self.inner.together:
            return self._reattach() if mono - self._tried >= self._pause else share
        if mono - self._tried >= max(self._pause, SECOND):  # a network round trip: not in this thread
            self._tried = mono
            Helper(self._reattach)
        return share

    def _reattach(self) -> Share | None:
        """Bring the store up to date and use it again; returns the share if that is not possible yet. A store that answers
        again calls this before its first heartbeat, because it would take anything reported later for another program's
        use."""
        with self._lock:
            share = self._share
            if share is None:
                return None
            self._tried = time.monotonic_ns()
            try:
                share.processes = max(1, self.inner.alive())
                self.inner.recall()
                self.inner.reattach(share.mark, share.processes, self._local.values(), self._replay)
            except StoreError:
                return share
            except Exception as error:
                if not ours(error):
                    raise
                _LOG.warning("ratekeeper: what was spent meanwhile could not all be written", exc_info=True)
                self._replay.clear()  # the leases end by themselves
                return share
            self._returned = self._tried
            self._share, self.degraded = None, ""
            self._local.clear()
            self._replay.clear()
        self._say("store back", "The shared store answers again; what was spent meanwhile is written into it.")
        if self._changes and self.inner.together:
            Helper(self._bring)  # each change takes a round trip
        else:
            self._bring()
        return None

    def _bring(self) -> None:
        """Apply to the store the changes made to notes while offline, each in one step."""
        while self._share is None:
            with self._lock:
                if not self._changes:
                    return
                topic, (kind, changes, keep) = self._changes.popitem()
            self.update(topic, kind, _one_after_the_other(changes), keep)

    def _later(self, verb: Callable[..., object], *values: Any) -> None:
        """Postpone a verb until the store is back."""
        if len(self._replay) < _REMEMBERED:
            self._replay.append(functools.partial(verb, *values))

    # -- the verbs: what each does while the shared store cannot be used ---------------------------------------------

    @_shared
    def reserve(self, share: Share, ask: Ask, now: Instant) -> Decision:
        got = share.reserve(ask, now)
        if isinstance(got, Grant):
            self._local[got.id] = got
        return got

    @_shared
    def reserve_all(
        self, share: Share, asks: Sequence[Ask], now: Callable[[str], Instant]
    ) -> list[Sequence[Grant] | Refusal]:
        return Store.reserve_all(self, asks, now)

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant) -> Grant | None:
        return self.inner.draw(charges, who, now) if self._share is None else None

    @_shared
    def settle(self, share: Share, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        if self._local.pop(grant.id, None) is None and not share.holds(grant):  # it is a permit of the shared store
            self._later(self.inner.settle, grant, now, told)
            return Answered()
        if told.sent:
            self._later(self.inner.spent, grant, told.actual, now)
        return share.settle(grant, now, told._replace(used=NOTHING) if told.used else told)

    @_shared
    def hold(self, share: Share, grant: Grant, until: int) -> bool:
        if share.holds(grant):
            return share.hold(grant, until)
        self._later(self.inner.hold, grant, until)
        return True

    @_shared
    def withdraw(
        self, share: Share, keys: Iterable[str], who: Who, now: Instant, missed: Units = NOTHING, left: Units = NOTHING
    ) -> None:
        """Do nothing: notes of waiting calls expire by themselves."""

    @_shared
    def learn(self, share: Share, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        self._later(self.inner.learn, namespace, limits)
        return False

    @_shared
    def doubt(self, share: Share, namespace: str, now: Instant) -> None:
        self._later(self.inner.doubt, namespace, now)

    def block(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        if kind == PAUSE:  # first on this machine, whose programs obey it whatever the shared store does
            self.inner.order(scope, length, reason)
        return self._block(scope, length, kind, reason, mono, wall)

    @_shared
    def _block(
        self, share: Share, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int
    ) -> BlockState:
        ordered = self.blocks.kept.get((scope, kind))
        if isinstance(ordered, PauseRecord):
            return ordered  # whichever process of this machine reaches the store hands it on
        self._later(self.inner.block, scope, length, kind, reason, mono, wall)
        state = self.inner.keep(scope, length, kind, reason, mono, wall)
        self.inner.publish()
        return state

    def deliver(self, record: PauseRecord) -> bool:
        """Write a record of this machine into the shared store, as `SharedStore.deliver`. A process that is offline first
        reports what it spent.

        Raises:
            StoreError: the store was not reached.
        """
        if self._share is not None and self._reattach() is not None:
            raise StoreUnavailable(self.degraded)
        return self.inner.deliver(record)

    def unblock(self, scope: str, kind: str = "") -> bool:
        paused = (scope, PAUSE) in self.blocks.kept
        if kind == PAUSE or (not kind and paused):
            self.inner.order(scope, None, "", resumed=True)
        gone = self._unblock(scope, kind)
        return gone or (paused and (scope, PAUSE) not in self.blocks.kept)

    @_shared
    def _unblock(self, share: Share, scope: str, kind: str = "") -> bool:
        ordered = () if self.inner.pauses is None else self.inner.pauses.to_hand_on()
        if kind != PAUSE or not any(record.scope == scope and record.resumed for record in ordered):
            self._later(self.inner.unblock, scope, kind)
        return False

    @_shared
    def update(self, share: Share, topic: str, kind: type[N], change: Change[N, T], keep: int = 0) -> T:
        if not 0 < keep <= _PASSING:  # the shared store gets it on return
            changes = self._changes.setdefault(topic, (kind, [], keep))[1]
            if len(changes) < _CHANGES:
                changes.append(change)
        return share.update(topic, kind, change, keep)

    @_shared
    def get(self, share: Share, topic: str, kind: type[N]) -> N | None:
        return share.get(topic, kind)

    @_shared
    def read(self, share: Share, now: Callable[[str], Instant]) -> Snapshot:
        found = share.read(now)
        found.degraded = self.degraded
        return found

    def transact(self, work: Callable[[], T]) -> T:
        """Run `work` on whichever store is in use. If the shared store cannot begin, use the share. If it cannot write,
        switch to the share and raise the error."""
        begun = False

        def begin() -> T:
            nonlocal begun
            begun = True
            return work()

        share = self._share
        if share is None or self._tried_again(share) is None:
            try:
                return self.inner.transact(begin)
            except Exception as error:
                if begun and not isinstance(error, StoreError):
                    raise
                self._lost(error)
                if begun:
                    raise
        return work()

    # -- for others ------------------------------------------------------------------------------------------------

    def spare(self) -> PartStore:
        """Return a share beside the store, for calls that cannot ask the store for another reason."""
        return Share(self.inner, LEASE)

    def after_fork(self) -> None:
        self._forget()
        self.inner.after_fork()

    def close(self) -> None:
        if self._share is not None:
            self._reattach()
        self.inner.close()


def _one_after_the_other(changes: Sequence[Change[N, Any]]) -> Change[N, None]:
    def change(note: N | None, now: Instant) -> tuple[N | None, None]:
        for each in changes:
            note, _ = each(note, now)
        return note, None

    return change
