"""A store keeps ledgers, permits, blocks and notes. Long, because all that every store must do stands in one place.

Each of its verbs is one atomic step, whatever holds the data.
"""

from __future__ import annotations

import socket
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ratekeeper.errors import StoreError, StoreUnavailable
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.policy.shared import Claim, claimed, renewed
from ratekeeper.stores.blocks import Blocks, BlockState, PauseRecord
from ratekeeper.stores.encoding import Change
from ratekeeper.stores.records import (
    AS_RESERVED,
    NOTHING,
    UNSENT,
    Answered,
    Ask,
    Decision,
    Grant,
    Settlement,
    Snapshot,
    Units,
)  # fmt: skip
from ratekeeper.stores.threads import log_death
from ratekeeper.stores.worker import Worker

if TYPE_CHECKING:
    from ratekeeper.stores.pauses import Pauses
    from ratekeeper.stores.responses import ResponseStorage

__all__ = ["SharedStore", "Store"]

N = TypeVar("N")
T = TypeVar("T")


class Store(ABC):
    """A store keeps the ledgers. All methods are thread-safe. No method waits for units; it waits, shortly, only for the
    store."""

    together: bool = False
    """Whether the store grants permits to many calls in one step, through `reserve_all` and `draw`. If so, `reserve` and
    `reserve_all` may block their thread; `draw` and every verb that ends a permit return at once, and the store reports
    their effects later through `heard`."""

    blocks: Blocks
    learned: dict[str, dict[str, tuple[int, int]]]
    generation: int
    """The generation: it grows whenever any process changes `blocks` or `learned`."""

    def __init__(self, boot: str = "") -> None:
        self.blocks = Blocks(boot)
        self.learned = {}
        self.generation = 0
        self.handed: dict[int, Grant | None] = {}
        """The newest permit that each thread took, by the thread's number. An exception of a signal handler may strike before
        the caller has it, and then the caller finds it here."""
        self.died: Callable[[str, BaseException], object] = log_death
        """The store calls this when one of its helper threads failed, see `Helper`."""
        self.heard: Callable[[str, Answered], None] = lambda namespace, answered: None
        """The store calls this with the effects of a verb that had already returned (`together` only)."""

    # -- permits ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def reserve(self, ask: Ask, now: Instant) -> Decision:
        """Reserve every charge, or none.

        Args:
            ask: the request.
            now: the instant, on the provider's clock.
        """

    def reserve_all(self, asks: Sequence[Ask], now: Callable[[str], Instant]) -> list[Sequence[Grant] | Refusal]:
        """Reserve permits for several calls together, in as few round trips as possible.

        Args:
            asks: the requests; each asks for up to `Ask.most` permits of one plan.
            now: returns the present instant on the clock of a namespace.

        Returns:
            For each request: its permits (at least one, at most `Ask.most`), or the refusal of the first.
        """
        found: list[Sequence[Grant] | Refusal] = []
        for ask in asks:
            granted: list[Grant] = []
            while len(granted) < ask.most:
                got = self.reserve(ask, now(ask.namespace))
                if isinstance(got, Refusal):
                    found.append(granted or got)
                    break
                granted.append(got)
            else:
                found.append(granted)
        return found

    def draw(self, charges: tuple[Charge, ...], who: Who, now: Instant) -> Grant | None:
        """Return a permit from a batch that this process already holds, without asking the store; None if there is none."""
        return None

    @abstractmethod
    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        """The answer arrived: count the units in flight as spent.

        Args:
            grant: from `reserve`.
            now: the instant of the answer.
            told: what the answer states about the cost.
        """

    def refund(self, grant: Grant, now: Instant) -> Answered:
        """The request was certainly never sent: give all units back."""
        return self.settle(grant, now, UNSENT)

    @abstractmethod
    def hold(self, grant: Grant, until: int) -> bool:
        """Move the end of a permit's lease to `until` (steady ns): later for a stream that goes on, sooner for a request
        whose answer will not come. False if the lease had already ended."""

    @abstractmethod
    def withdraw(
        self, keys: Iterable[str], who: Who, now: Instant, missed: Units = NOTHING, left: Units = NOTHING
    ) -> None:
        """Remove the waiting notes of calls that no longer wait.

        Args:
            keys: of their ledgers.
            who: (member, class).
            now: the instant.
            missed: units by key of calls that gave up. They count as demand of the class, like units taken.
            left: units by key for which other calls of this class and process still wait.
        """

    def transact(self, work: Callable[[], T]) -> T:
        """Run `work`, and every verb in it, as one transaction if the store has transactions. A nested call joins the outer
        one.

        This takes a function and is no context manager, because a signal handler may raise an exception between any two of
        our instructions. Only a `with` on one of the interpreter's own locks is sure to release it.
        """
        return work()

    def transact_again(self, work: Callable[[], T]) -> T:
        """Run `work` as `transact` does, and once more, on the fallback, if the store is lost while it writes. For work that
        may run twice."""
        try:
            return self.transact(work)
        except StoreError:
            return self.transact(work)

    # -- observe ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def learn(self, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        """Store the limits that the provider states: name -> (capacity in units, period in ns). True if any of them is
        new."""

    @abstractmethod
    def doubt(self, namespace: str, now: Instant) -> None:
        """Our estimate of the provider's clock was wrong: count the units spent in its windows in the next windows too."""

    # -- block -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def block(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        """Block a scope for `length` ns (None: until `unblock`). Every process obeys from its next decision on.

        A shorter block never shortens an older one of the same kind.
        """

    @abstractmethod
    def unblock(self, scope: str, kind: str = "") -> bool:
        """Remove the blocks of a scope (of one kind, or all). True if there were any."""

    # -- notes and members -----------------------------------------------------------------------------------------

    @abstractmethod
    def update(self, topic: str, kind: type[N], change: Change[N, T], keep: int = 0) -> T:
        """Change a note in one atomic step. Concurrent changes are never lost.

        Args:
            topic: its name.
            kind: its type, one that `msgspec` can decode. A value of another type counts as no note.
            change: see `Change`.
            keep: ns after which the store may forget the note; 0: never.

        Returns:
            The result of the `change` that was written.
        """

    @abstractmethod
    def get(self, topic: str, kind: type[N]) -> N | None:
        """Return the current note; None if there is none of that type."""

    def claim(self, topic: str, length: int) -> int:
        """Claim a task for `length` ns. Returns 0, or the steady ns until which another process holds the claim."""
        until = time.monotonic_ns() + length
        got = self.update(topic, Claim, lambda old, now: claimed(old, now, until), length)
        return 0 if isinstance(got, Claim) else got

    def renew(self, topic: str, length: int) -> None:
        """Extend the claim of this process to `length` ns from now, unless it has ended or was released."""
        until = time.monotonic_ns() + length
        self.update(topic, Claim, lambda old, now: renewed(old, now, until), length)

    def release(self, topic: str, length: int) -> None:
        """Release a task that this process claimed for `length` ns."""
        self.update(topic, Claim, lambda *_: (None, None), length)

    def skew(self) -> tuple[int, int]:
        """Return bounds of (the store's steady clock - this machine's), ns. Notes that machines share use the store's clock.
        Never waits: returns (0, 0) until the store was first reached."""
        return 0, 0

    def present(self) -> Instant:
        """Return the present: `mono` on this machine's steady clock, `lo` and `hi` as its bounds on the store's clock."""
        low, high = self.skew()
        mono = time.monotonic_ns()
        return Instant(mono, mono + low, mono + high)

    def worker(self) -> Worker:
        """Return a new worker. It changes notes without making its callers wait for a network."""
        return Worker()

    def reporter(self) -> Callable[[str, BaseException], None]:
        """Return a function that reports failed helper threads through `died`. It does not keep the store alive."""
        here = weakref.ref(self)

        def died(name: str, error: BaseException) -> None:
            store = here()
            (log_death if store is None else store.died)(name, error)

        return died

    def responses(self, home: Path, most_bytes: int) -> ResponseStorage:
        """Return the response storage that all users of this store share.

        Args:
            home: the state folder.
            most_bytes: size limit of all responses together.
        """
        from ratekeeper.stores.responses import MemoryResponses  # only response caches need it

        return MemoryResponses(most_bytes)

    @abstractmethod
    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        """Return the whole state, advanced to the present, without changing anything.

        Args:
            now: returns the present instant on the clock of a namespace.
        """

    def join(self, member: int, name: str) -> socket.socket | None:
        """Register a member (a gate of a process). Returns its wake-up socket, to which other processes send, or None if no
        other process can share the store."""
        return None

    def leave(self, member: int) -> None:
        """Remove a member."""

    def wake(self, members: Iterable[int]) -> None:
        """Wake members of other processes, because units that they wait for were released."""

    def rouse(self, member: int) -> None:
        """Wake all members but this one, because a block began or ended. Does nothing in a store that wakes them by
        itself."""

    def alive(self) -> int:
        """Return how many members share the budgets now, at least 1."""
        return 1

    def after_fork(self) -> None:
        """Forget the parent's locks, files and connections after a fork, in the child."""

    def close(self) -> None:
        """Close files, locks and connections. Open permits end with their lease."""


class SharedStore(Store):
    """A store that several processes share and that may be unreachable. The fallback store needs these methods."""

    pauses: Pauses | None = None
    """The pauses of this machine; None: the process has no state folder."""

    def __init__(self, boot: str = "") -> None:
        super().__init__(boot)
        self.back: Callable[[], object] = lambda: None
        """The store calls this when it answers again after an outage, even if no caller asks it meanwhile."""

    @abstractmethod
    def new_id(self) -> int:
        """Return a permit number that no other process uses: random, positive, 63 bits."""

    @abstractmethod
    def peek(self, key: str, now: Instant) -> Ledger | None:
        """Return a ledger as this process last knew it, advanced to `now`, without waiting.

        Raises:
            StoreUnavailable: the ledger cannot be read.
        """

    @abstractmethod
    def state(self) -> tuple[int, int]:
        """Return a value that changes with every transaction of any process, as far as this process can see without the
        store's help."""

    @abstractmethod
    def detach(self, length: int = 0) -> str:
        """Take this process offline. Leaves a mark for the others if possible; returns the mark's name.

        Args:
            length: ns after which the mark ends as if the process had died; 0: it ends with `reattach`.
        """

    def held_from(self) -> int:
        """Steady ns from which the others leave this process its share after it went offline; 0: at once."""
        return 0

    @abstractmethod
    def reattach(
        self, mark: str, processes: int, held: Iterable[Grant], replay: Iterable[Callable[[], object]]
    ) -> None:
        """Bring this process online again, in one step.

        Args:
            mark: from `detach`.
            processes: the number by which this process divided the limits.
            held: permits that it granted while offline and that are still in flight.
            replay: calls of this store's verbs that were postponed.

        Raises:
            StoreError: the store is not back yet; nothing was changed.
        """

    @abstractmethod
    def adopt(self, grant: Grant) -> None:
        """Put a permit in flight that the fallback granted; inside `reattach`."""

    @abstractmethod
    def spent(self, grant: Grant, actual: Mapping[str, int], at: Instant) -> None:
        """Record what was spent by `at` on a permit that the fallback granted; inside `reattach`."""

    def recall(self) -> None:
        """Add the blocks that are recorded outside the ledgers."""

    def publish(self) -> None:
        """Publish the known blocks to offline processes too."""

    # -- the pauses of this machine ----------------------------------------------------------------------------------

    def heed(self) -> None:
        """Obey what was ordered on this machine since the last call. Costs one system call."""
        if self.pauses is not None:
            self.pauses.heed(self._obey)

    @abstractmethod
    def _obey(self, records: list[PauseRecord]) -> None:
        """Put the records of this machine into force in this process."""

    def keep(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        """Put a block in force in this process only, as `block`."""
        return self.blocks.add(scope, length, kind, reason, mono, wall)

    @abstractmethod
    def deliver(self, record: PauseRecord) -> bool:
        """Write a record into the store, and wait for it. Returns whether the record was news there.

        Raises:
            StoreError: it may not be written.
        """

    def hand_on(self) -> None:
        """Write every record of this machine that the store does not have yet into it. Raises as `deliver` does."""
        self.heed()
        for record in self.pauses.to_hand_on() if self.pauses is not None else ():
            self.deliver(record)

    def order(self, scope: str, length: int | None, reason: str, *, resumed: bool = False) -> PauseRecord | None:
        """Pause a scope on this machine, or take its pauses back; the store gets the record from `hand_on`.

        Returns:
            The record; None if nothing can be written on this machine.
        """
        if self.pauses is None:
            return None
        record = self.pauses.record(scope, length, reason, resumed=resumed)
        try:
            self.pauses.write(record)
        except StoreUnavailable:
            return None
        self.heed()
        return record
