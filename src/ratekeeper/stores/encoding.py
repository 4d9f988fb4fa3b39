"""How a store encodes, names and validates its records.

A record of a shared store may hold any bytes, from a bad disk or from another program. So every read validates it. An
implausible ledger counts as lost; so does a permit whose units are not in flight; an unreadable note counts as none.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias, TypeVar

import msgspec

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.first import First
from ratekeeper.ledger.fixed import Fixed
from ratekeeper.ledger.flows import Bucket, Sliding
from ratekeeper.ledger.limit import SECOND, Instant
from ratekeeper.rules.numbers import believable
from ratekeeper.rules.reading import FAULTS
from ratekeeper.stores.blocks import BlockState
from ratekeeper.stores.inforce import DOUBTED, PACED, REFUSED
from ratekeeper.typed import json_decoder, msgpack_decoder

__all__ = [
    "Change", "OfflineShare", "due", "encoded", "is_member", "meant", "meant_blocks", "meant_learned", "member_name",
    "moved", "note_of", "permit_name", "permits_of", "read_or", "record_name",
]  # fmt: skip

E = TypeVar("E")
N = TypeVar("N")
R = TypeVar("R")
T = TypeVar("T")

Change: TypeAlias = Callable[[N | None, Instant], tuple[N | None, T]]
"""A pure function that changes a note; the store may call it more than once. It gets the note (None: there is none) and the
present. It returns the new note (None: none) and a result. In the present, `mono` is this machine's steady clock; `lo` and
`hi` bound the store's clock, which dates notes (ns)."""


class OfflineShare(msgspec.Struct, array_like=True):
    """What the store holds for an offline process.

    Attributes:
        permits: (namespace, lease, number) of each.
        processes: the number by which its share divides the limits; 0: it is back, and only its mark is left.
        next: key of the last ledger of which it is held, while not all are `done`.
        early: keys of later ledgers of which it is held because they were used meanwhile.
    """

    permits: list[tuple[str, int, int]] = []
    processes: int = 2
    next: str = ""
    done: bool = False
    early: list[str] = []


LEDGER, PERMIT, NOTE, KEPT, MEMBER, FORMER, OFFLINE = b"L", b"P", b"N", b"K", b"M", b"F", b"A"
GENERATION, BLOCKS, LEARNED, REBUILT = b"!generation", b"!blocks", b"!learned", b"!rebuilt"

encode: Final = msgspec.msgpack.Encoder().encode
decode_held: Final = msgpack_decoder(tuple[tuple[str, int], ...])
"""Decodes what a permit holds: (key, units) each."""
decode_offline: Final = msgpack_decoder(OfflineShare)
decode_blocks: Final = json_decoder(list[BlockState])
decode_learned: Final = json_decoder(dict[str, dict[str, tuple[int, int]]])

_DUE: Final = struct.Struct(">QQQ")
_MEMBER: Final = re.compile(rb"[0-9a-f]{16}")
_MOST: Final = 1 << 60
_AHEAD: Final = 3650 * 86_400 * SECOND
"""No recorded steady instant of the past lies further ahead than this, ns."""


def read_or(otherwise: E, decode: Callable[[bytes], R], raw: bytes | None) -> R | E:
    """Decode a record; return `otherwise` if it is missing or unreadable."""
    if raw is None:
        return otherwise
    try:
        return decode(raw)
    except FAULTS:
        return otherwise


# -- notes -------------------------------------------------------------------------------------------------------------


def encoded(note: object) -> bytes | None:
    """Encode a note as bytes; None if there is no note."""
    return None if note is None else encode(note)


def note_of(raw: bytes | None, kind: type[N]) -> N | None:
    """Decode a note. Garbled bytes, or those of another version, count as no note."""
    return None if raw is None else read_or(None, msgpack_decoder(kind), raw)


# -- records of the host store: their names ----------------------------------------------------------------------------


@lru_cache(4096)
def record_name(kind: bytes, key: str) -> bytes:
    """Return a record's name. LMDB allows 511 bytes, so a longer name ends in a digest."""
    name = kind + key.encode()
    if len(name) > 500:
        return name[:440] + hashlib.blake2b(name, digest_size=24).hexdigest().encode()
    return name


@lru_cache(256)
def permits_of(namespace: str) -> bytes:
    """Return the prefix of a provider's permit names. They sort by the end of their leases."""
    return PERMIT + hashlib.blake2b(namespace.encode(), digest_size=8).digest()


def permit_name(namespace: str, lease: int, number: int, member: int) -> bytes:
    """Return a permit's name; `member`: whose process holds it, 0: no process."""
    return permits_of(namespace) + _DUE.pack(lease, number, member)


def due(name: bytes) -> tuple[int, int, int]:
    """Return what a permit's name states: the end of its lease (steady ns), its number, its member."""
    if len(name) < 9 + _DUE.size:
        return 0, 0, 0
    return _DUE.unpack_from(name, 9)


def moved(name: bytes, lease: int) -> bytes:
    """Return the name of a permit whose lease ends at `lease` instead."""
    _, number, member = due(name)
    return name[:9] + _DUE.pack(lease, number, member)


def member_name(kind: bytes, member: int) -> bytes:
    """Return the name of the record of a member (`MEMBER`), of one that ended (`FORMER`), or of a mark (`OFFLINE`)."""
    return kind + b"%016x" % member


def is_member(name: bytes) -> bool:
    """Whether a record's name may come from `member_name`."""
    return _MEMBER.fullmatch(name, 1) is not None


# -- plausibility checks -----------------------------------------------------------------------------------------------


def meant(ledger: Ledger, mono: int) -> bool:
    """Whether the numbers of a ledger that was read at the steady instant `mono` (ns) are plausible."""
    counts = [ledger.used, ledger.inflight, ledger.tally]
    past: list[int] = []
    if isinstance(ledger, Fixed):
        edges, half = ledger.edges, ledger.limit.period // 2
        counts += [ledger.carry, ledger.foreign, ledger.expected, ledger.kept, ledger.again, ledger.held, edges.peak]
        counts += [ledger.least, ledger.loose]
        past = [ledger.stamp, ledger.kept_until, ledger.trial, ledger.probed, ledger.tried, edges.told]
        if not (edges.lo <= edges.hi and 0 <= edges.doubt <= edges.whole <= half):
            return False
    elif isinstance(ledger, First):
        counts += [ledger.begun, ledger.anchor, ledger.carry, ledger.last]
        past = [ledger.begun, ledger.anchor, ledger.last]
    elif isinstance(ledger, Sliding):
        marks = ledger.marks
        if len(marks) % 3 or sum(marks[1::3]) != ledger.used or marks[::3] != sorted(marks[::3]):
            return False
        counts += marks
        past = marks[-3::2]
    elif isinstance(ledger, Bucket):
        counts += [ledger.level]
        past = [ledger.at]
    if min(counts) < 0 or max(counts) > _MOST or any(at > mono + _AHEAD for at in past):
        return False
    if not isinstance(ledger, Fixed) and ledger.era > (mono + _AHEAD) // max(
        1, min(ledger.limit.period or SECOND, SECOND)
    ):
        return False
    if ledger.hot > ledger.era + 1:
        return False
    return all(
        0 <= who[1] < 16 and min(row) >= 0 and max(row) <= _MOST and row[5] <= mono + _AHEAD + 2 * ledger.limit.period
        for who, row in ledger.rows.items()
    )


def meant_blocks(states: list[BlockState]) -> list[BlockState]:
    """Return the plausible blocks."""
    return [state for state in states if state.length is None or state.length >= 0]


def meant_learned(limits: dict[str, dict[str, tuple[int, int]]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the plausible stated limits."""
    return {
        namespace: {
            name: numbers
            for name, numbers in rows.items()
            if (
                min(numbers) >= 0
                if name.startswith((REFUSED, DOUBTED))
                else 0 < numbers[0] <= 1000
                if name.startswith(PACED)
                else believable(*numbers)
            )
        }
        for namespace, rows in limits.items()
    }
