"""Notes: small typed records beside the ledgers that all processes share, and how each lies in a store as bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from ratekeeper.ledger.limit import Instant
from ratekeeper.stores.sound import read_or

__all__ = ["Change", "encoded", "note_of"]

N = TypeVar("N")
T = TypeVar("T")

Change: TypeAlias = Callable[[N | None, Instant], tuple[N | None, T]]
"""How a note changes, a pure function that may be called more than once: given the note (None: there is none) and the
present, the note as it shall be (None: none) and a result. Of the present, `mono` is this machine's steady clock, and `lo`
and `hi` are bounds of the store's, on which notes are dated (ns)."""

_encode: Final = msgspec.msgpack.Encoder().encode


def encoded(note: object) -> bytes | None:
    """A note as bytes; None if there is none."""
    return None if note is None else _encode(note)


def note_of(raw: bytes | None, kind: type[N]) -> N | None:
    """A note of those bytes. What is garbled, or of another version, is none."""
    return None if raw is None else read_or(None, _decode(kind), raw)  # type: ignore[arg-type]


@lru_cache(64)
def _decode(kind: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(kind).decode
