"""Typed decoding for any number of threads.

msgspec builds what it needs to know of a type when the type is first used. Two threads that build the same type at the same
moment crash the interpreter (seen with msgspec 0.22). So every type is built here, by one thread at a time, and the programs
that Ratekeeper governs may make their first calls in as many threads as they like.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

__all__ = ["converted", "json_decoder", "msgpack_decoder"]

T = TypeVar("T")

_BUILDING: Final = threading.RLock()
# A child process must not inherit a lock that another thread held at the fork.
os.register_at_fork(
    before=_BUILDING.acquire, after_in_parent=_BUILDING.release, after_in_child=_BUILDING.release
)  # fmt: skip


class _Decoders(Protocol):
    def __call__(self, kind: type[T], /) -> Callable[[bytes], T]: ...


def _json(kind: Any) -> Callable[[bytes], Any]:
    with _BUILDING:
        return msgspec.json.Decoder(kind).decode


def _msgpack(kind: Any) -> Callable[[bytes], Any]:
    with _BUILDING:
        return msgspec.msgpack.Decoder(kind).decode


json_decoder: Final = cast("_Decoders", lru_cache(256)(_json))
"""Type -> what decodes JSON into it, or raises `msgspec.MsgspecError`."""
msgpack_decoder: Final = cast("_Decoders", lru_cache(256)(_msgpack))
"""Type -> what decodes MessagePack into it, or raises `msgspec.MsgspecError`."""


def converted(value: Any, kind: type[T], *, strict: bool = True) -> T:
    """A plain value (of dicts, lists, text, numbers) as `kind`. Not `strict`: text that names a number is one.

    Raises:
        msgspec.ValidationError: the value does not fit.
    """
    json_decoder(kind)  # builds the type
    return msgspec.convert(value, kind, strict=strict)
