"""The safe share: what a process goes on with without the shared store (long because it passes on every verb of one).

Never an open tap. While the store is away each process keeps to the room that was left divided by the processes last
seen, then to its part of each limit, in ledgers of its own; and says so. It leaves a mark, so that whoever uses the store
before it leaves it that part. When it is back, what was spent and what is in flight is written into the store, and
answers that came meanwhile are settled.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.stores.base import SharedStore, Store
from ratekeeper.stores.blocks import Blocks, BlockState
from ratekeeper.stores.faults import ours
from ratekeeper.stores.helper import Helper
from ratekeeper.stores.notes import Change
from ratekeeper.stores.records import (
    AS_RESERVED,
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
from ratekeeper.stores.worker import Worker

if TYPE_CHECKING:
    from ratekeeper.stores.shelf import Shelf

__all__ = ["SafeStore"]

N = TypeVar("N")
T = TypeVar("T")

_LOG: Final = logging.getLogger("ratekeeper")
_RETRY: Final = SECOND // 20
"""How often to see whether the store is back, ns."""
_RETRY_LATE: Final = 5 * SECOND
"""The same for one that is lost again and again, at most, ns."""
_FLAPS: Final = 10 * SECOND
"""A store that is lost so soon after its return is lost again, ns."""
_REMEMBERED: Final = 100_000
"""So many answers are remembered for the store while it is away; more are forgotten (their windows are over)."""
_CHANGES: Final = 1_000
"""So many changes of one note are remembered for it."""
_PASSING: Final = 120 * SECOND
"""A note that is of use for no longer than so is not brought to a store that was away, ns."""


class SafeStore(Store):
    """A shared store that never fails its caller: it goes to the safe share instead, and comes back by itself.

    Args:
        inner: the shared store.
        say: called with (``"store lost"`` or ``"store back"``, one sentence for people).
    """

    def __init__(self, inner: SharedStore, say: Callable[[str, str], None]) -> None:
        self.inner = inner
        inner.back = self._come_back
        self._say = say
        self._lock = threading.RLock()
        self._share_now: Share | None = None
        self._tried = self._returned = 0
        self._pause = _RETRY
        self._local: dict[int, Grant] = {}
        self._changes: dict[str, tuple[Any, list[Change[Any, Any]], int]] = {}
        """What became of notes meanwhile, by topic: type, changes, how long it is kept."""
        self._replay: list[Callable[[], object]] = []
        self.degraded = ""
        """Why the shared store is not used now, or empty."""

    @property
    def together(self) -> bool:  # type: ignore[override]
        return self.inner.together

    @property
    def heard(self) -> Callable[[str, Answered], None]:
        return self.inner.heard

    @heard.setter
    def heard(self, handler: Callable[[str, Answered], None]) -> None:
        self.inner.heard = handler

    @property
    def generation(self) -> int:  # type: ignore[override]
        return self.inner.generation

    @property
    def learned(self) -> dict[str, dict[str, tuple[int, int]]]:  # type: ignore[override]
        return self.inner.learned

    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return self.inner.blocks

    # -- going away and coming back --------------------------------------------------------------------------------

    def _lost(self, error: Exception) -> Share:
        """Go to the safe share because of an error of the store, or of ours in it. Anybody else's is raised."""
        if not isinstance(error, StoreError) and not ours(error):
            raise error
        with self._lock:
            if self._share_now is None:
                if not isinstance(error, StoreError):
                    _LOG.warning("ratekeeper: the store could not be used", exc_info=error)
                    error = StoreUnavailable(f"{type(error).__name__} in the store: {error}")
                mono = time.monotonic_ns()
                self._pause = min(2 * self._pause, _RETRY_LATE) if mono - self._returned < _FLAPS else _RETRY
                share = self._share_now = Share(self.inner)
                self.degraded = str(error)
                self._tried = time.monotonic_ns()
                self._say(
                    "store lost",
                    f"{error}. Going on with a safe share: each limit divided by {share.processes}, "
                    "the number of processes last seen.",
                )
            return self._share_now

    def _share_or_inner(self) -> Share | None:
        """The safe share if it is in force. Now and then tries the store again, and brings it up to date."""
        share = self._share_now
        if share is None:
            return None
        mono = time.monotonic_ns()
        if not self.inner.together:
            return self._come_back() if mono - self._tried >= self._pause else share
        if mono - self._tried >= max(self._pause, SECOND):  # a trip over the network: not in this thread
            self._tried = mono
            Helper(self._come_back)
        return share

    def _come_back(self) -> Share | None:
        """Bring the store up to date and use it again; returns the safe share if that cannot be done yet. A store that is
        there again calls this before its first sign of life: what is not told by then seems to be somebody else's."""
        with self._lock:
            share = self._share_now
            if share is None:
                return None
            self._tried = time.monotonic_ns()
            try:
                share.processes = max(1, self.inner.alive())
                self.inner.recall()
                self.inner.come_back(share.mark, share.processes, self._local.values(), self._replay)
            except StoreError:
                return share
            except Exception as error:
                if not ours(error):
                    raise
                _LOG.warning("ratekeeper: what was spent meanwhile could not all be written", exc_info=True)
                self._replay.clear()  # the leases end by themselves
                return share
            self._returned = self._tried
            self._share_now, self.degraded = None, ""
            self._local.clear()
            self._replay.clear()
        self._say("store back", "The shared store answers again; what was spent meanwhile is written into it.")
        if self._changes and self.inner.together:
            Helper(self._bring)  # it takes a trip for each
        else:
            self._bring()
        return None

    def _bring(self) -> None:
        """Change the notes of the store as those of the safe share were changed meanwhile: each in one step."""
        while self._share_now is None:
            with self._lock:
                if not self._changes:
                    return
                topic, (kind, changes, keep) = self._changes.popitem()
            self.update(topic, kind, _one_after_the_other(changes), keep)

    def _later(self, verb: Callable[[], object]) -> Answered:
        if len(self._replay) < _REMEMBERED:
            self._replay.append(verb)
        return Answered()

    # -- the verbs -------------------------------------------------------------------------------------------------

    def transact(self, work: Callable[[], T]) -> T:
        """Of whichever store is in force. One that cannot begin goes on with the safe share; one that cannot be written leads
        to it, with the error."""
        begun = False

        def begin() -> T:
            nonlocal begun
            begun = True
            return work()

        if self._share_or_inner() is None:
            try:
                return self.inner.transact(begin)
            except Exception as error:
                if begun and not isinstance(error, StoreError):
                    raise
                self._lost(error)
                if begun:
                    raise
        return work()

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant) -> Grant | None:
        return self.inner.draw(charges, who, now) if self._share_now is None else None

    def reserve_all(self, asks: Sequence[Ask], now: Callable[[str], Instant]) -> list[Sequence[Grant] | Refusal]:
        if self._share_or_inner() is None:
            try:
                return self.inner.reserve_all(asks, now)
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                self._lost(error)
        return super().reserve_all(asks, now)

    def reserve(self, ask: Ask, now: Instant) -> Decision:
        share = self._share_or_inner()
        if share is None:
            try:
                return self.inner.reserve(ask, now)
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                share = self._lost(error)
        with self._lock:
            got = share.reserve(ask, now)
            if isinstance(got, Grant):
                self._local[got.id] = got
            return got

    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        share = self._share_or_inner()
        if share is None:
            try:
                return self.inner.settle(grant, now, told)
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                share = self._lost(error)
        with self._lock:
            if self._local.pop(grant.id, None) is None:
                return self._later(lambda: self.inner.settle(grant, now, told))
            if told.sent:
                self._later(lambda: self.inner.spent(grant, told.actual, now))
            return share.settle(grant, now, told._replace(used=NOTHING) if told.used else told)

    def hold(self, grant: Grant, until: int) -> bool:
        share = self._share_or_inner()
        if share is None:
            try:
                return self.inner.hold(grant, until)
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                share = self._lost(error)
        with self._lock:
            if grant.id in self._local:
                return share.hold(grant, until)
            self._later(lambda: self.inner.hold(grant, until))
            return True

    def withdraw(
        self, keys: Iterable[str], who: Who, now: Instant, missed: Units = NOTHING, left: Units = NOTHING
    ) -> None:
        if self._share_or_inner() is None:
            self._try(lambda: self.inner.withdraw(keys, who, now, missed, left))

    def learn(self, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        return bool(self._try(lambda: self.inner.learn(namespace, limits)))

    def doubt(self, namespace: str, now: Instant) -> None:
        self._try(lambda: self.inner.doubt(namespace, now))

    def block(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        state = self._try(lambda: self.inner.block(scope, length, kind, reason, mono, wall))
        if isinstance(state, BlockState):
            return state
        state = self.blocks.add(scope, length, kind, reason, mono, wall)
        self.inner.publish()
        return state

    def unblock(self, scope: str, kind: str = "") -> bool:
        return bool(self._try(lambda: self.inner.unblock(scope, kind)))

    def update(self, topic: str, kind: type[N], change: Change[N, T], keep: int = 0) -> T:
        """Of whichever store is in force; the shared store has what was changed meanwhile when it is back."""
        share = self._share_or_inner()
        if share is None:
            try:
                return self.inner.update(topic, kind, change, keep)
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                share = self._lost(error)
        with self._lock:
            if not 0 < keep <= _PASSING:
                changes = self._changes.setdefault(topic, (kind, [], keep))[1]
                if len(changes) < _CHANGES:
                    changes.append(change)
            return share.update(topic, kind, change, keep)

    def get(self, topic: str, kind: type[N]) -> N | None:
        share = self._share_or_inner()
        if share is None:
            try:
                return self.inner.get(topic, kind)
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                share = self._lost(error)
        return share.get(topic, kind)

    def skew(self) -> tuple[int, int]:
        return self.inner.skew()

    def _try(self, verb: Callable[[], object]) -> object:
        """Run a verb on the shared store, or remember it for when it is back (then None)."""
        if self._share_or_inner() is None:
            try:
                return verb()
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                self._lost(error)
        with self._lock:
            self._later(verb)
        return None

    # -- passed on -------------------------------------------------------------------------------------------------

    def worker(self) -> Worker:
        return self.inner.worker()

    def shelf(self, home: Path, most_bytes: int) -> Shelf:
        return self.inner.shelf(home, most_bytes)

    def spare(self) -> PartStore:
        """A safe share beside the store, for calls that something else than the store keeps from being asked there."""
        return Share(self.inner)

    def new_id(self) -> int:
        return self.inner.new_id()

    def join(self, member: int, name: str) -> socket.socket | None:
        return self.inner.join(member, name)

    def leave(self, member: int) -> None:
        self.inner.leave(member)

    def wake(self, members: Iterable[int]) -> None:
        self.inner.wake(members)

    def rouse(self, member: int) -> None:
        self.inner.rouse(member)

    def after_fork(self) -> None:
        self._lock = threading.RLock()
        self._share_now, self.degraded = None, ""
        self._local, self._replay, self._changes = {}, [], {}
        self.inner.after_fork()

    def alive(self) -> int:
        return self.inner.alive()

    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        share = self._share_or_inner()
        if share is None:
            try:
                return self.inner.read(now)
            except Exception as error:  # noqa: BLE001 - raised there if it is not ours
                share = self._lost(error)
        found = share.read(now)
        found.degraded = self.degraded
        return found

    def close(self) -> None:
        if self._share_now is not None:
            self._come_back()
        self.inner.close()


def _one_after_the_other(changes: Sequence[Change[N, Any]]) -> Change[N, None]:
    def change(note: N | None, now: Instant) -> tuple[N | None, None]:
        for each in changes:
            note, _ = each(note, now)
        return note, None

    return change
