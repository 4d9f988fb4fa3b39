"""Blocks (bans, holds, pauses): which scopes are blocked and until when, even if the wall clock steps."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from ratekeeper.errors import StoreUnavailable
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge
from ratekeeper.typed import json_decoder

__all__ = [
    "CONTACT",
    "EMERGENCY",
    "EVERYWHERE",
    "LONGEST",
    "PAUSE",
    "BlockState",
    "Blocks",
    "PauseRecord",
    "boot_id",
    "read_blocks",
    "write_blocks",
]

LONGEST: Final = 7 * 86_400 * SECOND
"""No ban is believed to be longer (Binance's longest are three days). A wrong clock or a garbled answer must not block a
program for a year."""
_AHEAD: Final = 3650 * 86_400 * SECOND
"""A block that begins further than this in the future was garbled, ns."""
_EVER: Final = 1 << 62
EVERYWHERE: Final = "*"
"""Matches every provider, also one first met later: alone, or before a slash as in ``*/class:order``."""
CONTACT: Final = "contact"
"""The kind of block that holds other calls while one call asks the provider for its limits; it ends with the answer."""
EMERGENCY: Final = "emergency"
"""A call with this scope is an operator override: no pause and no breaker stops it. A ban does."""
PAUSE: Final = "pause"
"""The kind of block by which a person stops calls."""
_CANCEL: Final = "/class:cancel"
_SPARING: Final = frozenset({PAUSE, "breaker"})
"""Kinds of blocks that let cancels pass, because a user who stops trading or waits for a sick exchange wants orders
withdrawn."""
_SLACK: Final = SECOND // 10
"""By so much may a pause seem younger than the record that takes it back, because two machines date them, ns."""


def boot_id() -> str:
    """Return the id of this boot of the machine: steady instants are valid only within one boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: accurate to the minute
        return str(int(time.time() - time.monotonic()) // 60)


class BlockState(msgspec.Struct, frozen=True):
    """One block as the store keeps it.

    Attributes:
        scope: the owner, or the key of one ledger.
        kind: ``ban``, ``throttle``, ``pause``, ``breaker``, or ``limit``: its budget is spent until the end.
        reason: one line for people.
        length: ns, or None for a pause without an end.
        mono, wall: when it began, on the steady and the wall clock, ns.
        boot: the machine's boot in which `mono` is valid.
    """

    scope: str
    kind: str
    reason: str
    length: int | None
    mono: int
    wall: int
    boot: str

    def ends(self) -> int:
        """Return the steady instant (ns) of the end, valid in the boot that made the block."""
        return _EVER if self.length is None else self.mono + self.length


class PauseRecord(BlockState, frozen=True):
    """A pause that was ordered on this machine, or the end of one (see `ratekeeper.stores.pauses`).

    Attributes:
        resumed: whether it takes back the pauses of its scope that are older.
        store: the shared store to hand it on to.
        file: its name in the folder.
    """

    resumed: bool = False
    store: str = ""
    file: str = ""

    def takes_back(self, state: BlockState) -> bool:
        """Whether it takes back a pause of its scope."""
        return self.resumed and state.mono <= self.mono + _SLACK


class Blocks:
    """The blocks in force: those of the store, and on top the pauses that were ordered on this machine.

    Their ends use steady time, so a stepping wall clock neither ends nor prolongs a ban. After a reboot only wall time is
    known; it is clamped to the ban's own length.

    Attributes:
        boot: this boot of the machine.
        kept: the blocks by scope and kind, including ended ones until they are swept. Replaced as a whole.
    """

    __slots__ = ("_records", "_stored", "boot", "kept")

    def __init__(self, boot: str = "") -> None:
        self.boot = boot
        self.kept: dict[tuple[str, str], BlockState] = {}
        self._stored: dict[tuple[str, str], BlockState] = {}
        self._records: list[PauseRecord] = []

    def __bool__(self) -> bool:
        return bool(self.kept)

    def states(self) -> list[BlockState]:
        """Return all blocks, including ended ones until they are swept."""
        return list(self.kept.values())

    def stored(self) -> list[BlockState]:
        """Return the blocks of the store alone, as `states`."""
        return list(self._stored.values())

    def obey(self, records: list[PauseRecord]) -> None:
        """Replace the pauses ordered on this machine."""
        self._records = records
        self._merge()

    def _merge(self) -> None:
        kept = dict(self._stored)
        for record in self._records:
            key = record.scope, record.kind
            state = kept.get(key)
            if record.resumed:
                if state is not None and record.takes_back(state):
                    del kept[key]
            elif state is None or state.ends() < record.ends():
                kept[key] = record
        self.kept = kept

    def add(self, scope: str, length: int | None, kind: str, reason: str, mono: int, wall: int) -> BlockState:
        """Put a block in force from `mono` on. An older block of that kind that ends later stays."""
        if length is not None:
            length = min(max(length, 0), LONGEST)
        state = BlockState(scope, kind, reason, length, mono, wall, self.boot)
        old = self._stored.get((scope, kind))
        if old is not None and old.ends() >= state.ends():
            return old
        self._stored[scope, kind] = state
        self.sweep(mono)
        return state

    def remove(self, scope: str, kind: str = "") -> bool:
        """Remove the store's blocks of a scope; `kind` empty: of every kind."""
        gone = [key for key in self._stored if key[0] == scope and kind in ("", key[1])]
        for key in gone:
            self._stored.pop(key, None)
        self._merge()
        return bool(gone)

    def take_back(self, record: PauseRecord) -> bool:
        """Remove the store's pause that a record takes back. False: there is none, or a later one."""
        state = self._stored.get((record.scope, record.kind))
        return state is not None and record.takes_back(state) and self.remove(record.scope, record.kind)

    def sweep(self, mono: int) -> None:
        """Forget the blocks that have ended."""
        for key in [key for key, state in list(self._stored.items()) if state.ends() <= mono]:
            self._stored.pop(key, None)
        self._records = [each for each in self._records if each.resumed or each.ends() > mono]
        self._merge()

    def load(self, states: Iterable[BlockState], mono: int, wall: int) -> None:
        """Replace the store's blocks by `states`. Blocks of another boot move onto this boot's steady clock."""
        self._stored = {}
        for state in states:
            if state.boot == self.boot and (state.mono > mono + _AHEAD or (state.length or 0) > LONGEST):
                # A block that begins in the future or lasts too long is garbled.
                length = None if state.length is None else min(state.length, LONGEST)
                state = msgspec.structs.replace(state, length=length, mono=min(state.mono, mono))
            if state.boot != self.boot:
                length = state.length
                if length is not None:
                    length = min(max(state.wall + length - wall, 0), length, LONGEST)
                state = BlockState(state.scope, state.kind, state.reason, length, mono, wall, self.boot)
            self._stored[state.scope, state.kind] = state
        self.sweep(mono)

    def against(
        self, scopes: tuple[str, ...], charges: tuple[Charge, ...], mono: int, *, everywhere: bool = False
    ) -> Refusal | None:
        """Return the block that holds a call longest, if any.

        Args:
            scopes: the call's owners, as in `Plan.scopes`.
            charges: what the call would take; a block may hold one ledger.
            mono: the present, steady ns.
            everywhere: check only blocks for all providers, and the pauses ordered on this machine.
        """
        worst: BlockState | None = None
        if not self.kept:
            return None
        if any(state.ends() <= mono for state in self.kept.values()):
            self.sweep(mono)
        names = {EVERYWHERE + scope[scope.find("/") :] for scope in scopes if "/" in scope} | {EVERYWHERE}
        own = {*scopes, *(charge.key for charge in charges)}
        if not everywhere:
            names |= own
        emergency = EMERGENCY in scopes
        spared = emergency or any(scope.endswith(_CANCEL) for scope in scopes)
        for state in self.kept.values():
            mine = state.scope in names or (state.scope in own and isinstance(state, PauseRecord))
            if mine and state.ends() > mono and (worst is None or state.ends() > worst.ends()):
                if spared and state.kind in _SPARING and (emergency or not state.scope.endswith(_CANCEL)):
                    continue
                worst = state
        if worst is None:
            return None
        return Refusal(worst.scope, worst.ends(), unknown=worst.length is None, kind=worst.kind, reason=worst.reason)


def write_blocks(path: Path, states: list[BlockState]) -> None:
    """Replace a file of blocks and sync it: it outlives the ledgers and a power cut.

    Raises:
        StoreUnavailable: the file cannot be written.
    """
    from ratekeeper.stores.files import write_private  # for those who write one

    try:
        write_private(path, msgspec.json.format(msgspec.json.encode(states)), sync=True)
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error


def read_blocks(path: Path) -> list[BlockState]:
    """Return the blocks of a file; none if it is missing or unreadable."""
    try:
        return json_decoder(list[BlockState])(path.read_bytes())
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return []
