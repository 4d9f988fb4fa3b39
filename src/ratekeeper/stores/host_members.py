"""Who uses the host store: its members and their names, those that ended, and the shares of offline processes.

A record of kind `MEMBER` names a member whose process holds a wake-up socket. When the kernel says that the process is dead,
the leases of its permits end at once: its calls count as spent, and what they held in flight is free. The name moves to a
record of kind `FORMER`, where it stays for as long as a ledger has a row of that member.

A process that cannot use the store goes offline and leaves a mark: a socket in another folder. A process that uses the store
and finds the mark takes a permit for the offline process's share of every ledger, and renews it while that process lives. The
offline process gives the permit back on return and writes what it really spent. If it dies, the permit's lease ends at once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from ratekeeper.errors import StoreError
from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores import encoding
from ratekeeper.stores.encoding import OfflineShare, decode_offline, due, member_name, permit_name, read_or, record_name
from ratekeeper.stores.host_records import RecordStore
from ratekeeper.stores.members import WakeSockets
from ratekeeper.stores.records import LEASE
from ratekeeper.stores.verbs import MANY

__all__ = ["MemberStore"]

_COUNT: Final = SECOND
"""How often any process asks the kernel which members live, ns."""
_COUNTED: Final = b"!counted"


class MemberStore(RecordStore):
    """A store of records whose users come and go. Works inside a transaction that a subclass has begun."""

    home: Path

    def _start(self) -> None:
        self._sockets = WakeSockets(self.home / "wake")
        self._marks = WakeSockets(self.home / "absent")
        self._own: dict[int, str] = {}
        """Names of this process's members."""
        self._ending: list[tuple[int, str]] = []
        """Marks that end by themselves: (steady ns, mark)."""
        self._absent: set[int] = set()
        """Marks of living processes whose shares are held."""
        self._counted = 0
        self._alive = (0, 1)
        super()._start()

    def _attend(self) -> None:
        """Look which processes live. Runs ten times a second at most, inside a transaction."""
        mono = time.monotonic_ns()
        if mono - self._counted >= _COUNT:
            self._counted = mono
            if not 0 <= mono - int.from_bytes(self._txn.get(_COUNTED) or b"", "big") < _COUNT:
                self._txn.put(_COUNTED, mono.to_bytes(8, "big"))
                self._bury()
        while self._ending and self._ending[0][0] <= mono:
            self._marks.drop(int(self._ending.pop(0)[1], 16))
        self._leave_to_offline()

    # -- members ---------------------------------------------------------------------------------------------------

    def join(self, member: int, name: str) -> socket.socket | None:
        made = None
        try:
            made = self._sockets.open(member)
        except OSError:  # read-only folder: nothing can wake us, the safety recheck remains
            pass
        self._own[member] = name
        try:
            self.transact(self._enrol)
        except StoreError:
            pass  # a later return from offline writes it
        return made

    def _enrol(self) -> None:
        """Write the names of this process's members."""
        for member, name in self._own.items():
            if self._sockets.has(member):
                self._txn.put(member_name(encoding.MEMBER, member), name.encode())
            else:  # nothing can tell when it ends, so only its name is kept
                self._write_former(member, name.encode(), time.monotonic_ns())

    def leave(self, member: int) -> None:
        self._own.pop(member, None)
        try:
            self.transact(lambda: self._ended([member]))
        except StoreError:
            pass
        self._sockets.shut(member)

    def _ended(self, members: Iterable[int]) -> None:
        """Keep the names of members that ended."""
        for member in members:
            name = self._txn.pop(member_name(encoding.MEMBER, member))
            if name is not None:
                self._write_former(member, name, time.monotonic_ns())

    def _write_former(self, member: int, name: bytes, mono: int) -> None:
        """Keep the name of a member that ended, or may end unnoticed; it was mentioned at `mono`."""
        self._txn.put(member_name(encoding.FORMER, member), mono.to_bytes(8, "big") + name)

    def _bury(self) -> None:
        """End the permits of members whose processes are dead."""
        found = self._sockets.census()
        joined = {member for member, _ in self._named(encoding.MEMBER)}
        dead = {member for member, lives in found.items() if not lives}
        if dead:
            self._end_permits(dead.__contains__)
            self._sockets.bury(dead - joined)  # of those whose end is written already
        self._ended(member for member in joined if not found.get(member))

    def _named(self, kind: bytes) -> Iterator[tuple[int, str]]:
        """Return the members of one kind of record, with their names."""
        for name, value in self._records(kind):
            if encoding.is_member(name):
                yield int(name[1:], 16), value.decode("utf-8", "replace")

    def _end_permits(self, ended: Callable[[int], bool]) -> None:
        """End the leases of these members' permits now. The next permit of their provider counts them as spent."""
        mono = time.monotonic_ns()
        for name, value in self._records(encoding.PERMIT):
            lease, _, member = due(name)
            if member and lease > mono and ended(member):
                self._txn.delete(name)
                self._txn.put(encoding.moved(name, mono), value)
        self._reaped.clear()

    def wake(self, members: Iterable[int]) -> None:
        self._sockets.wake(members)

    def rouse(self, member: int) -> None:
        self._sockets.wake(other for other in self._sockets.census() if other != member)

    def alive(self) -> int:
        mono = time.monotonic_ns()
        if mono - self._alive[0] > _COUNT:
            self._alive = mono, max(1, sum(self._sockets.census().values()))
        return self._alive[1]

    # -- offline processes -----------------------------------------------------------------------------------------

    def detach(self, length: int = 0) -> str:
        mark = self.new_id()
        try:
            self._marks.open(mark)
        except OSError:
            return ""  # the folder is not writable, so no process can write
        name = f"{mark:016x}"
        if length:
            self._ending.append((time.monotonic_ns() + length, name))
        return name

    def _leave_to_offline(self, own: str = "", processes: int = 0) -> None:
        """Hold the shares of offline processes, and let go of those whose processes are dead.

        Args:
            own: mark of this process.
            processes: the number by which it divided the limits; 0: the number of living processes.
        """
        marks = self._marks.census()
        shares = {
            int(name[1:], 16): read_or(OfflineShare(done=True), decode_offline, value)
            for name, value in self._records(encoding.OFFLINE)
            if encoding.is_member(name)
        }
        for mark in marks.keys() - shares.keys():
            shares[mark] = OfflineShare(processes=processes or self.alive())
        shares.pop(int(own or "0", 16), None)
        self._held_early = {}
        for mark, share in shares.items():
            lives = marks.get(mark, False)
            if not share.done:
                self._hold_some(mark, share, lives=lives)
            elif lives:
                self._renew(mark, share)
            else:
                self._end_share(mark, share)
        self._held_early = {mark: marks.get(mark, False) for mark, share in shares.items() if not share.done}
        self._absent = {mark for mark in shares if marks.get(mark)}

    def _hold_some(self, mark: int, share: OfflineShare, *, lives: bool) -> None:
        """Hold the share of an offline process of the next few ledgers. That of a dead one counts as spent at once."""
        keys = self._keys("", after=share.next, most=MANY)
        held: dict[str, list[tuple[str, int]]] = {}
        for key in keys:
            ledger = self._open(key) if key not in share.early else None
            if ledger is not None:
                units = self._put_aside(ledger, share, lives=lives)
                held.setdefault(key.partition("/")[0], []).append((key, units))
        for namespace, charges in held.items():
            self._add_share(share, namespace, charges, lives=lives)
        share.done = len(keys) < MANY
        share.next = keys[-1] if keys else ""
        self._txn.put(member_name(encoding.OFFLINE, mark), encoding.encode(share))

    @staticmethod
    def _put_aside(ledger: Ledger, share: OfflineShare, *, lives: bool) -> int:
        now = Instant(time.monotonic_ns(), 0, 0)
        units = ledger.limit.usable // max(2, share.processes)
        if not (lives or ledger.aligned):  # no server counts more than its limit, and here it would stay for long
            ledger.advance(now)
            units = max(0, min(units, ledger.room))
        ledger.take(units, (0, 0), now)
        ledger.rows.pop((0, 0), None)
        return units

    def _add_share(self, share: OfflineShare, namespace: str, charges: list[tuple[str, int]], *, lives: bool) -> None:
        lease, number = time.monotonic_ns() + (LEASE if lives else 0), self.new_id()
        share.permits.append((namespace, lease, number))
        self._txn.put(permit_name(namespace, lease, number, 0), encoding.encode(charges))

    def _hold_one(self, key: str, ledger: Ledger, *, fresh: bool = False) -> None:
        """A ledger begins or is used: hold the share of each offline process of it too, if it is not held yet."""
        for mark in self._absent | self._held_early.keys():
            name = member_name(encoding.OFFLINE, mark)
            share = read_or(None, decode_offline, self._txn.get(name))
            if (
                share is None
                or not share.processes
                or (not fresh and (share.done or key <= share.next or key in share.early))
            ):
                continue
            lives = self._held_early.get(mark, True)
            units = self._put_aside(ledger, share, lives=lives)
            self._add_share(share, key.partition("/")[0], [(key, units)], lives=lives)
            if not share.done:
                share.early.append(key)
            self._txn.put(name, encoding.encode(share))
            self._keep(key, ledger)

    def _renew(self, mark: int, share: OfflineShare) -> None:
        """Hold the share of an offline process that lives for longer."""
        mono = time.monotonic_ns()
        if all(lease - mono > LEASE // 2 for _, lease, _ in share.permits):
            return
        self._move(share.permits, mono + LEASE)
        share.permits = [(namespace, mono + LEASE, number) for namespace, _, number in share.permits]
        self._txn.put(member_name(encoding.OFFLINE, mark), encoding.encode(share))

    def _move(self, permits: Iterable[tuple[str, int, int]], until: int) -> None:
        """Move the ends of the leases of shares."""
        for namespace, lease, number in permits:
            if 0 <= lease < 1 << 64 and 0 <= number < 1 << 64:
                value = self._txn.pop(permit_name(namespace, lease, number, 0))
                if value is not None:
                    self._txn.put(permit_name(namespace, until, number, 0), value)

    def _end_share(self, mark: int, share: OfflineShare) -> None:
        """The offline process is dead: its share counts as spent now."""
        mono = time.monotonic_ns()
        self._move([permit for permit in share.permits if permit[1] > mono], mono)
        self._txn.delete(member_name(encoding.OFFLINE, mark))
        self._marks.bury([mark])
        self._reaped.clear()

    def _rejoin(self, mark: str, processes: int) -> None:
        """Come back from offline, inside a transaction: hold the share of offline processes, give back what was held for
        us."""
        self._enrol()
        self._leave_to_offline(mark, processes)
        name = record_name(encoding.OFFLINE, mark)
        held = self._txn.get(name)
        if mark:  # until the mark is gone, this tells others that nothing is to be held for it
            self._txn.put(name, encoding.encode(OfflineShare(processes=0, done=True)))
        for namespace, lease, number in read_or(OfflineShare(), decode_offline, held).permits:
            if not (0 <= lease < 1 << 64 and 0 <= number < 1 << 64):
                continue  # garbled: it ends with its lease
            permit = permit_name(namespace, lease, number, 0)
            charges = read_or(None, encoding.decode_held, self._txn.get(permit))
            if charges is not None and self._in_flight(charges):
                self._txn.delete(permit)
                for key, units in charges:
                    ledger = self._open(key)
                    if ledger is not None:
                        ledger.refund(units)

    def after_fork(self) -> None:
        self._sockets.abandon()
        self._marks.abandon()
