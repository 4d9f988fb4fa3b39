"""What a store does: a few verbs over ledgers, each one atomic step, whatever the ledgers lie in."""

from __future__ import annotations

import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import Charge, Instant
from ratekeeper.ledger.shares import Who
from ratekeeper.policy.shared import Claim, claimed
from ratekeeper.stores.blocks import Blocks, BlockState
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
from ratekeeper.stores.worker import Worker

if TYPE_CHECKING:
    from ratekeeper.stores.responses import ResponseStorage

__all__ = ["SharedStore", "Store"]

N = TypeVar("N")
T = TypeVar("T")


class Store(ABC):
    """Where ledgers live. All methods are thread-safe and never wait for units, only (shortly) for the store itself."""

    together: bool = False
    """Whether it grants permits to many calls in one step, through `reserve_all` and `draw`. Then `reserve` and `reserve_all`
    are for threads that may block; `draw` and all that ends a permit return at once, and what they bring about is told
    through `heard`."""

    blocks: Blocks
    learned: dict[str, dict[str, tuple[int, int]]]
    generation: int
    """Grows whenever `blocks` or `learned` changed, also by another process."""

    def __init__(self, boot: str = "") -> None:
        self.blocks = Blocks(boot)
        self.learned = {}
        self.generation = 0
        self.heard: Callable[[str, Answered], None] = lambda namespace, answered: None
        """Called with what a verb brought about that had returned before (`together` only)."""

    # -- permits ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def reserve(self, ask: Ask, now: Instant) -> Decision:
        """Take every charge, or none.

        Args:
            ask: what is wanted.
            now: the instant, on the provider's clock.
        """

    def reserve_all(self, asks: Sequence[Ask], now: Callable[[str], Instant]) -> list[Sequence[Grant] | Refusal]:
        """Several calls' permits together, in as few round trips as it takes.

        Args:
            asks: what is wanted; `Ask.most` calls of one plan each.
            now: the present moment on the clock of a namespace.

        Returns:
            For each, the permits (at least one, at most so many), or the refusal of the first.
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
        """A permit out of what this process holds already, without asking anybody; None: there is none."""
        return None

    @abstractmethod
    def settle(self, grant: Grant, now: Instant, told: Settlement = AS_RESERVED) -> Answered:
        """The answer came: what was in flight is spent.

        Args:
            grant: from `reserve`.
            now: the instant of the answer.
            told: what the answer says of its cost.
        """

    def refund(self, grant: Grant, now: Instant) -> Answered:
        """It was surely never sent: give everything back."""
        return self.settle(grant, now, UNSENT)

    @abstractmethod
    def hold(self, grant: Grant, until: int) -> bool:
        """Move the end of a permit's lease to `until` (steady ns): later for a stream that goes on, sooner for a request
        whose answer will not come. False if the lease had already ended."""

    @abstractmethod
    def withdraw(
        self, keys: Iterable[str], who: Who, now: Instant, missed: Units = NOTHING, left: Units = NOTHING
    ) -> None:
        """Calls no longer wait: take back their waiting notes.

        Args:
            keys: of their ledgers.
            who: (member, class).
            now: the instant.
            missed: units by key of calls that were not served in time. Like what it took, they count as what the class wants.
            left: units by key that others of the class in this process still wait for.
        """

    def transact(self, work: Callable[[], T]) -> T:
        """Run `work`, and all verbs in it as one transaction, where the store has such; one inside another joins it.

        It is given a function, and is no context manager, because an exception that a signal's handler raises may strike
        between any two of our instructions: only a `with` on a lock of the interpreter's own is sure to let go of it.
        """
        return work()

    # -- observe ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def learn(self, namespace: str, limits: Mapping[str, tuple[int, int]]) -> bool:
        """Limits as the provider states them: name -> (capacity in units, period in ns). True if that is news."""

    @abstractmethod
    def doubt(self, namespace: str, now: Instant) -> None:
        """The provider's clock was believed wrong: what is spent in its windows counts in the next ones too."""

    # -- block -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def block(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        """Shut a scope for `length` ns (None: until `unblock`), for every process, from its next decision on.

        A shorter block never cuts an older one of the same kind short.
        """

    @abstractmethod
    def unblock(self, scope: str, kind: str = "") -> bool:
        """Take blocks of a scope away (of one kind, or all). True if there were any."""

    # -- notes and members -----------------------------------------------------------------------------------------

    @abstractmethod
    def update(self, topic: str, kind: type[N], change: Change[N, T], keep: int = 0) -> T:
        """Change a note in one step, whoever else changes it at the same time: no change is lost.

        Args:
            topic: its name.
            kind: its type, one that `msgspec` can read. What is not of it counts as no note.
            change: see `Change`.
            keep: ns after which the store may forget the note; 0: it does not.

        Returns:
            The result of the `change` that was written.
        """

    @abstractmethod
    def get(self, topic: str, kind: type[N]) -> N | None:
        """A note as it is now; None if there is none of that type."""

    def claim(self, topic: str, length: int) -> int:
        """Become the only one with a task for `length` ns. Returns 0, or the steady ns until which it is somebody else's."""
        until = time.monotonic_ns() + length
        got = self.update(topic, Claim, lambda old, now: claimed(old, now, until), length)
        return 0 if isinstance(got, Claim) else got

    def release(self, topic: str, length: int) -> None:
        """The task that was claimed for `length` ns is nobody's any more."""
        self.update(topic, Claim, lambda *_: (None, None), length)

    def skew(self) -> tuple[int, int]:
        """Bounds of (the store's steady clock - this machine's), ns; notes shared by machines count on the store's.
        Never waits: (0, 0) as long as the store was never reached."""
        return 0, 0

    def present(self) -> Instant:
        """The present: `mono` on this machine's steady clock, `lo` and `hi` bounds of it on the store's."""
        low, high = self.skew()
        mono = time.monotonic_ns()
        return Instant(mono, mono + low, mono + high)

    def worker(self) -> Worker:
        """A new worker, which changes notes without making its callers wait for a network."""
        return Worker()

    def responses(self, home: Path, most_bytes: int) -> ResponseStorage:
        """Where answers are kept for all who share this store.

        Args:
            home: the state folder.
            most_bytes: of all together.
        """
        from ratekeeper.stores.responses import MemoryResponses  # with its parts: for those who keep answers

        return MemoryResponses(most_bytes)

    @abstractmethod
    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        """All there is to know, brought up to the present without changing anything.

        Args:
            now: the present moment on the clock of a namespace.
        """

    def join(self, member: int, name: str) -> socket.socket | None:
        """Enter a member (a gate of a process). Returns the socket at which other processes wake it, if there are any
        other processes."""
        return None

    def leave(self, member: int) -> None:
        """Take a member out."""

    def wake(self, members: Iterable[int]) -> None:
        """Tell members of other processes that units they wait for were freed."""

    def rouse(self, member: int) -> None:
        """Tell all members but this one that a block began or ended, where a store does not tell them by itself."""

    def alive(self) -> int:
        """How many members share the budgets now, at least 1."""
        return 1

    def after_fork(self) -> None:
        """In a child process: locks, files and connections of the parent are not ours."""

    def close(self) -> None:
        """Let go of files, locks and connections. Permits that are open end with their lease."""


class SharedStore(Store):
    """A store that several processes share and that may be out of reach: what the fallback asks of it."""

    def __init__(self, boot: str = "") -> None:
        super().__init__(boot)
        self.back: Callable[[], object] = lambda: None
        """Called when a store that was out of reach answers again, should nobody ask it meanwhile."""

    @abstractmethod
    def new_id(self) -> int:
        """A number for a permit, unlike any of another process: random, positive, 63 bits."""

    @abstractmethod
    def peek(self, key: str, now: Instant) -> Ledger | None:
        """A ledger as it was last known, brought up to `now`, without waiting for anybody.

        Raises:
            StoreUnavailable: it cannot be read.
        """

    @abstractmethod
    def state(self) -> tuple[int, int]:
        """Changes with every transaction of any process, as far as can be seen without the store's help."""

    @abstractmethod
    def detach(self) -> str:
        """This process goes offline: leave a mark for others, if that can be done; returns its name."""

    def held_from(self) -> int:
        """Steady ns from which on others leave this process its share, after it went away; 0: from the first moment."""
        return 0

    @abstractmethod
    def reattach(
        self, mark: str, processes: int, held: Iterable[Grant], replay: Iterable[Callable[[], object]]
    ) -> None:
        """Be a member again, in one step.

        Args:
            mark: from `detach`.
            processes: by which this process divided the limits.
            held: permits that it gave meanwhile and that are in flight.
            replay: calls of this store's verbs that waited for it.

        Raises:
            StoreError: it is not there yet; nothing was changed.
        """

    @abstractmethod
    def adopt(self, grant: Grant) -> None:
        """Put a permit in flight that was given elsewhere; inside `reattach`."""

    @abstractmethod
    def spent(self, grant: Grant, actual: Mapping[str, int], at: Instant) -> None:
        """Write down what was spent by `at` on a permit that was given elsewhere; inside `reattach`."""

    def recall(self) -> None:
        """Add the blocks that are known elsewhere than in the ledgers."""

    def publish(self) -> None:
        """Tell the blocks that are known to whoever is offline too."""
