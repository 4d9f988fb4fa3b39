"""The wire protocol: encodes commands for the script and decodes its replies. Pure; ``lua/verbs.lua`` explains the format.

The client reads a reply as a whole before it acts on it. An unreadable reply raises one of `FAULTS`, which
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
"""The script's value for never, us."""
NOTES: Final = "notes"
"""The namespace of notes, tasks and blocks for all providers; it has no ledgers."""
_FIXED: Final = ("meta", "permits", "held", "blocks", "members", "ledgers")
_encode: Final = msgspec.msgpack.Encoder().encode
_Number = Annotated[int, msgspec.Meta(ge=-FAR, le=FAR)]
"""The integers that the script can represent exactly."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=FAR)]
_Place = Annotated[int, msgspec.Meta(ge=1, le=FAR)]
"""The number by which a request refers to a ledger, or a reply to a blob."""


def keys_of(namespace: str) -> str:
    """Return the prefix of all keys of a provider; the braces put them into one hash slot of a cluster."""
    return f"hg:{{{namespace}}}:"


def namespace_of(scope: str) -> str:
    """Return the namespace that keeps the blocks of a scope."""
    namespace = scope.partition("/")[0]
    return NOTES if namespace == EVERYWHERE else namespace


# -- requests ----------------------------------------------------------------------------------------------------------


class Command:
    """A command for the next request.

    Args:
        write: makes the item, given the request that carries it; called again when the request is repeated.
        done: called with the server's answer, see `_RESULTS`; optional.

    Attributes:
        doubted: the command could not be written, or its answer could not be read.
    """

    __slots__ = ("done", "doubted", "write")

    def __init__(self, write: Callable[[Request], list[Any]], done: Callable[[Any], object] | None = None) -> None:
        self.write = write
        self.done = done
        self.doubted = False


def command(*item: Any, done: Callable[[Any], object] | None = None) -> Command:
    """Return a command with a fixed item."""
    return Command(lambda _: list(item), done)


class Request:
    """One script call for one namespace.

    Args:
        namespace: the provider's.
        limit_of: returns the limit in force for a charge.

    Attributes:
        commands: the commands it carries.
        names: keys of the ledgers they refer to.
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
        """Carry this command too, unless it has nothing left to do.

        Raises:
            Exception: one of `FAULTS`: the command cannot be written, and is `doubted`.
        """
        command.doubted = True
        item = command.write(self)
        if item:
            self._raws.append(msgspec.Raw(_encode(item)))
            self._items.append(item)
            self.commands.append(command)
        command.doubted = False

    def ledger(self, key: str) -> int:
        """Return the number by which items refer to a ledger."""
        number = self._ledgers.get(key)
        if number is None:
            self.names.append(key)
            number = self._ledgers[key] = len(self.names)
        return number

    def charges(self, charges: Sequence[Charge], permits: int = 1) -> list[list[int]]:
        """Return the charges of `permits` permits in the form of items: {ledger, limit, units}."""
        found: list[list[int]] = []
        for charge in charges:
            limit = self._limit_of(charge)
            known = self._limit_at.get(id(limit))
            if known is None:
                self._limits.append(spec(limit))
                known = self._limit_at[id(limit)] = len(self._limits), limit  # kept alive, so that its id stays unique
            found.append([self.ledger(charge.key), known[0], charge.cost * permits])
        return found

    def blob(self, raw: bytes) -> int:
        """Return the number by which items refer to these bytes."""
        self._blobs.append(raw)
        return len(self._blobs)

    def encode(self, header: Mapping[str, Any]) -> tuple[int, list[Any]]:
        """Return the number of keys, then the keys and the arguments of the script.

        Args:
            header: as at the top of ``verbs.lua``, without the limits.
        """
        prefix = keys_of(self.namespace)
        keys = [prefix + name for name in _FIXED] + [f"{prefix}L:{name}" for name in self.names]
        texts = [_encode({**header, "limits": self._limits}), _encode(self._raws)]
        return len(keys), [*keys, *texts, *self._blobs]

    def read(self, raw: Sequence[bytes]) -> Reply:
        """Decode the server's answer.

        Raises:
            Exception: one of `FAULTS`: the answer cannot be read. The command whose answer is unreadable is `doubted`.
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
        """Return the key of the ledger with this number; IndexError: there is none."""
        if place < 1:
            raise IndexError(place)
        return self.names[place - 1]


# -- replies -----------------------------------------------------------------------------------------------------------


class _Row(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A list of the script's, with a fixed number of items of these types."""


class BlockRow(_Row, frozen=True):
    """A block in the server's form: `length` us or False for ever; begun `at`, us."""

    scope: str
    kind: str
    reason: str
    length: _Count | bool
    at: _Count

    def __post_init__(self) -> None:
        if self.length is True:
            raise ValueError(self.length)


class Done(NamedTuple):
    """The server executed the request.

    Attributes:
        now: the server's clock, us.
        gen: generation of blocks and stated limits.
        epoch: see the top of ``verbs.lua``.
        results: of each command, see `_RESULTS`.
        copies: of each written ledger: key, number of the write, and its form on the server.
    """

    now: int
    gen: int
    epoch: int
    results: list[Any]
    copies: list[tuple[str, int, bytes]]


class Stale(_Row, frozen=True, tag="stale"):
    """The server did nothing: the client does not know these blocks and stated limits (name: (capacity, us)), False: none."""

    now: _Count
    gen: _Count
    blocks: list[BlockRow]
    learned: dict[str, tuple[int, _Number]] | bool


class Lost(_Row, frozen=True, tag="lost"):
    """The server did nothing: it knows less than the client, which restores what it knows."""

    now: _Count
    gen: _Count
    missing: list[_Number]
    epoch: _Number


Reply: TypeAlias = Done | Stale | Lost


class Granted(_Row, frozen=True, tag="ok"):
    """`reserve` took `permits` permits; `marks`: running totals of their ledgers."""

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
    """An earlier call of the same lane was refused."""


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
"""Verb -> the decoder of its result, and the function that makes a record of it. `reserve` gives `Granted`, `Refusal`
(`available_at` in us of the server's clock), or None for a skipped call. Settle and refund give `Answered`. Note gives its
bytes, or None. Swap gives whether it was written, and the present value if not."""


# -- pub/sub messages, and ledgers -------------------------------------------------------------------------------------


class Message(NamedTuple):
    """A message from one client to all others.

    Attributes:
        namespace: its subject.
        changed: whether the blocks, limits or epoch are new.
        members: who must recheck; None: all.
    """

    namespace: str
    changed: bool
    members: tuple[bytes, ...] | None


def read_message(channel: bytes, data: bytes) -> Message:
    """Decode a message of a channel ``hg:{NAMESPACE}:bell``.

    Raises:
        Exception: one of `FAULTS`: it cannot be read.
    """
    what, _, names = data.partition(b" ")
    if channel[:4] != b"hg:{" or channel[-6:] != b"}:bell":
        raise ValueError("no channel of ours")
    everybody = what in {b"gen", b"all"}  # any call may have waited for the end of a block
    return Message(channel[4:-6].decode(), what in {b"gen", b"epoch"}, None if everybody else tuple(names.split()))


def read_ledger(raw: bytes, there: Instant | None = None) -> Ledger:
    """Decode a ledger in the server's form, and advance it to the instant `there` of the server's clock; None: not at all.

    Raises:
        Exception: one of `FAULTS`: it is garbled.
    """
    ledger = from_lua(msgspec.msgpack.decode(raw))
    if there is not None and there.mono >= ledger.turn:
        ledger.advance(there)
    return ledger
