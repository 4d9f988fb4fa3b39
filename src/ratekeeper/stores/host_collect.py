"""How the host store forgets what no decision needs any more, a few records at a time.

All processes move one cursor over ledgers and notes. A ledger at rest goes, and so does a note whose time is over. A store of
few records keeps them all. In long windows the rows of programs that ended merge by program. The name of a member that ended
stays for as long as a ledger has a row of it: who passes such a row marks the name, and a name that a whole round did not
mark goes.

The file does not shrink, but what comes later reuses its space.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.codec import pack, unpack
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.stores import encoding
from ratekeeper.stores.encoding import meant, member_name, read_or, record_name
from ratekeeper.stores.host_members import MemberStore
from ratekeeper.stores.records import FEW, Snapshot, view
from ratekeeper.typed import msgpack_decoder

__all__ = ["CollectingStore"]

_FEWEST: Final = 32
_MOST: Final = 512
"""Fewest and most records that a transaction looks at, beyond its own."""
_EACH: Final = 2
"""Records looked at for each ledger that begins, so that what is at rest never makes up more than part of the store."""
_ROWS: Final = 16
"""Rows of a ledger from which those of programs that ended merge."""
_OFTEN: Final = SECOND // 20
"""However many processes there are, they look this often, ns, but for ledgers that begin."""
_PAGE: Final = 512
"""Records read in one transaction, for people."""
_CURSOR: Final = b"!collected"


class _Round(msgspec.Struct, array_like=True):
    """How far all processes have come: the name of the next record, and the steady instants (ns) at which the round began and
    at which one of them looked last."""

    next: bytes = encoding.KEPT
    began: int = 0
    looked: int = 0


class CollectingStore(MemberStore):
    """A store of records that forgets."""

    def _start(self) -> None:
        super()._start()
        self._begun = 0
        """Ledgers that began since this process last looked."""
        self._slice = _FEWEST
        self._marked: tuple[int, set[int]] = 0, set()
        """Members whose names need no mark in the round that began at that instant."""

    def _collect(self, most: int) -> None:
        """Look at the next `most` records, or at more if ledgers began, and remove those that no decision needs. This is the
        first step of a transaction."""
        mono = time.monotonic_ns()
        begun, self._begun = self._begun, 0
        if self._txn.stat()["entries"] <= FEW:
            return
        turn = read_or(_Round(), msgpack_decoder(_Round), self._txn.get(_CURSOR))
        if most and not 0 <= mono - turn.looked < _OFTEN:
            turn.looked = mono
        else:
            most = 0
        most = min(_MOST, max(most, _EACH * begun))
        if most:
            self._pass(turn, most, mono)

    def _pass(self, turn: _Round, most: int, mono: int) -> None:
        if self._marked[0] != turn.began:
            self._marked = turn.began, set()
        removed, crowded = 0, list[tuple[bytes, Ledger]]()
        with self._txn.cursor() as cursor:
            found = cursor.set_range(turn.next)
            for _ in range(most):
                name = cursor.key() if found else b""
                if name[:1] == encoding.LEDGER:
                    ledger, over = read_or((None, False), partial(_judged, mono=mono), cursor.value())
                    if ledger is not None and not over:
                        self._mark(ledger, mono)
                        if len(ledger.rows) > _ROWS:
                            crowded.append((name, ledger))
                elif name[:1] == encoding.KEPT:
                    over = int.from_bytes(cursor.value(), "big") <= mono
                    if over:
                        self._txn.delete(encoding.NOTE + name[1:])
                else:
                    self._end_round(turn.began)
                    turn.began, found = mono, False
                    break
                removed += over
                found = cursor.delete() if over else cursor.next()
            turn.next = cursor.key() if found else encoding.KEPT
        for name, ledger in crowded:
            self._merge_rows(name, ledger, mono)
        self._txn.put(_CURSOR, encoding.encode(turn))
        if most >= self._slice:
            self._slice = min(_MOST, 2 * self._slice) if 2 * removed > most else max(_FEWEST, self._slice // 2)

    def _mark(self, ledger: Ledger, mono: int) -> None:
        """Mark the names of the members that a ledger mentions."""
        began, marked = self._marked
        for member in {member for member, _ in ledger.rows} - marked:
            marked.add(member)
            former = self._txn.get(member_name(encoding.FORMER, member))
            if former is not None and _seen(former) < began:
                self._write_former(member, former[8:], mono)

    def _end_round(self, began: int) -> None:
        """Remove the names that the round did not mark."""
        for name, value in self._records(encoding.FORMER):
            if _seen(value) < began:
                self._txn.delete(name)

    def _merge_rows(self, name: bytes, ledger: Ledger, mono: int) -> None:
        """Merge the rows of members that ended, by program."""
        first: dict[bytes, int] = {}
        heirs: dict[int, int] = {}
        for member in {member: None for member, _ in ledger.rows}:
            former = self._txn.get(member_name(encoding.FORMER, member))
            if former is not None and member not in self._own:
                heirs[member] = first.setdefault(former[8:].partition(b"[")[0], member)
        before = len(ledger.rows)
        ledger.inherit(heirs, mono)
        if len(ledger.rows) < before:
            self._txn.put(name, pack(ledger))

    def read(self, now: Callable[[str], Instant]) -> Snapshot:
        found = Snapshot()
        position, over = encoding.OFFLINE, dict[bytes, bytes]()
        offline, held = set[bytes](), Counter[str]()
        former: dict[int, str] = {}
        while position:
            page, position, full = self.transact(partial(self._page, position, over))
            mono = time.monotonic_ns()
            over.clear()
            for name, value in page:
                if name[:1] == encoding.PERMIT:
                    found.permits += 1
                    if name in offline:
                        held.update(dict(read_or((), encoding.decode_held, value)))
                elif name[:1] == encoding.OFFLINE:
                    share = read_or(encoding.OfflineShare(), encoding.decode_offline, value)
                    offline.update(map(_share_name, share.permits))
                elif name[:1] == encoding.LEDGER:
                    ledger, at_rest = read_or((None, False), partial(_judged, mono=mono), value)
                    if ledger is None:
                        continue
                    if full and at_rest:
                        over[name] = value
                        continue
                    key = name[1:].decode("utf-8", "replace")
                    found.ledgers.append(view(key, ledger, now(key.partition("/")[0])))
                elif encoding.is_member(name):
                    named, text = (former, value[8:]) if name[:1] == encoding.FORMER else (found.members, value)
                    named[int(name[1:], 16)] = text.decode("utf-8", "replace")
        if over:
            self.transact(partial(self._remove, over))
        found.blocks, found.learned = self.blocks.states(), self.learned
        living = {member for member, lives in self._sockets.census().items() if lives}
        former |= {member: found.members.pop(member) for member in found.members.keys() - living}
        mentioned = {member for ledger in found.ledgers for member, _ in ledger.rows}
        found.hold(held)
        found.former = {member: name for member, name in former.items() if member in mentioned}
        return found

    def _page(self, position: bytes, over: Mapping[bytes, bytes]) -> tuple[list[tuple[bytes, bytes]], bytes, bool]:
        """Return the next records that people see, the name of the one after, and whether the store is larger than small.

        Args:
            position: where to begin.
            over: ledgers at rest of the page before, to be removed unless somebody changed them.
        """
        self._write(self._txn)  # writes pending with this transaction
        self._remove(over)
        page: list[tuple[bytes, bytes]] = []
        with self._txn.cursor() as cursor:
            found = cursor.set_range(position)
            while found and len(page) < _PAGE:
                kind = cursor.key()[:1]
                if kind in (encoding.KEPT, encoding.NOTE):
                    found = cursor.set_range(bytes([kind[0] + 1]))
                    continue
                page.append(cursor.item())
                found = cursor.next()
            return page, cursor.key() if found else b"", self._txn.stat()["entries"] > FEW

    def _remove(self, over: Mapping[bytes, bytes]) -> None:
        for name, value in over.items():
            if self._txn.get(name) == value:
                self._txn.delete(name)

    def _keep_until(self, topic: str, until: int) -> None:
        self._txn.put(record_name(encoding.KEPT, topic), until.to_bytes(8, "big"))


def _share_name(share: tuple[str, int, int]) -> bytes:
    """Return the name of the permit that holds part of an offline process's share: (namespace, lease, number)."""
    namespace, lease, number = share
    whole = 0 <= lease < 1 << 64 and 0 <= number < 1 << 64
    return encoding.permit_name(namespace, lease, number, 0) if whole else b""


def _judged(raw: bytes, mono: int) -> tuple[Ledger | None, bool]:
    """Return a ledger, and whether it is at rest at the steady instant `mono` (ns); None if its numbers are not plausible."""
    ledger = unpack(raw)
    return (ledger, ledger.rests_at() <= mono) if meant(ledger, mono) else (None, False)


def _seen(former: bytes) -> int:
    """Return the steady instant (ns) at which the name of a member that ended was last marked."""
    return int.from_bytes(former[:8], "big")
