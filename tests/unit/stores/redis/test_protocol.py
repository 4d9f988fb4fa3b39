"""Bytes and records: each command as the script reads it, each reply as the store has it, and none that is garbled."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from ratekeeper.ledger.decide import Refusal
from ratekeeper.ledger.limit import SECOND, Charge, Instant, Limit
from ratekeeper.rules.reading import FAULTS
from ratekeeper.stores.records import Answered, Ask, Grant, Settlement
from ratekeeper.stores.redis import commands
from ratekeeper.stores.redis.commands import End, Record
from ratekeeper.stores.redis.lua import spec
from ratekeeper.stores.redis.protocol import (
    MICRO,
    BlockRow,
    Command,
    Done,
    Granted,
    Lost,
    Message,
    Request,
    Stale,
    command,
    keys_of,
    namespace_of,
    read_message,
)

WEIGHT = Limit("weight", "weight", 100, 60 * SECOND)
ORDERS = Limit("orders", "orders", 5, 10 * SECOND)
CHARGES = (Charge("shop/weight/ip:a", WEIGHT, 2), Charge("shop/orders/ip:a", ORDERS, 1))
ME = (0xB, 2)
NAME = "000000000000000b"
pack = msgspec.msgpack.encode


def record(permits: int = 3) -> Record:
    """Permits of both charges."""
    return Record(Grant(0xAB, "shop", CHARGES, [7, 8], Instant(0, 0, 0), ME, 0), (1, 2, 3), permits)


COMMANDS: dict[str, Command] = {
    "reserve": Command(
        lambda request: commands.reserve(
            request, Ask("shop", CHARGES, ("shop",), ME, lease=60 * MICRO, lane=1), "ab", 3
        )
    ),
    "settle": Command(
        lambda request: commands.settle(request, End(record()), Settlement({CHARGES[0].key: 5}, {CHARGES[1].key: 4}))
    ),
    "refund": Command(lambda request: commands.refund(request, End(record(), 2))),
    "adopt": Command(lambda request: commands.adopt(request, record(), 60)),
    "regain": Command(lambda request: commands.regain(request, record(), 60)),
    "spent": Command(lambda request: commands.spent(request, record().record, {CHARGES[0].key: 5}, (1, 2, 3))),
    "swap": Command(lambda request: ["swap", "topic", False, request.blob(b"value"), False]),
    "note": command("note", "topic"),
    "block": command("block", "shop", "ban", "why", 60),
    "hold": command("hold", "ab", 60),
}
BOTH = [[1, 1, 2], [2, 2, 1]]
ITEMS: dict[str, list[Any]] = {
    "reserve": [
        "reserve", BOTH, ["shop"], NAME, 2, {}, {}, 1, 60, "ab", 1, 3, 64, 1,
    ],
    "settle": [
        "settle", "00000000000000ab", 1, [[1, 1, 2, 5, False, 7, False], [2, 2, 1, 1, 4, 8, False]], [1, 2, 3], NAME,
        False, 2,
    ],
    "refund": ["refund", "00000000000000ab", 2, [[1, 1, 4], [2, 2, 2]], NAME, 2, 1],
    "adopt": ["adopt", "00000000000000ab", 1, BOTH, [1, 2, 3], NAME, 2, 60],
    "regain": ["regain", "00000000000000ab", 3, BOTH, NAME, 2, 60],
    "spent": ["spent", [[1, 1, 5], [2, 2, 1]], [1, 2, 3]],
    "swap": ["swap", "topic", False, 1, False],
    "note": ["note", "topic"],
    "block": ["block", "shop", "ban", "why", 60],
    "hold": ["hold", "ab", 60],
}  # fmt: skip
RESULTS: dict[str, list[tuple[Any, Any]]] = {
    "reserve": [
        (["ok", 3, [7, 8]], Granted(3, [7, 8])),
        (["no", 2, 99, True, False, "limit", ""], Refusal("shop/orders/ip:a", 99, True, False, "limit", "")),
        (["no", "shop", 99, False, False, "ban", "why"], Refusal("shop", 99, False, False, "ban", "why")),
        (["skip"], None),
    ],
    "settle": [
        ([True, [], [], []], Answered()),
        (
            [False, [2], [NAME], [1, 9]],
            Answered(("shop/orders/ip:a",), frozenset({0xB}), {"shop/weight/ip:a": 9}, late=True),
        ),
    ],
    "refund": [([True, [1], []], Answered(("shop/weight/ip:a",))), ([False, [], []], Answered(late=True))],
    "adopt": [(True, True)],
    "regain": [(False, False)],
    "spent": [(True, True)],
    "swap": [([True, False], (True, None)), ([False, False], (False, None)), ([False, 1], (False, b"before"))],
    "note": [(False, None), (1, b"before")],
    "block": [(["shop", "ban", "why", 60, 5], BlockRow("shop", "ban", "why", 60, 5))],
    "hold": [(True, True)],
}
"""Verb -> results as the script packs them, and the records."""
ODD: list[Any] = [None, True, -1, 2**63, 1.5, "x", b"\xff", [], [[]], {}, {"x": 1}]


def request_for(verb: str) -> Request:
    """A request that carries one command."""
    made = Request("shop", lambda charge: charge.limit)
    made.add(COMMANDS[verb])
    return made


def reply(result: Any, written: list[int] | None = None) -> list[bytes]:
    """What the server answers to that request."""
    return [pack(["ok", 1000, 7, [result], written or [], 3]), b"before"]


@pytest.mark.parametrize("verb", COMMANDS)
def test_what_is_sent(verb: str) -> None:
    """Keys first, then the header with the limits, the items, and the blobs."""
    count, arguments = request_for(verb).encode({"gen": 1})
    fixed = [f"hg:{{shop}}:{name}" for name in ("meta", "permits", "held", "blocks", "members", "ledgers")]
    charged = verb in {"reserve", "settle", "refund", "adopt", "regain", "spent"}
    ledgers = [f"hg:{{shop}}:L:{charge.key}" for charge in CHARGES] if charged else []
    assert arguments[:count] == fixed + ledgers
    header, items, *blobs = arguments[count:]
    limits = [spec(WEIGHT), spec(ORDERS)] if charged else []
    assert msgspec.msgpack.decode(header) == {"gen": 1, "limits": limits}
    assert msgspec.msgpack.decode(items, strict=False) == [ITEMS[verb]]
    assert blobs == ([b"value"] if verb == "swap" else [])


@pytest.mark.parametrize(
    ("verb", "told", "expected"), [(verb, *case) for verb, cases in RESULTS.items() for case in cases]
)
def test_what_is_answered(verb: str, told: Any, expected: Any) -> None:
    """Each result as a record, with the keys of ledgers."""
    assert request_for(verb).read(reply(told)) == Done(1000, 7, 3, [expected], [])


def test_ledgers_come_back_with_the_answer() -> None:
    """Those that were written: number of the write and bytes."""
    told = request_for("adopt").read(reply(True, [2, 40, 1]))
    assert isinstance(told, Done)
    assert told.copies == [("shop/orders/ip:a", 40, b"before")]


def test_replies_without_results() -> None:
    """A client that must first take something in, or give something back."""
    row = ["shop", "ban", "why", False, 5]
    stale = request_for("hold").read([pack(["stale", 1, 2, [row], {"weight": [5, 60]}])])
    assert stale == Stale(1, 2, [BlockRow("shop", "ban", "why", False, 5)], {"weight": (5, 60)})
    assert request_for("hold").read([pack(["stale", 1, 2, [], False])]) == Stale(1, 2, [], False)
    assert request_for("hold").read([pack(["lost", 1, 2, [1], 3])]) == Lost(1, 2, [1], 3)


def test_what_is_told_again_is_the_same() -> None:
    """A request that is repeated says of permits what it said before; those of the next command are told of after them."""
    of, ended = record(5), [2]
    first, second = End(of, 0, ended.pop), End(of)
    for _ in range(2):
        made = Request("shop", lambda charge: charge.limit)
        told = [commands.settle(made, first), commands.settle(made, second), commands.refund(made, End(record(), 3))]
        assert [(item[2], item[-1]) for item in told] == [(2, 3), (1, 2), (3, 0)]


def test_a_command_that_has_nothing_to_say_is_left_out() -> None:
    """And gets no result."""
    made = Request("shop", lambda charge: charge.limit)
    made.add(Command(lambda request: []))
    made.add(COMMANDS["hold"])
    assert made.commands == [COMMANDS["hold"]]


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all fields of a reply."""
    inner = enumerate(tree) if isinstance(tree, list) else tree.items() if isinstance(tree, dict) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


def put(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The same with another value there."""
    if not at:
        return value
    copy = tree.copy()
    copy[at[0]] = put(copy[at[0]], at[1:], value)
    return copy


def read_or_fault(request: Request, raw: Any) -> Any:
    """What is read; None if it cannot be, for a reason that is caught."""
    try:
        return request.read(raw)
    except FAULTS:
        return None


REPLIES = [
    *((verb, reply(told, [1, 5, 1])) for verb in ("reserve", "settle", "refund") for told, _ in RESULTS[verb]),
    *((verb, reply(told)) for verb, cases in RESULTS.items() for told, _ in cases),
    ("hold", [pack(["stale", 1, 2, [["shop", "ban", "why", 60, 5]], {"weight": [5, 60]}])]),
    ("hold", [pack(["lost", 1, 2, [1], 3])]),
]


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    """The field there."""
    return at(tree[place[0]], place[1:]) if place else tree


@pytest.mark.parametrize(("verb", "good"), REPLIES)
def test_each_field_of_another_type(verb: str, good: list[bytes]) -> None:
    """It cannot be read, and is not taken for something else."""
    tree = msgspec.msgpack.decode(good[0])
    for place in places(tree):
        was = at(tree, place)
        for odd in ODD:
            found = read_or_fault(request_for(verb), [pack(put(tree, place, odd)), *good[1:]])
            assert found is None or isinstance(found, Done | Stale | Lost)
            named = verb == "reserve" and place == (3, 0, 1) and odd == "x"  # a ledger or a scope
            none = place == (4,) and odd == {}  # no stated limits
            if not isinstance(was, list | dict) and type(odd) is not type(was) and not named and not none:
                assert found is None, (place, odd)


@pytest.mark.parametrize(("verb", "good"), REPLIES)
def test_each_list_of_another_length(verb: str, good: list[bytes]) -> None:
    """One more or less in a list with a length of its own cannot be read."""
    tree = msgspec.msgpack.decode(good[0])
    lists = [place for place in places(tree) if isinstance(at(tree, place), list)]
    free = {("ok", 3, 0, 1), ("ok", 3, 0, 2), ("stale", 3), ("lost", 3)} if verb != "reserve" else set()
    for place in lists:
        inner = at(tree, place)
        for other in (inner[:-1], [*inner, 1]):
            if other != inner and (tree[0], *place) not in free:
                assert read_or_fault(request_for(verb), [pack(put(tree, place, other)), *good[1:]]) is None, place


@pytest.mark.parametrize(("verb", "good"), REPLIES)
def test_a_random_byte(verb: str, good: list[bytes]) -> None:
    """Whatever becomes of a reply, only what is caught is raised."""
    dice = random.Random(f"{verb}{good}")
    for _ in range(300):
        raw = bytearray(good[0])
        raw[dice.randrange(len(raw))] = dice.randrange(256)
        if dice.random() < 0.2:
            del raw[dice.randrange(len(raw)) :]
        read_or_fault(request_for(verb), [bytes(raw), *good[1:]])


@pytest.mark.parametrize(
    "raw", [None, 1, b"", b"x", "ok", [], [None], [1], ["x"], [b""], [[]], {}, {0: b"x"}, OSError()]
)
def test_what_is_no_reply_at_all(raw: Any) -> None:
    """Neither is it read."""
    assert read_or_fault(request_for("hold"), raw) is None


def test_a_command_whose_answer_cannot_be_read_is_marked() -> None:
    """The others of that request are not."""
    made = Request("shop", lambda charge: charge.limit)
    commands = [command("hold", "ab", 60), command("hold", "ac", 60), command("hold", "ad", 60)]
    for one in commands:
        made.add(one)
    with pytest.raises(FAULTS):
        made.read([pack(["ok", 1, 2, [True, "x", True], [], 3])])
    assert [one.doubted for one in commands] == [False, True, False]


def test_messages() -> None:
    """Who shall look again, and what is new."""
    channel = b"hg:{shop}:bell"
    assert read_message(channel, b"wake 0b 0c") == Message("shop", False, (b"0b", b"0c"))
    assert read_message(channel, b"wake") == Message("shop", False, ())
    assert read_message(channel, b"gen 7") == Message("shop", True, None)
    assert read_message(channel, b"epoch") == Message("shop", True, ())
    assert read_message(channel, b"all") == Message("shop", False, None)


@pytest.mark.parametrize(
    ("channel", "data"),
    [(b"hg:{\xff}:bell", b"gen 1"), (b"hg:x:bell", b"gen 1"), (b"", b"gen 1"), (None, b"gen 1"), (b"hg:{a}:bell", 1)],
)
def test_messages_that_cannot_be_read(channel: Any, data: Any) -> None:
    """Of others that publish there too."""
    with pytest.raises(FAULTS):
        read_message(channel, data)


def test_where_things_lie() -> None:
    """All of a provider in one hash slot; what holds for all providers beside the notes."""
    assert keys_of("shop") == "hg:{shop}:"
    assert [namespace_of(scope) for scope in ("shop/ip:a", "shop", "*", "*/class:order")] == [
        "shop", "shop", "notes", "notes",
    ]  # fmt: skip
