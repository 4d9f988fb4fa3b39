"""How the records of the host store are named and written."""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from typing import Final

import msgspec

from ratekeeper.stores.blocks import BlockState

__all__ = ["due", "permit_name", "permits_of", "record_name"]

LEDGER, PERMIT, NOTE, MEMBER, ABSENT = b"L", b"P", b"N", b"M", b"A"
GENERATION, BLOCKS, LEARNED, REBUILT = b"!generation", b"!blocks", b"!learned", b"!rebuilt"

encode: Final = msgspec.msgpack.Encoder().encode
decode_held: Final = msgspec.msgpack.Decoder(tuple[tuple[str, int], ...]).decode
"""What a permit holds: (key, units) each."""
decode_absent: Final = msgspec.msgpack.Decoder(list[tuple[str, int, int, tuple[tuple[str, int], ...]]]).decode
"""What is held for a process that is absent: (namespace, lease, number, what) of each permit."""
decode_blocks: Final = msgspec.json.Decoder(list[BlockState]).decode
decode_learned: Final = msgspec.json.Decoder(dict[str, dict[str, tuple[int, int]]]).decode

_DUE: Final = struct.Struct(">QQ")


@lru_cache(4096)
def record_name(kind: bytes, key: str) -> bytes:
    """A record's name. LMDB allows 511 bytes: what is longer ends in a digest."""
    name = kind + key.encode()
    if len(name) > 500:
        return name[:440] + hashlib.blake2b(name, digest_size=24).hexdigest().encode()
    return name


@lru_cache(256)
def permits_of(namespace: str) -> bytes:
    """How the names of a provider's permits begin; they stand together, ordered by the end of their leases."""
    return PERMIT + hashlib.blake2b(namespace.encode(), digest_size=8).digest()


def permit_name(namespace: str, lease: int, number: int) -> bytes:
    """A permit's name."""
    return permits_of(namespace) + _DUE.pack(lease, number)


def due(name: bytes) -> int:
    """The end of a permit's lease, steady ns."""
    return int(_DUE.unpack(name[-_DUE.size :])[0])
