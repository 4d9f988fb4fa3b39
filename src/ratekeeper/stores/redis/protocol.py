"""The wire: commands of a store as the script reads them, its replies as records. Pure; ``lua/verbs.lua`` has the format.

A reply is read as a whole before anything is done with it. What cannot be read raises one of `FAULTS`, which
`ratekeeper.stores.redis.connection` turns into `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from ratekeeper.ledger.base import Ledger
from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import Charge, Instant, Limit
from ratekeeper.stores.blocks import EVERYWHERE
from ratekeeper.stores.records import NOTHING, Answered
from ratekeeper.stores.redis.lua import from_lua, spec
from ratekeeper.typed import msgpack_decoder

__all__ = [
    "EVER",
    "FAR",
    "MICRO",
    "NOTES",
    "BlockRow",
    "Command",
    "Done",
    "Granted",
    "Lost",
    "Message",
    "Reply",
    "Request",
    "Stale",
    "command",
    "keys_of",
    "namespace_of",
    "read_ledger",
    "read_message",
]

MICRO: Final = 1_000
"""Nanoseconds in a microsecond, the server's unit."""
EVER: Final = 1 << 62
"""A steady instant that never comes, ns."""
FAR: Final = 1 << 53
"""The script's word for never, us."""
NOTES: Final = "notes"
"""The namespace of notes, tasks and of what holds for all providers; it has no ledgers."""
_FIXED: Final = ("meta", "permits", "held", "blocks", "members", "ledgers")
_encode: Final = msgspec.msgpack.Encoder().encode
_Number = Annotated[int, msgspec.Meta(ge=-FAR, le=FAR)]
"""What the script can count exactly."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=FAR)]
_Place = Annotated[int, msgspec.Meta(ge=1, le=FAR)]
"""The number by which a request names a ledger, or a reply a blob."""


def keys_of(namespace: str) -> str:
    """How all keys of a provider begin; the braces put them into one hash slot of a cluster."""
    return f"hg:{{{namespace}}}:"


def namespace_of(scope: str) -> str:
    """The namespace in which a block of that scope is kept."""
    namespace = scope.partition("/")[0]
    return NOTES if namespace == EVERYWHERE else namespace


# -- requests ----------------------------------------------------------------------------------------------------------


class Command:
    """Something for the next request.

    Args:
        write: makes the item, given the request with which it travels; called again when the request is repeated.
        done: called with what the server answered, see `_RESULTS`; may be left out.

    Attributes:
        doubted: it could not be written, or the answer to it not be read.
    """

    __slots__ = ("done", "doubted", "write")

    def __init__(self, write: Callable[[Request], list[Any]], done: Callable[[Any], object] | None = None) -> None:
        self.write = write
        self.done = done
        self.doubted = False


def command(*item: Any, done: Callable[[Any], object] | None = None) -> Command:
    """A command whose item is known beforehand."""
    return Command(lambda _: list(item), done)


class Request:
    """One script call for one namespace.

    Args:
        namespace: the provider's.
        limit_of: the limit in force for a charge.

    Attributes:
        commands: those that it carries.
        names: keys of the ledgers that they name.
    """

    def __init__(self, namespace: str, limit_of: Callable[[Charge], Limit]) -> None:
        self.namespace = namespace
        self.commands: list[Command] = []
        self.names: list[str] = []
        self._limit_of = limit_of
        self._items: list[list[Any]] = []
        self._raws: list[msgspec.Raw] = []
        self._blobs: list[bytes] = []
        self._limits: list[list[int]] = []
        self._ledgers: dict[str, int] = {}
        self._limit_at: dict[int, tuple[int, Limit]] = {}

    def add(self, command: Command) -> None:
        """Carry this command too, unless it has nothing to say any more.

        Raises:
            Exception: one of `FAULTS`: it cannot be written, and is `doubted`.
        """
        command.doubted = True
        item = command.write(self)
        if item:
            self._raws.append(msgspec.Raw(_encode(item)))
            self._items.append(item)
            self.commands.append(command)
        command.doubted = False

    def ledger(self, key: str) -> int:
        """The number by which items name a ledger."""
        number = self._ledgers.get(key)
        if number is None:
            self.names.append(key)
            number = self._ledgers[key] = len(self.names)
        return number

    def charges(self, charges: Sequence[Charge], permits: int = 1) -> list[list[int]]:
        """Charges of so many permits, as items have them: {ledger, limit, units}."""
        found: list[list[int]] = []
        for charge in charges:
            limit = self._limit_of(charge)
            known = self._limit_at.get(id(limit))
            if known is None:
                self._limits.append(spec(limit))
                known = self._limit_at[id(limit)] = len(self._limits), limit  # kept, so that its id stays its own
            found.append([self.ledger(charge.key), known[0], charge.cost * permits])
        return found

    def blob(self, raw: bytes) -> int:
        """The number by which items name some bytes."""
        self._blobs.append(raw)
        return len(self._blobs)

    def encode(self, header: Mapping[str, Any]) -> tuple[int, list[Any]]:
        """The number of keys, then these and the arguments of the script.

        Args:
            header: as at the top of ``verbs.lua``, without the limits.
        """
        prefix = keys_of(self.namespace)
        keys = [prefix + name for name in _FIXED] + [f"{prefix}L:{name}" for name in self.names]
        texts = [_encode({**header, "limits": self._limits}), _encode(self._raws)]
        return len(keys), [*keys, *texts, *self._blobs]

    def read(self, raw: Sequence[bytes]) -> Reply:
        """What the server answered.

        Raises:
            Exception: one of `FAULTS`: it cannot be read. The command of which the answer could not be is `doubted`.
        """
        found: _Ok | Stale | Lost = _decode_reply(_blob(raw, 0))
        if not isinstance(found, _Ok):
            return found
        copies: list[tuple[str, int, bytes]] = []
        for i in range(0, len(found.written), 3):
            place, seq, blob = found.written[i : i + 3]
            copies.append((self.name(place), seq, _blob(raw, blob)))
        results: list[Any] = []
        for command, item, told in zip(self.commands, self._items, found.results, strict=True):
            command.doubted = True
            decode, convert = _RESULTS[item[0]]
            result = decode(told)
            results.append(result if convert is None else convert(result, self, item, raw))
            command.doubted = False
        return Done(found.now, found.gen, found.epoch, results, copies)

    def name(self, place: int) -> str:
        """The key of the ledger that items name by this number; IndexError: there is none."""
        if place < 1:
            raise IndexError(place)
        return self.names[place - 1]


# -- replies -----------------------------------------------------------------------------------------------------------


class _Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A list of the script's: so many items, of these types."""


class BlockRow(_Row, frozen=True):
    """A block as it lies on the server: `length` us or False for ever; begun `at`, us."""

    scope: str
    kind: str
    reason: str
    length: _Count | bool
    at: _Count

    def __post_init__(self) -> None:
        if self.length is True:
            raise ValueError(self.length)


class Done(NamedTuple):
    """The request was carried out.

    Attributes:
        now: the server's clock, us.
        gen: generation of blocks and stated limits.
        epoch: see the top of ``verbs.lua``.
        results: of each command, see `_RESULTS`.
        copies: of each ledger that was written: key, number of the write, and how it lies on the server.
    """

    now: int
    gen: int
    epoch: int
    results: list[Any]
    copies: list[tuple[str, int, bytes]]


class Stale(_Row, frozen=True, tag="stale"):
    """Nothing was done: the client does not know these blocks and stated limits (name: (capacity, us)), False: none."""

    now: _Count
    gen: _Count
    blocks: list[BlockRow]
    learned: dict[str, tuple[int, _Number]] | bool


class Lost(_Row, frozen=True, tag="lost"):
    """Nothing was done: the server knows less than the client, which gives it back what it knows."""

    now: _Count
    gen: _Count
    missing: list[_Number]
    epoch: _Number


Reply: TypeAlias = Done | Stale | Lost


class Granted(_Row, frozen=True, tag="ok"):
    """`reserve` took so many permits; `marks`: running totals of their ledgers."""

    permits: _Place
    marks: list[_Number]


class _Ok(_Row, frozen=True, tag="ok"):
    now: _Count
    gen: _Count
    results: list[msgspec.Raw]
    written: list[_Count]
    epoch: _Number


class _No(_Row, frozen=True, tag="no"):
    where: int | str
    available_at: _Number
    unknown: bool
    never: bool
    kind: str
    reason: str


class _Skip(_Row, frozen=True, tag="skip"):
    """A call of the same lane was refused before it."""


_decode_reply: Final = msgpack_decoder(cast("type[_Ok | Stale | Lost]", _Ok | Stale | Lost))


def _blob(raw: Sequence[bytes], number: int) -> bytes:
    found = raw[number]
    if not isinstance(found, bytes) or not isinstance(raw, list) or number is True:
        raise TypeError(type(found).__name__)
    return found


def _reserved(
    told: Granted | _No | _Skip, request: Request, item: list[Any], raw: Sequence[bytes]
) -> Granted | Refusal | None:
    if isinstance(told, Granted):  # no more than were asked for, and a mark for each charge
        if len(told.marks) != len(item[1]) or told.permits > max(item[11], item[13]):
            raise ValueError(told.permits)
        return told
    if isinstance(told, _No):
        key = told.where if isinstance(told.where, str) else request.name(told.where)
        return Refusal(key, told.available_at, told.unknown, told.never, told.kind, told.reason)
    return None


def _ended(told: tuple[Any, ...], request: Request, item: list[Any], raw: Sequence[bytes]) -> Answered:
    held, released, wake, *more = told
    foreign = more[0] if more else ()
    others = {request.name(place): units for place, units in zip(foreign[::2], foreign[1::2], strict=True)}
    members = frozenset([int(member, 16) for member in wake])
    return Answered(tuple([request.name(place) for place in released]), members, others or NOTHING, not held)


def _note(told: int | bool, request: Request, item: list[Any], raw: Sequence[bytes]) -> bytes | None:
    return None if told is False else _blob(raw, told)


def _swapped(
    told: tuple[bool, int | bool], request: Request, item: list[Any], raw: Sequence[bytes]
) -> tuple[bool, bytes | None]:
    return told[0], _note(told[1], request, item, raw)


def _of(kind: Any) -> Callable[[msgspec.Raw], Any]:
    return msgpack_decoder(kind)


_TRUE: Final = _of(bool), None
_COUNT: Final = _of(_Count), None
_RESULTS: Final[dict[str, tuple[Callable[[msgspec.Raw], Any], Callable[..., Any] | None]]] = {
    "reserve": (_of(Granted | _No | _Skip), _reserved),
    "settle": (_of(tuple[bool, list[int], list[str], list[_Number]]), _ended),
    "refund": (_of(tuple[bool, list[int], list[str]]), _ended),
    "note": (_of(_Place | bool), _note),
    "swap": (_of(tuple[bool, _Place | bool]), _swapped),
    "block": (_of(BlockRow), None),
    **dict.fromkeys(("beat", "doubt"), _COUNT),
    **dict.fromkeys(
        ("adopt", "hold", "learn", "leave", "put", "regain", "spent", "unblock", "undo", "withdraw"), _TRUE
    ),
}
"""Verb -> how its result is decoded, and made a record. Of `reserve` that is `Granted`, `Refusal` (`available_at` in us of
the server's clock), or None of a call that was skipped; of settle and refund `Answered`; of note its bytes, or None; of swap
whether it was written, and what is there if it was not."""


# -- what is told without having been asked, and ledgers ---------------------------------------------------------------


class Message(NamedTuple):
    """What a client says to all others.

    Attributes:
        namespace: which is told of.
        changed: its blocks, limits or epoch are new.
        members: who shall look again; None: everybody.
    """

    namespace: str
    changed: bool
    members: tuple[bytes, ...] | None


def read_message(channel: bytes, data: bytes) -> Message:
    """A message of a channel ``hg:{NAMESPACE}:bell``.

    Raises:
        Exception: one of `FAULTS`: it cannot be read.
    """
    what, _, names = data.partition(b" ")
    if channel[:4] != b"hg:{" or channel[-6:] != b"}:bell":
        raise ValueError("no channel of ours")
    everybody = what in {b"gen", b"all"}  # whoever waited for the end of a block
    return Message(channel[4:-6].decode(), what in {b"gen", b"epoch"}, None if everybody else tuple(names.split()))


def read_ledger(raw: bytes, there: Instant) -> Ledger:
    """A ledger as it lies on the server, brought up to the instant `there` of the server's clock.

    Raises:
        Exception: one of `FAULTS`: it is garbled.
    """
    ledger = from_lua(msgspec.msgpack.decode(raw))
    if there.mono >= ledger.turn:
        ledger.advance(there)
    return ledger
